package reactor

import (
	"encoding/binary"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPostOrder(t *testing.T) {
	l := startLoop(t)
	const posters, each = 10, 10_000
	var all sync.WaitGroup
	next := make([]int, posters) // loop only
	for p := range posters {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := range each {
				l.Post(func() {
					if next[p] != i {
						t.Errorf("poster %d: got its post %d, want %d", p, i, next[p])
					}
					next[p] = i + 1
				})
			}
		}()
	}
	all.Wait()
	on(t, l, func() {
		for p, n := range next {
			if n != each {
				t.Errorf("poster %d: got %d posts, want %d", p, n, each)
			}
		}
	})
}

func TestPostsCoalesceIntoOneWrite(t *testing.T) {
	l := newLoop(t)
	ran := 0
	for range 100_000 {
		l.Post(func() { ran++ })
	}
	var buf [8]byte
	if _, err := unix.Read(l.wakefd, buf[:]); err != nil {
		t.Fatal(err)
	}
	if got := binary.NativeEndian.Uint64(buf[:]); got != 1 {
		t.Errorf("writes to the eventfd: got %d, want 1", got)
	}
	signalEventfd(l.wakefd)
	run(t, l)
	on(t, l, func() {})
	if ran != 100_000 {
		t.Errorf("posts that ran: got %d, want 100000", ran)
	}
}

func TestPostByPostWaitsForNextTurn(t *testing.T) {
	l := newLoop(t)
	fd := eventfd(t, 1)
	served := make(chan struct{})
	add(t, l, fd, func(uint32) { drainCounter(fd); close(served) })
	var again func()
	stopped := false
	again = func() {
		if !stopped {
			l.Post(again)
		}
	}
	l.Post(again)
	run(t, l)
	await(t, "a descriptor beside a post that posts itself", served)
	on(t, l, func() { stopped = true })
}

func TestStopRunsWhatWasPostedBefore(t *testing.T) {
	l := newLoop(t)
	ran := 0
	l.Post(func() {
		l.Post(func() { ran++ })
		l.Stop()
		l.Post(func() { ran++ }) // allowed, not promised
	})
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	if ran == 0 {
		t.Error("the function posted before Stop did not run")
	}
}
