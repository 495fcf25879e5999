package nbd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The bounds of one connection.
const (
	// queueDepth is how many requests may be under way: more than nbdcopy's 64,
	// the deepest of the clients that we know.
	queueDepth = 128
	// workers is how many of them are inside the disk at once, as in QEMU's
	// server. A disk that never answers fewer than that many delays no others.
	workers = 16
	// maxHeldBytes bounds the data of all of them: one request of the largest
	// kind, or 32 of 1 MiB.
	maxHeldBytes = maxPayloadBytes
	// readBytes is how much is read from the socket at once: 16 writes of
	// 4 KiB. What belongs to a larger one goes straight into its buffer.
	readBytes = 64 << 10
	// sendBytes and sendReplies are when replies are sent although there is
	// other work: before they leave the CPU's cache, or wait for too many.
	sendBytes   = 256 << 10
	sendReplies = 32
)

// task is one request under way, from the socket to the socket.
type task struct {
	request request
	fail    errno
	buf     *buffer // nil: it has no data
	n       int     // bytes of data in buf: a write's, or the reply's
	header  [headerBytes]byte
}

// conn is one client. Tasks go round in it:
//
//	free -> receive -> queue -> run -> finished -> send -> free
//
// Several workers do that, one at a time receiving and one sending. See wake
// for how many are awake.
type conn struct {
	export  *export
	buffers *buffers
	report  func(error)
	nc      net.Conn
	session session

	mu       sync.Mutex
	work     sync.Cond // a worker has something to do
	free     []*task
	queue    []*task // a ring of queueDepth
	head     int
	queued   int
	finished []*task // replies to be sent
	ready    int     // bytes of data in them
	held     int     // bytes of all tasks' buffers
	want     int     // bytes that receive found no room for

	receiving bool  // a worker is in receive
	sending   bool  // a worker is in send
	ending    bool  // nothing more will be received
	broken    bool  // nothing more can be sent
	err       error // why it is ending

	idle    int // workers that wait and that nobody has woken
	slow    int // for how many requests another worker is woken
	steps   uint64
	seen    uint64 // steps at the last tick
	ticking bool
	ticker  *time.Timer

	in *bufio.Reader // receive's

	// send's.
	batch  []*task
	pieces net.Buffers
	vector [][]byte // where pieces begins
}

func newConn(nc net.Conn, e *export, b *buffers, report func(error)) *conn {
	c := &conn{
		export: e, buffers: b, report: report, nc: nc,
		in:   bufio.NewReaderSize(nc, readBytes),
		free: make([]*task, 0, queueDepth), queue: make([]*task, queueDepth),
		finished: make([]*task, 0, queueDepth), batch: make([]*task, 0, queueDepth),
		vector: make([][]byte, 0, 2*queueDepth),
	}
	c.work.L = &c.mu
	tasks := make([]task, queueDepth)
	for i := range tasks {
		c.free = append(c.free, &tasks[i])
	}
	return c
}

// transmit serves requests until the client disconnects or the socket's read
// deadline passes, and returns when all of them are answered. The error says
// why there are no more; io.EOF is what it should be.
func (c *conn) transmit(s session) error {
	c.session = s
	c.mu.Lock() // the first tick may come before AfterFunc returns
	c.ticker = time.AfterFunc(stallTime, c.tick)
	c.ticking = true
	c.mu.Unlock()
	var running sync.WaitGroup
	for range workers {
		running.Add(1)
		go func() { // until ending
			defer running.Done()
			c.serve()
		}()
	}
	running.Wait()
	c.ticker.Stop()
	return c.err
}

// serve is a worker: it does what is most useful next.
func (c *conn) serve() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		enough := c.queued == 0 || c.ready >= sendBytes || len(c.finished) >= sendReplies
		switch {
		case enough && c.canSend():
			c.send()
		case c.queued > 0:
			c.run()
		case c.canReceive():
			c.receive()
		case c.ending:
			return // who is sending looks again afterwards
		default:
			c.idle++
			c.work.Wait()
		}
	}
}

func (c *conn) canSend() bool { return len(c.finished) > 0 && !c.sending }

func (c *conn) canReceive() bool {
	return !c.receiving && !c.ending && len(c.free) > 0 && c.held+c.want <= maxHeldBytes
}

// receive queues the requests that the socket has, or waits for one. It is
// called with mu held, which it gives up meanwhile, as are send and run.
func (c *conn) receive() {
	c.receiving, c.want = true, 0
	c.mu.Unlock()
	err := c.read()
	c.mu.Lock()
	c.receiving = false
	c.steps++
	if err != nil {
		c.ending, c.err = true, err
		c.work.Broadcast()
	}
	if !c.ticking {
		c.ticking = true
		c.ticker.Reset(stallTime)
	}
}

// read queues requests for as long as it need not wait, but at least one if
// there is room for it.
func (c *conn) read() error {
	for first := true; first || c.in.Buffered() >= requestBytes; first = false {
		head, err := c.in.Peek(requestBytes)
		if err != nil {
			return err
		}
		r, ok := decodeRequest(head)
		whole := requestBytes
		switch {
		case !ok:
			return fmt.Errorf("read request: magic number %#x", head[:4])
		case r.kind == cmdDisc:
			return io.EOF
		case r.kind == cmdWrite && r.length > maxPayloadBytes:
			return fmt.Errorf("read request: a write of %d bytes", r.length)
		case r.kind == cmdWrite:
			whole += int(r.length)
		}
		if !first && c.in.Buffered() < whole {
			return nil
		}
		fail := c.export.check(r, c.session)
		t, err := c.take(dataBytes(r, fail))
		if t == nil || err != nil {
			return err
		}
		t.request, t.fail = r, fail
		if err := c.readData(t); err != nil {
			return err
		}
		c.mu.Lock()
		c.queue[(c.head+c.queued)%queueDepth] = t
		c.queued++
		c.mu.Unlock()
	}
	return nil
}

// dataBytes is how much memory a request needs.
func dataBytes(r request, fail errno) int {
	switch {
	case fail != 0:
		return 0
	case r.kind == cmdRead, r.kind == cmdWrite:
		return int(r.length)
	case r.kind == cmdBlockStatus && r.flags&cmdReqOne != 0:
		return extentBytes
	case r.kind == cmdBlockStatus:
		return maxExtents * extentBytes
	}
	return 0
}

// take returns a task with room for n bytes of data; nil: it must be waited
// for. It fails when nobody is there to be answered.
func (c *conn) take(n int) (*task, error) {
	size := 0
	if n > 0 {
		size = bufferBytes(n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return nil, net.ErrClosed
	}
	if len(c.free) == 0 || c.held+size > maxHeldBytes {
		c.want = size
		return nil, nil
	}
	last := len(c.free) - 1
	t := c.free[last]
	c.free = c.free[:last]
	c.held += size
	t.n, t.buf = n, nil
	if n > 0 {
		t.buf = c.buffers.get(n)
	}
	return t, nil
}

// readData takes a request off the stream, with the data of a write.
func (c *conn) readData(t *task) error {
	if _, err := c.in.Discard(requestBytes); err != nil || t.request.kind != cmdWrite {
		return err
	}
	if t.fail != 0 {
		_, err := c.in.Discard(int(t.request.length))
		return err
	}
	_, err := io.ReadFull(c.in, t.buf.mem[:t.n])
	return err
}

// run serves the first task of the queue.
func (c *conn) run() {
	t := c.queue[c.head]
	c.head = (c.head + 1) % queueDepth
	c.queued--
	if c.slow > 0 || mayTakeLong(t) {
		c.wake()
	}
	c.mu.Unlock()
	start := time.Now()
	c.do(t)
	long := time.Since(start) > longTime
	c.mu.Lock()
	c.finished = append(c.finished, t)
	c.ready += t.n
	c.steps++
	if long {
		c.slow = slowRequests
	} else if c.slow > 0 {
		c.slow--
	}
}

// do serves a task.
func (c *conn) do(t *task) {
	n := 0
	if t.fail == 0 {
		var data []byte
		if t.buf != nil {
			data = t.buf.mem[:t.n]
		}
		var err error
		if n, err = c.export.do(t.request, data); err != nil {
			t.fail, n = errnoOf(err), 0
			c.report(err)
		}
	}
	t.n = n
}

// send sends what is finished, all at once, and frees the tasks.
func (c *conn) send() {
	c.sending = true
	c.batch, c.finished = c.finished, c.batch[:0]
	c.ready = 0
	broken := c.broken
	c.mu.Unlock()
	if !broken {
		broken = c.write() != nil
	}
	freed := 0
	for _, t := range c.batch {
		if t.buf != nil {
			freed += len(t.buf.mem)
			c.buffers.put(t.buf)
		}
	}
	c.mu.Lock()
	if broken && !c.broken {
		c.broken = true
		_ = c.nc.Close() // receive need not wait for more
	}
	c.free = append(c.free, c.batch...)
	c.held -= freed
	c.sending = false
	c.steps++
}

// write sends the replies of the batch with one writev(2).
func (c *conn) write() error {
	v := c.vector[:0]
	for _, t := range c.batch {
		v = append(v, putReply(&t.header, t.request, c.session, t.fail, t.n))
		if t.n > 0 {
			v = append(v, t.buf.mem[:t.n])
		}
	}
	c.pieces = v
	_, err := c.pieces.WriteTo(c.nc)
	return err
}
