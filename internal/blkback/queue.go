package blkback

import (
	"sync"
	"sync/atomic"

	"xen-disk/disk"
	"xen-disk/grant"
	"xen-disk/reactor"
	"xen-disk/ring"
)

const (
	// turnPulls bounds how often a queue looks at its ring again before the
	// loop goes on to the next device. A guest that keeps its ring full must
	// not keep the loop.
	turnPulls = 4
	// batchRequests bounds how many requests one unit of work takes from a
	// disk that is memory: one grant copy moves them all.
	batchRequests = 32
	// unitBatch stands for "whatever waits, up to batchRequests"; the other
	// units are indices of records.
	unitBatch = 1 << 20
)

// queue serves one ring. Its loop half (turn) pulls and checks; its worker
// half (Take, Run) moves data and answers. They share the arena of records
// and the lists below, under mu.
type queue struct {
	link  *link
	back  *ring.Back
	port  uint32 // local event channel port
	mode  mode
	task  reactor.Task
	reqs  []ring.Request // the arena: as many as the ring has slots
	pulls []uint16       // loop only: records of the current pull

	// busy counts the records pulled whose answer is not yet notified. The
	// link is drained when it is zero.
	busy atomic.Int32
	// finishing counts the workers that have an answer and want mu. The
	// last of them publishes for all.
	finishing atomic.Int32

	mu     sync.Mutex
	free   []uint16 // records not in use
	fifo   []uint16 // records that wait for a worker: a circle of len(reqs)
	head   int
	queued int
	// running counts the workers that serve this queue, share bounds them:
	// a disk that hangs must leave workers to the others.
	running, share int
	dead           bool // the ring is gone: answers are dropped
	stats          Stats
}

// mode is how data crosses between guest and disk.
type mode uint8

const (
	modeCopy   mode = iota // through a worker's buffer
	modeMemory             // grant copies straight from and to the disk's memory
	modeSink               // not at all: answered on the loop
)

func modeOf(d disk.Disk) mode {
	switch d.(type) {
	case disk.Sink:
		return modeSink
	case disk.Memory:
		return modeMemory
	}
	return modeCopy
}

func newQueue(l *link, back *ring.Back, port uint32) *queue {
	n := back.Size()
	q := &queue{
		link: l, back: back, port: port, mode: modeOf(l.disk),
		share: max(1, len(l.workers)/2),
		reqs:  make([]ring.Request, n), pulls: make([]uint16, n),
		free: make([]uint16, n), fifo: make([]uint16, n),
	}
	for i := range q.free {
		q.free[i] = uint16(i)
	}
	q.task.Init(l.pool, q)
	return q
}

// turn serves the ring for a bounded while, on the loop. It reports whether
// more waits, in which case it must be called again: no event will come.
func (q *queue) turn() (more bool, err error) {
	for range turnPulls {
		n, err := q.back.Pending()
		if err != nil {
			return false, err
		}
		if n == 0 {
			if !q.back.Rearm() {
				return false, nil
			}
			continue
		}
		q.pull(n)
	}
	return true, nil
}

// pull takes n requests off the ring, answers at once those that need no
// disk, and hands the others to the pool.
func (q *queue) pull(n int) {
	occupied := q.back.Outstanding() + n
	q.reserve(n)
	for _, i := range q.pulls[:n] {
		q.back.Pull(&q.reqs[i])
	}
	q.busy.Add(int32(n))

	answered, waiting := 0, 0
	q.mu.Lock()
	q.stats.Occupancy[occupied]++
	for _, i := range q.pulls[:n] {
		r := &q.reqs[i]
		status := ring.Check(r, &q.link.limits)
		q.stats.pulled(r, status)
		if status == ring.StatusOK && q.mode != modeSink {
			q.fifo[(q.head+q.queued)%len(q.fifo)] = i
			q.queued++
			waiting++
			continue
		}
		q.put(i, status)
		answered++
	}
	notify := answered > 0 && q.publish()
	q.mu.Unlock()

	if waiting > 0 {
		q.task.Schedule()
	}
	if notify {
		q.link.notify(q.port)
	}
	if answered > 0 {
		q.done(answered)
	}
}

// reserve moves n free records to pulls. There are always enough: Pending
// says that all outstanding requests fit the ring.
func (q *queue) reserve(n int) {
	q.mu.Lock()
	left := len(q.free) - n
	copy(q.pulls, q.free[left:])
	q.free = q.free[:left]
	q.mu.Unlock()
}

// Take gives a worker its next unit of work (reactor.Source).
func (q *queue) Take() (unit int, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queued == 0 || q.running == q.share {
		return -1, false
	}
	q.running++
	if q.mode == modeMemory {
		return unitBatch, false
	}
	return int(q.next()), q.queued > 0 && q.running < q.share
}

// leave ends the service of a unit. It reports whether the queue must be
// scheduled again, because its share kept work from being taken. The caller
// holds mu.
func (q *queue) leave() (again bool) {
	q.running--
	return q.running == q.share-1 && q.queued > 0
}

// next removes the record that waits longest. The caller holds mu.
func (q *queue) next() uint16 {
	i := q.fifo[q.head]
	q.head = (q.head + 1) % len(q.fifo)
	q.queued--
	return i
}

// Run serves a unit (reactor.Source).
func (q *queue) Run(worker, unit int) {
	w := q.link.workers[worker]
	if unit == unitBatch {
		q.runBatch(w)
		return
	}
	w.batch[0] = uint16(unit)
	w.status[0] = q.link.serve(w, &q.reqs[unit])
	q.answer(w.batch[:1], w.status[:1])
}

// runBatch serves what waits on a disk that is memory.
func (q *queue) runBatch(w *worker) {
	n := 0
	q.mu.Lock()
	for n < batchRequests && q.queued > 0 {
		w.batch[n] = q.next()
		n++
	}
	more := q.queued > 0
	if n == 0 {
		q.leave() // nothing is queued, so it asks for nothing
	}
	q.mu.Unlock()
	if n == 0 {
		// Another worker took what this one was sent for. No record is
		// ours, so busy does not hold the link for us: it may be closed.
		return
	}
	if more {
		q.task.Schedule()
	}
	q.link.serveMemory(w, q.reqs, w.batch[:n], w.status[:n])
	q.answer(w.batch[:n], w.status[:n])
}

// answer puts the responses of a unit and publishes, unless another worker
// stands right behind and will do it.
func (q *queue) answer(batch []uint16, status []ring.Status) {
	q.finishing.Add(1)
	q.mu.Lock()
	for n, i := range batch {
		q.put(i, status[n])
	}
	again := q.leave()
	notify := q.finishing.Add(-1) == 0 && q.publish()
	q.mu.Unlock()
	if again {
		q.task.Schedule()
	}
	if notify {
		q.link.notify(q.port)
	}
	q.done(len(batch))
}

// put writes the response of a record and frees it. The caller holds mu.
func (q *queue) put(i uint16, status ring.Status) {
	r := &q.reqs[i]
	q.stats.answered(r, status)
	if !q.dead {
		q.back.Put(r.ID, r.AnswerOp(), status)
	}
	q.free = append(q.free, i) // never grows: its capacity is the arena
}

// publish shows what was put. The caller holds mu and notifies after it.
func (q *queue) publish() (notify bool) {
	if q.dead || !q.back.Publish() {
		return false
	}
	q.stats.Notifications++
	return true
}

// done ends the service of n records; nothing of the link is used after it.
func (q *queue) done(n int) {
	if q.busy.Add(int32(-n)) == 0 {
		q.link.idle()
	}
}

// sever forgets the ring: from its return on no worker touches the ring's
// memory. Requests that are being served are still served, unanswered. The
// loop half must have been stopped before.
func (q *queue) sever() {
	q.mu.Lock()
	q.dead = true
	q.mu.Unlock()
}

func (q *queue) snapshot() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stats
}

// copySegments describes the data of a request that passed Check as grant
// copies between the guest and memory at addr. toGuest is the direction.
func copySegments(dst []grant.CopySegment, domid uint16, r *ring.Request, addr uint64, toGuest bool) int {
	for n := range r.Segments() {
		s := &r.Segs[n]
		foreign := grant.Foreign(domid, s.Ref, uint16(s.Offset()))
		c := grant.CopySegment{Source: foreign, Dest: addr, Len: uint16(s.Bytes()), Flags: grant.CopySourceGref}
		if toGuest {
			c.Source, c.Dest, c.Flags = addr, foreign, grant.CopyDestGref
		}
		dst[n] = c
		addr += uint64(s.Bytes())
	}
	return int(r.NrSegs)
}
