package xs

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// inFlightMax bounds the requests that wait for their replies at one time;
	// further callers queue. xenstored stops reading from a domain that has
	// more than 20 outstanding (its quota "outstanding"), and one connection
	// need not take all of them.
	inFlightMax = 16
	// deviceInFlightMax: the kernel's device keeps the body of one message a
	// file, and the next write may overwrite it before it was sent. With
	// several requests in flight on Linux 6.1, writes landed at the wrong
	// nodes and replies never came.
	deviceInFlightMax = 1
	// readSize is the memory of one read: two messages of the largest size.
	readSize = 2 * (headerSize + payloadMax)
	// pumpTurns bounds the reads of one Pump, some 64 KiB or at most 3000
	// events: a guest that writes its nodes in a loop must not keep the event
	// loop from its disks.
	pumpTurns = 8
)

// Conn is a connection to xenstore. Any number of goroutines may make requests
// at the same time, except the one that pumps; see the package's text. A
// request has no time limit: it ends with its reply, with the connection, or
// with Close.
type Conn struct {
	path       string
	fd         int
	wakeFD     int // eventfd: readable once err is set, ends every poll
	isSocket   bool
	payloadMax int

	slots  chan struct{} // one token for each request in flight
	txSlot chan struct{} // held by the transaction that is open
	done   chan struct{} // closed when err is set

	wmu sync.Mutex // one message at a time; taken before mu

	mu        sync.Mutex
	err       error // why the connection ended
	closed    bool
	refs      int // system calls under way, and one until Close
	calls     map[uint32]*call
	lastID    uint32
	watches   map[string]*Watch // by token
	lastToken uint64

	startOnce sync.Once
	served    atomic.Bool // Start, FD or Pump was called
	pumping   atomic.Bool // guards dec and buf
	dec       decoder
	buf       []byte
}

// call is a request that waits for its reply.
type call struct {
	typ   uint32
	reply chan result // holds one, so that nobody waits for the caller
}

type result struct {
	payload []byte
	err     error
}

func newConn(path string, fd int, isSocket bool) (*Conn, error) {
	wakeFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	c := &Conn{
		path:       path,
		fd:         fd,
		wakeFD:     wakeFD,
		isSocket:   isSocket,
		payloadMax: payloadMax,
		slots:      make(chan struct{}, inFlightMax),
		txSlot:     make(chan struct{}, 1),
		done:       make(chan struct{}),
		refs:       1,
		calls:      make(map[uint32]*call),
		watches:    make(map[string]*Watch),
		buf:        make([]byte, readSize),
	}
	if !isSocket {
		c.payloadMax = devicePayloadMax
		c.slots = make(chan struct{}, deviceInFlightMax)
	}
	return c, nil
}

// Path is the socket or device that the connection was opened on.
func (c *Conn) Path() string { return c.path }

// FD is the descriptor for an event loop: when it is readable
// (level-triggered), hung up or in error, call Pump. It is non-blocking. It is
// valid until Close; the loop forgets it before that.
func (c *Conn) FD() int {
	c.served.Store(true)
	return c.fd
}

// Done is closed when the connection has ended, by Close or by its loss.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil while the connection is usable. Afterwards it is ErrClosed, or
// wraps ErrLost and the reason. The first of the two stays.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection: every waiting request fails with ErrClosed, no
// watch's function is called any more, and an open transaction is dropped. It
// may be called more than once, from any goroutine, and from a watch's
// function. The error is always nil.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if first {
		c.release()
	}
	return nil
}

// fail ends the connection. Only the first reason counts.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = reason
	for id, call := range c.calls {
		delete(c.calls, id)
		call.reply <- result{err: reason}
	}
	clear(c.watches)
	// An eventfd that was written once cannot refuse the write.
	_, _ = unix.Write(c.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	close(c.done)
}

// lose is fail for what the other side did.
func (c *Conn) lose(cause error) error {
	c.fail(fmt.Errorf("%w: %w", ErrLost, cause))
	return c.Err()
}

// acquire keeps the descriptors open for a system call, until release.
// Otherwise Close could let another file have their numbers meanwhile.
func (c *Conn) acquire() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.refs++
	return nil
}

func (c *Conn) release() {
	c.mu.Lock()
	c.refs--
	last := c.refs == 0
	c.mu.Unlock()
	if last {
		_ = unix.Close(c.fd)
		_ = unix.Close(c.wakeFD)
	}
}

// Start pumps in a goroutine of its own, which ends when the connection does.
// It is instead of an event loop, never together with one.
func (c *Conn) Start() {
	c.startOnce.Do(func() {
		c.served.Store(true)
		if c.acquire() != nil {
			return
		}
		go func() {
			defer c.release()
			for c.poll(unix.POLLIN) == nil && c.Pump() == nil {
			}
		}()
	})
}

// poll waits until the descriptor is ready for events or the connection has
// ended. The caller has acquired.
func (c *Conn) poll(events int16) error {
	fds := []unix.PollFd{
		{Fd: int32(c.fd), Events: events},
		{Fd: int32(c.wakeFD), Events: unix.POLLIN},
	}
	err := retryEINTR(func() error {
		_, err := unix.Poll(fds, -1)
		return err
	})
	if err != nil {
		return c.lose(fmt.Errorf("poll: %w", err))
	}
	return c.Err()
}

// Pump reads what is there without blocking, hands replies to the requests
// that wait for them, and calls the functions of watches. After a bounded
// number of reads it returns even if there is more, so the descriptor may
// still be readable. One goroutine pumps; a call while another is under way
// does nothing.
//
// An error means that the connection has ended and the descriptor should no
// longer be waited for; it is that of Err.
func (c *Conn) Pump() error {
	c.served.Store(true)
	if !c.pumping.CompareAndSwap(false, true) {
		return c.Err()
	}
	defer c.pumping.Store(false)
	if err := c.acquire(); err != nil {
		return err
	}
	defer c.release()
	for range pumpTurns {
		var n int
		err := retryEINTR(func() (err error) {
			n, err = unix.Read(c.fd, c.buf)
			return err
		})
		switch {
		case err == unix.EAGAIN:
			return c.Err()
		case err != nil:
			return c.lose(fmt.Errorf("read: %w", err))
		case n <= 0:
			return c.lose(fmt.Errorf("read: %w", io.EOF))
		}
		if err := c.feed(c.buf[:n]); err != nil {
			return c.lose(err)
		}
	}
	return c.Err()
}

// feed gives bytes to the decoder and its messages to whom they are for.
func (c *Conn) feed(p []byte) error {
	for {
		h, payload, rest, ok, err := c.dec.next(p)
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		if h.typ == opWatchEvent {
			err = c.event(payload)
		} else {
			err = c.answer(h, payload)
		}
		if err != nil {
			return err
		}
		p = rest
	}
}

// answer hands a reply to the request that waits for it. A reply that nobody
// waits for, or of another type, means that the two sides are out of step: a
// caller would wait for ever or get what belongs to another.
func (c *Conn) answer(h header, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil // Close came first and has answered them all
	}
	id := h.reqID
	if id == 0 && !c.isSocket && (h.typ == opWatch || h.typ == opUnwatch) {
		// The device of Linux before 4.10 answers these itself, with
		// req_id 0 (linux: drivers/xen/xenbus/xenbus_dev_frontend.c,
		// xenbus_write_watch). Only one request is in flight there.
		for only := range c.calls {
			id = only
		}
	}
	call := c.calls[id]
	switch {
	case call == nil:
		return fmt.Errorf("%w: reply of type %d to request %d, which nobody made",
			errWire, h.typ, h.reqID)
	case h.typ == opError:
		call.reply <- result{err: errnoOf(payload)}
	case h.typ == call.typ:
		call.reply <- result{payload: append([]byte(nil), payload...)}
	default:
		return fmt.Errorf("%w: reply of type %d to request %d of type %d",
			errWire, h.typ, h.reqID, call.typ)
	}
	delete(c.calls, id)
	return nil
}
