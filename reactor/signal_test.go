package reactor

import (
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func raise(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := unix.Kill(os.Getpid(), sig); err != nil {
		t.Fatal(err)
	}
}

func TestSignal(t *testing.T) {
	l := startLoop(t)
	got := make(chan struct{}, 1)
	stop := l.Signal(func(sig os.Signal) {
		if sig != syscall.SIGUSR1 {
			t.Errorf("signal: got %v, want SIGUSR1", sig)
		}
		if !l.OnLoop() {
			t.Error("the signal's function ran off the loop")
		}
		got <- struct{}{}
	}, syscall.SIGUSR1)
	for range 3 {
		raise(t, syscall.SIGUSR1)
		await(t, "the signal", got)
	}
	stop()
	stop()
}

// stop inside f must not wait for f; f does not run again although a signal is
// on its way.
func TestSignalStoppedByItsFunction(t *testing.T) {
	l := startLoop(t)
	// A second taker keeps the process alive when ours has been stopped.
	other := make(chan struct{}, 8)
	defer l.Signal(func(os.Signal) { other <- struct{}{} }, syscall.SIGUSR2)()
	calls := 0
	done := make(chan struct{})
	on(t, l, func() {
		var stop func()
		stop = l.Signal(func(os.Signal) {
			calls++
			stop()
			close(done)
		}, syscall.SIGUSR2)
	})
	raise(t, syscall.SIGUSR2)
	await(t, "the function that stops itself", done)
	await(t, "the other", other)
	raise(t, syscall.SIGUSR2)
	await(t, "the other", other)
	on(t, l, func() {
		if calls != 1 {
			t.Errorf("calls: got %d, want 1", calls)
		}
	})
}

// The forwarder has posted and the loop has not come to it when stop is called.
func TestSignalStoppedBeforeItsPostRuns(t *testing.T) {
	l := startLoop(t)
	on(t, l, func() {
		stop := l.Signal(func(os.Signal) { t.Error("f ran after stop") }, syscall.SIGUSR1)
		raise(t, syscall.SIGUSR1)
		eventually(t, "the forwarder's post", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.posted) > 0
		})
		stop()
	})
	on(t, l, func() {})
}

func TestSignalOfNoneAndAfterClose(t *testing.T) {
	l := startLoop(t)
	f := func(sig os.Signal) { t.Errorf("got %v, want none", sig) }
	l.Signal(f)()
	l.Signal(f, syscall.SIGUSR1) // left to Close
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.Signal(f, syscall.SIGUSR1)()
}
