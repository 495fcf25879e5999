package reactor

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadyIsLevelTriggered(t *testing.T) {
	l := newLoop(t)
	fd := eventfd(t, 1)
	calls := 0
	done := make(chan struct{})
	add(t, l, fd, func(events uint32) {
		if events != unix.EPOLLIN {
			t.Errorf("events: got %#x, want EPOLLIN", events)
		}
		if calls++; calls == 3 { // twice it leaves the counter unread
			drainCounter(fd)
			close(done)
		}
	})
	run(t, l)
	await(t, "the third call", done)
	on(t, l, func() {})
	on(t, l, func() {
		if calls != 3 {
			t.Errorf("calls: got %d, want 3: the last one has read the counter", calls)
		}
	})
}

func TestReadyReportsHangUp(t *testing.T) {
	l := newLoop(t)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	done := make(chan struct{})
	add(t, l, p[0], func(events uint32) {
		if events&unix.EPOLLHUP == 0 {
			t.Errorf("events: got %#x, want EPOLLHUP", events)
		}
		remove(t, l, p[0])
		close(done)
	})
	unix.Close(p[1])
	run(t, l)
	await(t, "the hang-up", done)
}

func TestManyDescriptorsAreAllServed(t *testing.T) {
	l := newLoop(t)
	const n = 3*eventsPerTurn + 1
	var all sync.WaitGroup
	all.Add(n)
	for range n {
		fd := eventfd(t, 1)
		add(t, l, fd, func(uint32) { drainCounter(fd); all.Done() })
	}
	run(t, l)
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	await(t, "each descriptor's handler", done)
}

// Both descriptors are ready before Run, so one epoll_wait returns both, and
// whichever comes first takes the other out.
func TestRemoveInSameBatch(t *testing.T) {
	l := newLoop(t)
	a, b := eventfd(t, 1), eventfd(t, 1)
	calls := 0
	add(t, l, a, func(uint32) { calls++; drainCounter(a); remove(t, l, b) })
	add(t, l, b, func(uint32) { calls++; drainCounter(b); remove(t, l, a) })
	run(t, l)
	on(t, l, func() {})
	on(t, l, func() {
		if calls != 1 {
			t.Errorf("calls: got %d, want 1", calls)
		}
	})
}

// As above, and the number, the slot and the batch are those of the removed
// registration: only the generation tells them apart.
func TestFDReusedInSameBatch(t *testing.T) {
	l := newLoop(t)
	fds := []int{eventfd(t, 1), eventfd(t, 1)}
	calls, stale := 0, 0
	for i, fd := range fds {
		other := fds[1-i]
		add(t, l, fd, func(uint32) {
			calls++
			drainCounter(fd)
			slot := l.byFD[other]
			remove(t, l, other)
			reuse(t, other)
			add(t, l, other, func(uint32) { stale++ })
			if got := l.byFD[other]; got != slot {
				t.Errorf("slot of the reused descriptor: got %d, want %d", got, slot)
			}
		})
	}
	run(t, l)
	on(t, l, func() {})
	on(t, l, func() {
		if calls != 1 || stale != 0 {
			t.Errorf("calls, stale calls: got %d, %d, want 1, 0", calls, stale)
		}
	})
}

// reuse closes fd and opens an unready eventfd of the same number.
func reuse(t *testing.T, fd int) {
	t.Helper()
	fresh, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fresh)
	if err := unix.Dup3(fresh, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
}

// Closing without Remove is the caller's mistake; it must not cost a slot or
// give the new file the old handler.
func TestAddAfterCloseWithoutRemove(t *testing.T) {
	l := newLoop(t)
	fd := eventfd(t, 0)
	add(t, l, fd, func(uint32) { t.Error("the closed file's handler was called") })
	reuse(t, fd)
	done := make(chan struct{})
	add(t, l, fd, func(uint32) { drainCounter(fd); close(done) })
	if got, want := len(l.slots)-len(l.free), 3; got != want { // and the loop's two
		t.Errorf("slots in use: got %d, want %d", got, want)
	}
	signalEventfd(fd)
	run(t, l)
	await(t, "the new handler", done)
}

func TestAddAndRemoveErrors(t *testing.T) {
	l := newLoop(t)
	fd := eventfd(t, 0)
	closed, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	none := handlerFunc(func(uint32) {})
	if err := l.Add(closed, none); err != nil {
		t.Fatal(err)
	}
	unix.Close(closed)
	if err := l.Add(fd, none); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		call func() error
		want error
	}{
		{"add twice", func() error { return l.Add(fd, none) }, unix.EEXIST},
		{"add bad fd", func() error { return l.Add(-1, none) }, unix.EBADF},
		{"remove unknown", func() error { return l.Remove(12345) }, unix.ENOENT},
		{"remove closed", func() error { return l.Remove(closed) }, unix.EBADF},
		{"remove closed again", func() error { return l.Remove(closed) }, unix.ENOENT},
		{"remove", func() error { return l.Remove(fd) }, nil},
		{"remove twice", func() error { return l.Remove(fd) }, unix.ENOENT},
	} {
		if err := tc.call(); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if got, want := len(l.slots)-len(l.free), 2; got != want {
		t.Errorf("slots in use: got %d, want %d: the loop's own", got, want)
	}
}

func TestAddAndRemoveFromOtherGoroutines(t *testing.T) {
	l := startLoop(t)
	var all sync.WaitGroup
	for range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range 200 {
				fd := eventfd(t, 0)
				ready := make(chan struct{}, 1)
				add(t, l, fd, func(uint32) { drainCounter(fd); ready <- struct{}{} })
				signalEventfd(fd)
				<-ready
				remove(t, l, fd)
			}
		}()
	}
	all.Wait()
}

// Signals that interrupt epoll_wait are retried: SIGURG is Go's own preemption
// signal and is sent here to each thread, so also to one that is waiting.
func TestInterruptedWaitIsRetried(t *testing.T) {
	l := startLoop(t)
	for range 50 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Tgkill(os.Getpid(), tid, unix.SIGURG); err != nil && err != unix.ESRCH {
				t.Fatal(err)
			}
		}
		on(t, l, func() {})
	}
}

func TestHandlerPanicLeavesRun(t *testing.T) {
	l := newLoop(t)
	l.Post(func() { panic("broken handler") })
	got := make(chan any)
	go func() {
		defer func() { got <- recover() }()
		_ = l.Run()
	}()
	if v := <-got; v != "broken handler" {
		t.Errorf("recovered: got %v, want the handler's panic", v)
	}
	// newLoop's clean-up closes it: Close must not wait for that Run.
}

func TestRunErrors(t *testing.T) {
	l := startLoop(t)
	if err := l.Run(); err == nil {
		t.Error("run while it runs: got nil, want an error")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Run(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("run after close: got %v, want ErrClosed", err)
	}
	if err := l.Add(0, handlerFunc(nil)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("add after close: got %v, want ErrClosed", err)
	}
}

func TestStopBeforeRun(t *testing.T) {
	l := newLoop(t)
	ran := false
	l.Post(func() { ran = true })
	l.Stop()
	l.Stop()
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	if !ran {
		t.Error("what was posted before Stop did not run")
	}
}

func TestCloseTwiceAndConcurrently(t *testing.T) {
	l := startLoop(t)
	fd := eventfd(t, 0)
	add(t, l, fd, func(uint32) {})
	var all sync.WaitGroup
	for range 4 {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	remove(t, l, fd) // an owner may be later than the loop
	l.Stop()
	l.Post(func() { t.Error("a function posted after Close has run") })
	if l.AfterFunc(0, func() {}).Stop() {
		t.Error("a timer of a closed loop said that it was stopped")
	}
}

func TestCloseOnLoopPanics(t *testing.T) {
	l := startLoop(t)
	if l.OnLoop() {
		t.Error("OnLoop: got true on the test's goroutine")
	}
	on(t, l, func() {
		if !l.OnLoop() {
			t.Error("OnLoop: got false on the loop")
		}
		defer func() {
			if recover() == nil {
				t.Error("Close on the loop: got a return, want a panic")
			}
		}()
		_ = l.Close()
	})
}

func add(t testing.TB, l *Loop, fd int, f func(events uint32)) {
	t.Helper()
	if err := l.Add(fd, handlerFunc(f)); err != nil {
		t.Error(err)
	}
}

func remove(t testing.TB, l *Loop, fd int) {
	t.Helper()
	if err := l.Remove(fd); err != nil {
		t.Error(err)
	}
}
