package reactor

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestTimerOrder(t *testing.T) {
	for _, tc := range []struct {
		name   string
		delays []time.Duration
		want   []int
	}{
		{"one", []time.Duration{1}, []int{0}},
		{"later first", []time.Duration{3 * time.Millisecond, time.Millisecond, 2 * time.Millisecond}, []int{1, 2, 0}},
		{"no delay keeps the order of calls", []time.Duration{0, 0, 0}, []int{0, 1, 2}},
		{"negative means now", []time.Duration{time.Millisecond, -time.Hour}, []int{1, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLoop(t)
			var got []int
			done := make(chan struct{})
			for i, d := range tc.delays {
				l.AfterFunc(d, func() {
					if got = append(got, i); len(got) == len(tc.delays) {
						close(done)
					}
				})
			}
			run(t, l)
			await(t, "the timers", done)
			if !slices.Equal(got, tc.want) {
				t.Errorf("order: got %v, want %v", got, tc.want)
			}
		})
	}
}

// Random timers, some of them stopped, from another goroutine while the loop
// runs: each fires once or was stopped, and none before its instant.
func TestTimersRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	l := startLoop(t)
	const n = 2000
	fired := make([]int, n) // loop only
	stopped := 0
	timers := make([]*Timer, n)
	for i := range n {
		d := time.Duration(rng.IntN(int(2 * time.Millisecond)))
		due := time.Now().Add(d)
		timers[i] = l.AfterFunc(d, func() {
			fired[i]++
			if early := time.Until(due); early > 0 {
				t.Errorf("timer %d fired %v early", i, early)
			}
		})
		if j := rng.IntN(n); j < i && timers[j].Stop() {
			stopped++
		}
	}
	eventually(t, "all timers", func() bool {
		left := -1
		on(t, l, func() { left = len(l.timers) })
		return left == 0
	})
	on(t, l, func() {
		sum := 0
		for i, n := range fired {
			if sum += n; n > 1 {
				t.Errorf("timer %d fired %d times", i, n)
			}
		}
		if sum+stopped != n {
			t.Errorf("fired and stopped: got %d + %d, want %d together", sum, stopped, n)
		}
	})
}

func TestTimerStop(t *testing.T) {
	l := newLoop(t)
	never := func() { t.Error("a stopped timer fired") }
	tm := l.AfterFunc(math.MaxInt64, never)
	if !tm.Stop() {
		t.Error("stop of a waiting timer: got false, want true")
	}
	if tm.Stop() {
		t.Error("second stop: got true, want false")
	}
	// Due at the same time: the first stops the second after its instant.
	var second *Timer
	done := make(chan struct{})
	first := l.AfterFunc(0, func() {
		if !second.Stop() {
			t.Error("stop of a timer that is due and has not run: got false, want true")
		}
	})
	second = l.AfterFunc(0, never)
	l.AfterFunc(0, func() { close(done) })
	run(t, l)
	await(t, "the last timer", done)
	if first.Stop() {
		t.Error("stop of a timer that has run: got true, want false")
	}
}

func TestTimerThatSetsItselfDoesNotHoldTheLoop(t *testing.T) {
	l := newLoop(t)
	fd := eventfd(t, 1)
	served := make(chan struct{})
	add(t, l, fd, func(uint32) { drainCounter(fd); close(served) })
	count := 0
	var again func()
	again = func() { count++; l.AfterFunc(0, again) }
	l.AfterFunc(0, again)
	run(t, l)
	await(t, "a descriptor beside a timer that sets itself", served)
	eventually(t, "the timer's tenth call", func() bool {
		n := 0
		on(t, l, func() { n = count })
		return n >= 10
	})
}

// An earlier timer must rearm timerfd, a later one need not.
func TestTimerEarlierThanArmed(t *testing.T) {
	l := startLoop(t)
	far := l.AfterFunc(time.Hour, func() { t.Error("fired an hour early") })
	for i := range 3 {
		done := make(chan struct{})
		l.AfterFunc(time.Duration(i)*time.Microsecond, func() { close(done) })
		await(t, fmt.Sprintf("timer %d", i), done)
	}
	if !far.Stop() {
		t.Error("the far timer was not waiting any more")
	}
}
