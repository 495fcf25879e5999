package reactor

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// source is a Source with so many units; run is called for each.
type source struct {
	Task
	left atomic.Int64
	run  func(worker, unit int)
	took func() // called in Take after the decision
}

func (s *source) Take() (int, bool) {
	for {
		n := s.left.Load()
		if n > 0 && !s.left.CompareAndSwap(n, n-1) {
			continue
		}
		if s.took != nil {
			s.took()
		}
		return int(n) - 1, n > 1
	}
}

func (s *source) Run(worker, unit int) { s.run(worker, unit) }

func (s *source) offer(n int64) {
	s.left.Add(n)
	s.Schedule()
}

func newPool(tb testing.TB, workers int) *Pool {
	tb.Helper()
	checkLeaks(tb)
	p := NewPool(workers, nil)
	tb.Cleanup(p.Close)
	return p
}

func newSource(p *Pool, run func(worker, unit int)) *source {
	s := &source{run: run}
	s.Init(p, s)
	return s
}

func TestPoolStart(t *testing.T) {
	for _, tc := range []struct{ ask, want int }{{-1, 1}, {0, 1}, {1, 1}, {7, 7}} {
		checkLeaks(t)
		var mu sync.Mutex
		var started []int
		p := NewPool(tc.ask, func(worker int) {
			mu.Lock()
			defer mu.Unlock()
			started = append(started, worker)
		})
		if p.Workers() != tc.want {
			t.Errorf("workers for %d: got %d, want %d", tc.ask, p.Workers(), tc.want)
		}
		p.Close()
		p.Close()
		slices.Sort(started)
		for i, worker := range started {
			if i != worker {
				t.Errorf("workers for %d: start was called for %v", tc.ask, started)
			}
		}
		if len(started) != tc.want {
			t.Errorf("workers for %d: start was called %d times, want %d", tc.ask, len(started), tc.want)
		}
	}
}

// One unit at a time, each offered only when the last is done: the worker goes
// idle in between, so one lost wake-up stops the test.
func TestPoolWakeUpPingPong(t *testing.T) {
	for _, workers := range []int{1, 2, 4} {
		p := newPool(t, workers)
		done := make(chan struct{}, 1)
		s := newSource(p, func(_, _ int) { done <- struct{}{} })
		for range 20_000 {
			s.offer(1)
			await(t, "the unit", done)
		}
		p.mu.Lock()
		if p.idle > workers {
			t.Errorf("idle: got %d, want at most %d: Schedule wakes only the idle", p.idle, workers)
		}
		p.mu.Unlock()
	}
}

func TestPoolStress(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const workers, sources, producers, offers = 4, 16, 8, 5000
	p := newPool(t, workers)
	var units sync.WaitGroup
	var busy [workers]atomic.Bool
	var all [sources]*source
	for i := range all {
		all[i] = newSource(p, func(worker, _ int) {
			if busy[worker].Swap(true) {
				t.Errorf("worker %d runs two units at once", worker)
			}
			busy[worker].Store(false)
			units.Done()
		})
	}
	var ended sync.WaitGroup
	for i := range producers {
		ended.Add(1)
		go func() {
			defer ended.Done()
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for range offers {
				n := 1 + rng.IntN(3)
				units.Add(n)
				all[rng.IntN(sources)].offer(int64(n))
			}
		}()
	}
	ended.Wait()
	done := make(chan struct{})
	go func() { units.Wait(); close(done) }()
	await(t, "all units", done)
}

// The worst moment: Take has found the source empty and not yet said so.
func TestScheduleWhileTakingLastUnit(t *testing.T) {
	p := newPool(t, 1)
	ran := make(chan struct{}, 2)
	s := newSource(p, func(_, _ int) { ran <- struct{}{} })
	first := true
	s.took = func() {
		if first {
			first = false
			s.offer(1)
		}
	}
	s.offer(1)
	await(t, "the first unit", ran)
	await(t, "the unit offered while the first was taken", ran)
}

// fill keeps the pool's only worker until the returned function is called, so
// that the test can fill the run list.
func fill(t *testing.T, p *Pool) (release func()) {
	t.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	newSource(p, func(_, _ int) { close(held); <-free }).offer(1)
	await(t, "the worker", held)
	return func() { close(free) }
}

// One worker, 32 sources, one of which is always full: among n turns of the
// full source each other has had n turns too, while it had work.
func TestPoolIsFair(t *testing.T) {
	const sources, units = 32, 50
	p := newPool(t, 1)
	release := fill(t, p)
	var order []int // worker only, read after done
	done := make(chan struct{})
	left := (sources - 1) * units
	for i := range sources {
		s := newSource(p, func(_, _ int) {
			if left == 0 {
				return
			}
			order = append(order, i)
			if i != 0 {
				if left--; left == 0 {
					close(done)
				}
			}
		})
		if i == 0 {
			s.took = func() { s.left.Store(1 << 40) }
			s.offer(1 << 40)
			continue
		}
		s.offer(units)
	}
	release()
	await(t, "all other sources", done)
	p.Close()
	var counts [sources]int
	for at, i := range order {
		counts[i]++
		if at%sources == sources-1 {
			for j, n := range counts {
				if want := at/sources + 1; n != want {
					t.Fatalf("after %d turns source %d had %d, want %d", at+1, j, n, want)
				}
			}
		}
	}
}

// With several workers counts depend on the scheduler; that all others end
// beside a source that never does, does not.
func TestPoolServesOthersBesideFullSource(t *testing.T) {
	const sources, units = 32, 200
	p := newPool(t, 4)
	var all sync.WaitGroup
	all.Add((sources - 1) * units)
	full := newSource(p, func(_, _ int) {})
	full.took = func() { full.left.Store(1 << 40) }
	full.offer(1 << 40)
	for range sources - 1 {
		newSource(p, func(_, _ int) { all.Done() }).offer(units)
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	await(t, "all other sources", done)
}

// Each unit waits for the others: the workers must serve one source together.
func TestPoolServesOneSourceInParallel(t *testing.T) {
	const workers = 4
	p := newPool(t, workers)
	var met sync.WaitGroup
	met.Add(workers)
	done := make(chan struct{}, workers)
	s := newSource(p, func(_, _ int) {
		met.Done()
		met.Wait()
		done <- struct{}{}
	})
	s.offer(workers)
	for range workers {
		await(t, "the units to meet", done)
	}
}

func TestScheduleTwiceIsOnePlace(t *testing.T) {
	p := newPool(t, 1)
	release := fill(t, p)
	takes := 0 // worker only
	s := newSource(p, func(_, _ int) {})
	s.took = func() { takes++ }
	for range 10 {
		s.Schedule()
	}
	done := make(chan struct{})
	newSource(p, func(_, _ int) { close(done) }).offer(1)
	release()
	await(t, "the source after it", done)
	if takes != 1 {
		t.Errorf("takes: got %d, want 1", takes)
	}
}

func TestPoolClose(t *testing.T) {
	p := newPool(t, 1)
	release := fill(t, p)
	s := newSource(p, func(_, _ int) { t.Error("a unit ran that was waiting when Close was called") })
	s.offer(1)
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	eventually(t, "Close to begin", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.closed
	})
	select {
	case <-closed:
		t.Error("Close returned while a unit was running")
	default:
	}
	s.Schedule()
	release()
	await(t, "Close", closed)
	s.Schedule()
	if s.left.Load() != 1 {
		t.Errorf("units left: got %d, want 1", s.left.Load())
	}
}

func TestTaskInitTwicePanics(t *testing.T) {
	p := newPool(t, 1)
	s := newSource(p, nil)
	defer func() {
		if recover() == nil {
			t.Error("got a return, want a panic")
		}
	}()
	s.Init(p, s)
}
