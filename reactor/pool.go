package reactor

import (
	"sync"
)

// Source is a queue of work that the pool serves in turn. Both methods are
// called by several workers at once, and with no lock of the pool held.
type Source interface {
	// Take removes the next unit and returns it. unit < 0: there is none. more:
	// others remain. After its owner is gone a Source must still answer (with
	// -1) as long as its Task may be in the run list.
	Take() (unit int, more bool)
	// Run does unit; it may block. worker is in [0, Workers) and no other Run
	// has the same one at that time, so it may index scratch memory.
	Run(worker, unit int)
}

// Task is a Source's place in a pool's run list. Its owner embeds it and calls
// Init once. It must not be copied.
type Task struct {
	p *Pool
	s Source

	next   *Task // guarded by p.mu, like queued
	queued bool
}

// Init ties t to the pool that runs it and the source that has the work.
func (t *Task) Init(p *Pool, s Source) {
	if t.p != nil {
		panic("reactor: Task.Init: got a task in use, want a new one")
	}
	t.p, t.s = p, s
}

// Schedule puts t at the end of the run list, if it is not in the list, and
// wakes a worker, if one is idle. Call it after the work can be seen by Take:
// then Take is called after Schedule at least once, also if the source's last
// unit is being taken at this moment. It does not block and does not allocate.
// After Pool.Close it does nothing.
func (t *Task) Schedule() {
	p := t.p
	p.mu.Lock()
	if t.queued || p.closed {
		p.mu.Unlock()
		return
	}
	t.queued = true
	if p.tail == nil {
		p.head = t
	} else {
		p.tail.next = t
	}
	p.tail = t
	wake := p.idle > 0
	if wake {
		// Counted here, not by the worker when it runs: the next Schedule must
		// not count on a worker that has been given away already.
		p.idle--
	}
	p.mu.Unlock()
	if wake {
		p.work.Signal()
	}
}

// Pool is a fixed number of workers and a list of the tasks that have work.
//
//	Schedule -> [ t1 | t2 | t3 ] -> a worker: pop, Take, put back if more, Run
//	                  ^------------------------------------'
//
// A worker takes one unit and puts the task back at the end of the list before
// it runs the unit. So other workers can serve the same source at the same
// time, and of n sources with work each has one unit taken in n turns, however
// much work one of them has.
//
// Workers block in system calls and each then holds a P for up to 20 µs;
// GOMAXPROCS of workers + 2 keeps the loop from waiting for one.
type Pool struct {
	workers int
	running sync.WaitGroup

	mu         sync.Mutex
	work       sync.Cond // the list is not empty, or closed
	head, tail *Task
	idle       int // workers in work.Wait that nobody has signalled
	closed     bool
}

// NewPool starts workers goroutines, at least one. Each calls start first, if
// that is not nil, with its number (for debug.SetPanicOnFault and the like).
// Close ends them.
func NewPool(workers int, start func(worker int)) *Pool {
	p := &Pool{workers: max(workers, 1)}
	p.work.L = &p.mu
	p.running.Add(p.workers)
	for i := range p.workers {
		go p.serve(i, start)
	}
	return p
}

// Workers returns the number of workers.
func (p *Pool) Workers() int { return p.workers }

// Close waits until the units being run are done, and ends the workers. What
// no worker has taken stays in its source. It may be called more than once,
// but not by a worker, which would wait for itself.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for t := p.head; t != nil; {
		next := t.next
		t.next, t.queued = nil, false
		t = next
	}
	p.head, p.tail = nil, nil
	p.mu.Unlock()
	p.work.Broadcast()
	p.running.Wait()
}

// serve is a worker. Close ends it; a panic of a source ends the process.
func (p *Pool) serve(worker int, start func(int)) {
	defer p.running.Done()
	if start != nil {
		start(worker)
	}
	for {
		t := p.pop()
		if t == nil {
			return
		}
		unit, more := t.s.Take()
		if more {
			t.Schedule()
		}
		if unit >= 0 {
			t.s.Run(worker, unit)
		}
	}
}

// pop waits for the first task of the list and takes it out; nil: closed. The
// task is out before Take is called, so a Schedule from then on counts.
func (p *Pool) pop() *Task {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.head == nil {
		if p.closed {
			return nil
		}
		p.idle++
		p.work.Wait()
	}
	t := p.head
	p.head, t.next, t.queued = t.next, nil, false
	if p.head == nil {
		p.tail = nil
	}
	return t
}
