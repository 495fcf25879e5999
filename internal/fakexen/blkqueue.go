package fakexen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Errors of a request that the backend did not answer.
var (
	ErrRingFull = errors.New("ring is full")
	ErrClosed   = errors.New("frontend is closed")
)

// A queue is one ring with its event channel, as the guest has it. Indexes
// that it trusts are its own; the shared ones are only for the backend.
type queue struct {
	b     *Blkfront
	num   int
	lay   layout
	size  uint32
	pages []int
	refs  []uint32
	mem   []byte // the ring, contiguous
	port  uint32

	mu       sync.Mutex
	reqProd  uint32 // filled
	pushed   uint32 // of these, told to the backend
	rspCons  uint32
	ids      []uint64 // free
	inflight map[uint64]*Pending
	slots    [][]byte // what was written to each slot last
	pool     []granted
	broken   error
	closed   bool
	raw      bool // a liar reads the responses itself
	changed  chan struct{}

	stopFD int
	event  sync.WaitGroup
}

// granted is a page with its grant.
type granted struct {
	page int
	ref  uint32
}

// newQueue allocates a ring and its port, and starts the goroutine that waits
// for its events, which free stops.
func newQueue(b *Blkfront, num, order int) (*queue, error) {
	q := &queue{b: b, num: num, lay: b.lay, inflight: make(map[uint64]*Pending),
		changed: make(chan struct{}), stopFD: -1}
	q.size = q.lay.entries(1 << order)
	var entries []*grantEntry
	for range 1 << order {
		p := b.dom.AllocPage()
		q.pages = append(q.pages, p)
		q.refs = append(q.refs, b.dom.Grant(p, b.backendID, false))
		entries = append(entries, &grantEntry{dom: b.dom, page: p})
	}
	var err error
	if q.mem, err = mapPages(entries, true); err != nil {
		return nil, err
	}
	for i := range q.mem {
		q.mem[i] = filler
	}
	clear(q.mem[:offSlots])
	index(q.mem, offReqEvent).Store(1)
	index(q.mem, offRspEvent).Store(1)
	q.slots = make([][]byte, q.size)
	for i := range q.size {
		q.slots[i] = append([]byte(nil), q.slot(i)...)
		q.ids = append(q.ids, b.idBase()+uint64(q.size-1-i))
	}
	q.port = b.dom.AllocUnbound(b.backendID)
	if b.opts.Polled {
		return q, nil
	}
	if q.stopFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	fd, err := unix.Dup(b.dom.PortFD(q.port)) // ours: the port may go any time
	if err != nil {
		return nil, err
	}
	q.event.Add(1)
	go q.wait(fd, q.stopFD) // ends when free writes stopFD
	return q, nil
}

func (q *queue) wait(fd, stop int) {
	defer q.event.Done()
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		if _, err := pollIn(fds, -1); err != nil || fds[1].Revents != 0 {
			return
		}
		drainEventFD(fd)
		q.consume()
	}
}

func addEventFD(fd int) {
	_, _ = unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 1))
}

func drainEventFD(fd int) {
	_, _ = unix.Read(fd, make([]byte, 8))
}

func (q *queue) slot(i uint32) []byte {
	at := offSlots + int(i&(q.size-1))*q.lay.slot
	return q.mem[at : at+q.lay.slot : at+q.lay.slot]
}

// put writes a request to the next slot. The caller holds q.mu.
func (q *queue) put(r RawReq) error {
	if q.reqProd-q.rspCons >= q.size {
		return ErrRingFull
	}
	b := q.lay.encode(r)
	copy(q.slot(q.reqProd), b)
	q.slots[q.reqProd&(q.size-1)] = b
	q.reqProd++
	return nil
}

// push tells the backend of what was put, and notifies it if it asked to be
// (RING_PUSH_REQUESTS_AND_CHECK_NOTIFY).
func (q *queue) push() {
	old, now := q.pushed, q.reqProd
	if old == now {
		return
	}
	q.pushed = now
	index(q.mem, offReqProd).Swap(now) // xen_mb even under the race detector, as in ring.Publish
	if now-index(q.mem, offReqEvent).Load() < now-old {
		q.b.dom.Kick(q.port)
	}
}

// consume takes all responses, and asks to be notified of the next.
func (q *queue) consume() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.broken == nil && !q.closed && !q.raw {
		rp := index(q.mem, offRspProd).Load()
		if rp-q.rspCons > q.pushed-q.rspCons {
			q.breakWith(fmt.Errorf("rsp_prod %d is past req_prod %d", rp, q.pushed))
			break
		}
		if rp == q.rspCons {
			if q.b.opts.Polled {
				break
			}
			index(q.mem, offRspEvent).Swap(q.rspCons + 1)
			if index(q.mem, offRspProd).Load() == q.rspCons {
				break
			}
			continue
		}
		for q.rspCons != rp && q.broken == nil {
			q.take()
		}
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

// take handles the response at rspCons, as distrustful as Linux' blkfront.
func (q *queue) take() {
	i := q.rspCons & (q.size - 1)
	after := append([]byte(nil), q.slot(i)...)
	q.rspCons++
	r := decodeResponse(after)
	if at := q.lay.leak(q.slots[i], after); at >= 0 {
		q.b.violate(fmt.Errorf("response in slot %d: byte %d is %#x, was %#x",
			i, at, after[at], q.slots[i][at]))
	}
	q.slots[i] = after
	p := q.inflight[r.ID]
	switch {
	case p == nil:
		q.breakWith(fmt.Errorf("response with id %#x, which is not in flight", r.ID))
	case p.op != r.Op:
		q.breakWith(fmt.Errorf("response to operation %d says %d", p.op, r.Op))
	default:
		delete(q.inflight, r.ID)
		q.ids = append(q.ids, p.id)
		p.finish(r.Status)
	}
}

// breakWith gives the ring up, as blkfront's "disabled for further use" does.
func (q *queue) breakWith(err error) {
	q.broken = q.b.violate(fmt.Errorf("queue %d: %w", q.num, err))
	q.failAll(q.broken)
}

func (q *queue) failAll(err error) {
	for id, p := range q.inflight {
		delete(q.inflight, id)
		p.err = err
		close(p.done)
	}
}

// close refuses new requests.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.broken = errors.Join(q.broken, ErrClosed)
}

// free ends the queue: requests in flight fail, the goroutine stops, the port
// and all pages go back. It returns an error if a backend still uses the ring
// or a grant.
func (q *queue) free() error {
	if q.stopFD >= 0 {
		addEventFD(q.stopFD)
		q.event.Wait()
		_ = unix.Close(q.stopFD)
		q.stopFD = -1
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	var errs []error
	for _, p := range q.inflight {
		errs = append(errs, p.release(q.b.revoke)...)
	}
	q.failAll(ErrClosed)
	for _, g := range q.pool {
		errs = append(errs, q.b.revoke(g))
	}
	for i, p := range q.pages {
		errs = append(errs, q.b.revoke(granted{p, q.refs[i]}))
	}
	q.b.dom.ClosePort(q.port)
	errs = append(errs, unmapPages(q.mem))
	q.mem = nil
	close(q.changed)
	q.changed = make(chan struct{})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("queue %d: %w", q.num, err)
	}
	return nil
}
