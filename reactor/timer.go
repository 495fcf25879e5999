package reactor

import (
	"container/heap"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Timer is one call in the future, made by AfterFunc.
type Timer struct {
	l     *Loop
	f     func()
	when  int64  // ns since l.base
	seq   uint64 // order among equal instants
	index int    // in l.timers; -1: it has fired or was stopped
}

// AfterFunc runs f on the loop once, when d has passed on the monotonic clock.
// Timers run in the order of their instants, equal ones in the order of their
// calls. A d of zero or less means the next turn.
func (l *Loop) AfterFunc(d time.Duration, f func()) *Timer {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	when := int64(math.MaxInt64)
	if d = max(d, 0); int64(d) < math.MaxInt64-now {
		when = now + int64(d)
	}
	l.timerSeq++
	t := &Timer{l: l, f: f, when: when, seq: l.timerSeq, index: -1}
	if l.closed {
		return t
	}
	heap.Push(&l.timers, t)
	l.arm(now)
	return t
}

// Stop reports whether it kept f from running: false means that f has run, is
// running, or was stopped before. Called on the loop there is no in-between:
// f does not run after Stop has returned, even if its instant has passed.
func (t *Timer) Stop() bool {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	if t.index < 0 || t.l.timers == nil {
		return false
	}
	// timerfd stays as it is: one wake-up for nothing costs no more than the
	// syscall that would save it.
	heap.Remove(&t.l.timers, t.index)
	t.f = nil
	return true
}

// now returns the current instant, at least 1.
func (l *Loop) now() int64 { return int64(time.Since(l.base)) + 1 }

// arm sets timerfd for the earliest timer unless it fires by then anyway. The
// caller holds mu.
func (l *Loop) arm(now int64) {
	if len(l.timers) == 0 {
		return
	}
	when := l.timers[0].when
	if l.armed != 0 && l.armed <= when {
		return
	}
	l.armed = when
	// A value of zero would disarm it.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(when-now, 1))}
	if err := unix.TimerfdSettime(l.timerfd, 0, &spec, nil); err != nil {
		panic("reactor: timerfd_settime of a valid time: got " + err.Error() + ", want success")
	}
}

// timerHandler is the loop's own handler of timerfd.
type timerHandler struct{ l *Loop }

func (h timerHandler) Ready(uint32) {
	drainCounter(h.l.timerfd)
	h.l.runTimers()
}

// runTimers runs what was due when it began. Timers that are set meanwhile are
// later than that, so one which sets itself again with no delay cannot hold the
// loop.
func (l *Loop) runTimers() {
	l.mu.Lock()
	l.armed = 0
	now := l.now()
	for len(l.timers) > 0 {
		t := l.timers[0]
		if t.when > now {
			break
		}
		heap.Pop(&l.timers)
		f := t.f
		t.f = nil
		l.mu.Unlock() // one at a time: f may stop the next
		f()
		l.mu.Lock()
	}
	l.arm(l.now())
	l.mu.Unlock()
}

// timerHeap is a heap.Interface whose minimum is the earliest timer.
type timerHeap []*Timer

func (h timerHeap) Len() int { return len(h) }

func (h timerHeap) Less(i, j int) bool {
	if h[i].when != h[j].when {
		return h[i].when < h[j].when
	}
	return h[i].seq < h[j].seq
}

func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timerHeap) Pop() any {
	old := *h
	n := len(old) - 1
	t := old[n]
	old[n] = nil
	t.index = -1
	*h = old[:n]
	return t
}
