package ring_test

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xen-disk/ring"
)

// TestNoLostWakeup has frontend, consumer and workers run at the same time;
// each sleeps when its final check says so and is woken only when the other
// side's hold-off says so. One notification too few, and it waits until the
// deadline; a response twice or a request lost, and the ids do not add up.
// Without workers the two run close enough to meet between the store of one
// index and the load of the next: with the two swapped, this test fails.
func TestNoLostWakeup(t *testing.T) {
	for _, abi := range abis {
		t.Run(abi.String()+"/inline", func(t *testing.T) { wakeups(t, abi, 0, 100_000) })
		t.Run(abi.String()+"/workers", func(t *testing.T) { wakeups(t, abi, 2, 30_000) })
	}
}

// port is an event channel: pending or not, never counted. Its sleeper spins,
// since the time to wake a goroutine would hide the races looked for.
type port struct{ pending atomic.Bool }

var errAsleep = errors.New("asleep at the deadline: a lost wakeup")

func (p *port) wait(stop *atomic.Bool) error {
	end := time.Now().Add(deadline)
	for spins := 1; !p.pending.CompareAndSwap(true, false); spins++ {
		if spins%256 != 0 {
			continue
		}
		runtime.Gosched()
		if stop.Load() {
			return errors.New("the other side has failed")
		}
		if time.Now().After(end) {
			return errAsleep
		}
	}
	return nil
}

// pairOfPorts is what the two sides share besides the ring.
type pairOfPorts struct {
	toBack, toFront port
	stop            atomic.Bool // one side has failed
}

func wakeups(t *testing.T, abi ring.ABI, workers, total int) {
	f, b := pair(t, 1, abi, math.MaxUint32-1000)
	var p pairOfPorts
	burst := 5
	if workers > 0 {
		burst = 1000 // the ring is full at times: no honest one is refused
	}
	errs := make(chan error, 2)
	// Both end when total requests are answered, or at the deadline.
	go func() { errs <- p.front(f, burst, total) }()
	go func() { errs <- p.back(b, workers, total) }()
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
			p.stop.Store(true)
		}
	}
}

func (p *pairOfPorts) front(f *front, burst, total int) error {
	open := map[uint64]bool{}
	made, answered := 0, 0
	for answered < total {
		for n := made%burst + 1; n > 0 && f.free() > 0 && made < total; n-- {
			made++
			open[uint64(made)] = true
			f.put(readWire(uint64(made)))
			// One by one, so that each may meet the final check.
			if f.push() {
				p.toBack.pending.Store(true)
			}
		}
		rs, err := f.take()
		if err != nil {
			return err
		}
		for _, r := range rs {
			if !open[r.id] || r.op != 0 || r.status != 0 {
				return fmt.Errorf("response %+v to no request", r)
			}
			delete(open, r.id)
		}
		answered += len(rs)
		if len(open) == 0 || len(rs) > 0 || f.arm() {
			continue
		}
		if err := p.toFront.wait(&p.stop); err != nil {
			return fmt.Errorf("frontend, %d made, %d answered: %w", made, answered, err)
		}
	}
	return nil
}

// back consumes, and answers or has one of its workers answer.
func (p *pairOfPorts) back(b *ring.Back, workers, total int) error {
	var mu sync.Mutex // the lock for responses that Back asks for
	answer := func(r *ring.Request) {
		mu.Lock()
		b.Put(r.ID, r.AnswerOp(), ring.StatusOK)
		notify := b.Publish()
		mu.Unlock()
		if notify {
			p.toFront.pending.Store(true)
		}
	}
	work := make(chan ring.Request, b.Size())
	var ended sync.WaitGroup
	ended.Add(workers)
	for range workers {
		go func() { // ends when work is closed
			defer ended.Done()
			for r := range work {
				answer(&r)
			}
		}()
	}
	defer ended.Wait()
	defer close(work)
	for pulled := 0; pulled < total; {
		n, err := b.Pending()
		if err != nil {
			return err
		}
		if out := b.Outstanding(); out < 0 || out+n > b.Size() {
			return fmt.Errorf("%d outstanding and %d pending on a ring of %d", out, n, b.Size())
		}
		var r ring.Request
		for range n {
			b.Pull(&r)
			if workers > 0 {
				work <- r
				continue
			}
			answer(&r)
		}
		pulled += n
		if n > 0 || b.Rearm() {
			continue
		}
		if err := p.toBack.wait(&p.stop); err != nil {
			return fmt.Errorf("backend, %d pulled: %w", pulled, err)
		}
	}
	return nil
}

// TestFullRingIsNotBroken: responses and the requests that follow them come
// between Pending's loads. A req_prod that answers a newer rsp_prod must not
// be held against an older count of responses.
func TestFullRingIsNotBroken(t *testing.T) {
	const total = 100_000
	f, b := pair(t, 1, ring.X86_64, math.MaxUint32-1000)
	for range f.size {
		f.put(readWire(1))
	}
	f.push()
	var pulled atomic.Int64
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() { // ends when total requests are answered, or the test is over
		done <- keepFull(f, b, &pulled, &stop, total)
	}()
	defer func() { // the ring is unmapped after this
		stop.Store(true)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var r ring.Request
	for pulled.Load() < total {
		n, err := b.Pending()
		if err != nil {
			t.Fatalf("after %d requests of an honest frontend: %v", pulled.Load(), err)
		}
		for range n {
			b.Pull(&r)
		}
		pulled.Add(int64(n))
		if n == 0 {
			runtime.Gosched()
		}
	}
}

// keepFull is worker and frontend at once: each request that was pulled is
// answered, and another made in its place.
func keepFull(f *front, b *ring.Back, pulled *atomic.Int64, stop *atomic.Bool, total int64) error {
	for put := int64(0); put < total; {
		if pulled.Load() <= put {
			if stop.Load() {
				return nil
			}
			runtime.Gosched()
			continue
		}
		b.Put(1, ring.OpRead, ring.StatusOK)
		b.Publish()
		put++
		if _, err := f.take(); err != nil {
			return err
		}
		f.put(readWire(1))
		f.push()
	}
	return nil
}
