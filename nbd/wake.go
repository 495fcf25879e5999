package nbd

import "time"

// How many workers are awake decides the speed. A request that is in the page
// cache takes 2 µs, and waking another thread for it costs more than that: one
// worker that receives, serves and sends by itself does twice as many requests
// of 4 KiB as workers that share them when there is one at a time, and 1.1
// times as many when there are 32 (fio on 2 busy CPUs, medians of 7). But who
// is inside the disk may stay there, and the others must not wait. So one
// worker goes alone for as long as the disk is quick, and wakes another, which
// wakes the next,
//
//   - before a request that may take long (mayTakeLong),
//   - for some time after one that did (slowRequests),
//   - when nothing has happened for a while (tick).
const (
	// longTime is what a request takes that had to wait for a device: an NVMe
	// drive takes 60 to 100 µs.
	longTime = 50 * time.Microsecond
	// slowRequests is for how many requests workers are woken after one that
	// took long: a disk of which one in 64 has to wait is slow.
	slowRequests = 64
	// longBytes is what takes longTime to copy.
	longBytes = 128 << 10
	// stallTime is how long a request may delay others. It was quick until
	// then, so this is rare, and looking that often costs 0.1 % of a CPU.
	stallTime = 5 * time.Millisecond
)

// mayTakeLong says whether a task waits for a device, or moves much.
func mayTakeLong(t *task) bool {
	switch t.request.kind {
	case cmdRead, cmdWrite:
		return t.n >= longBytes || t.request.flags&cmdFUA != 0
	}
	return true
}

// wake wakes a worker if there is something for it to do. It is called with mu
// held.
func (c *conn) wake() {
	if c.idle > 0 && (c.queued > 0 || c.canSend() || c.canReceive()) {
		c.idle-- // counted here: the next call must not count on it too
		c.work.Signal()
	}
}

// tick looks whether something happens, until the connection is idle.
func (c *conn) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	stalled := c.steps == c.seen
	c.seen = c.steps
	if stalled {
		c.wake()
	}
	c.ticking = !c.ending && (!stalled || c.queued > 0 || len(c.finished) > 0 || !c.receiving)
	if c.ticking {
		c.ticker.Reset(stallTime)
	}
}
