package reactor

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func noAllocs(t *testing.T, what string, f func()) {
	t.Helper()
	if n := testing.AllocsPerRun(1000, f); n != 0 {
		t.Errorf("allocations of %s: got %v, want 0", what, n)
	}
}

func TestTurnDoesNotAllocate(t *testing.T) {
	l := newLoop(t)
	fd := eventfd(t, 1)
	add(t, l, fd, func(uint32) {}) // always ready
	f := func() {}
	noAllocs(t, "a turn with a descriptor and posts", func() {
		l.Post(f)
		l.Post(f)
		if err := l.turn(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPoolDoesNotAllocate(t *testing.T) {
	p := newPool(t, 2)
	done := make(chan struct{}, 8)
	s := newSource(p, func(_, _ int) { done <- struct{}{} })
	noAllocs(t, "Schedule, Take and Run", func() {
		s.offer(2)
		<-done
		<-done
	})
}

// BenchmarkWakeUp is one kick from another thread and its echo.
func BenchmarkWakeUp(b *testing.B) {
	l := newLoop(b)
	kick := eventfd(b, 0)
	echo, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // blocks its reader
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(echo)
	add(b, l, kick, func(uint32) { drainCounter(kick); signalEventfd(echo) })
	run(b, l)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	var buf [8]byte
	for b.Loop() {
		signalEventfd(kick)
		if _, err := unix.Read(echo, buf[:]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTurn(b *testing.B) {
	l := newLoop(b)
	add(b, l, eventfd(b, 1), func(uint32) {})
	b.ReportAllocs()
	for b.Loop() {
		if err := l.turn(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPostRoundTrip(b *testing.B) {
	l := startLoop(b)
	done := make(chan struct{}, 1)
	f := func() { done <- struct{}{} }
	b.ReportAllocs()
	for b.Loop() {
		l.Post(f)
		<-done
	}
}

// BenchmarkPool is the cost of a unit when the pool is never idle.
func BenchmarkPool(b *testing.B) {
	p := newPool(b, 2)
	var all sync.WaitGroup
	s := newSource(p, func(_, _ int) { all.Done() })
	b.ReportAllocs()
	b.ResetTimer()
	all.Add(b.N)
	s.offer(int64(b.N))
	all.Wait()
}

func BenchmarkPoolRoundTrip(b *testing.B) {
	p := newPool(b, 2)
	done := make(chan struct{}, 1)
	s := newSource(p, func(_, _ int) { done <- struct{}{} })
	b.ReportAllocs()
	for b.Loop() {
		s.offer(1)
		<-done
	}
}
