package reactor

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds how long a test waits for what must happen; it is not
// reached unless the test fails.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	// What Go opens and starts once and keeps is no leak of ours.
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	signal.Stop(c)
	_, _ = os.ReadDir("/proc/self/fd")
	os.Exit(m.Run())
}

// checkLeaks fails the test if it ends with more descriptors or goroutines
// than it has now. Call it first, so that its check comes last.
func checkLeaks(tb testing.TB) {
	tb.Helper()
	fds, goroutines := openFDs(tb), runtime.NumGoroutine()
	tb.Cleanup(func() {
		if got := openFDs(tb); got != fds {
			tb.Errorf("open descriptors: got %d, want %d", got, fds)
		}
		eventually(tb, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
	})
}

func openFDs(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			tb.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func await(tb testing.TB, what string, c <-chan struct{}) {
	tb.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		tb.Fatalf("waited %v for %s", patience, what)
	}
}

// newLoop returns a loop that nobody runs yet; the test's end closes it.
func newLoop(tb testing.TB) *Loop {
	tb.Helper()
	checkLeaks(tb)
	l, err := New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return l
}

// startLoop returns a loop that runs until the test's end.
func startLoop(tb testing.TB) *Loop {
	tb.Helper()
	l := newLoop(tb)
	run(tb, l)
	return l
}

func run(tb testing.TB, l *Loop) {
	go func() {
		if err := l.Run(); err != nil {
			tb.Error(err)
		}
	}()
	entered := make(chan struct{})
	l.Post(func() { close(entered) })
	await(tb, "the loop to run", entered)
}

// on runs f on the loop and waits for it.
func on(tb testing.TB, l *Loop, f func()) {
	tb.Helper()
	ran := make(chan struct{})
	l.Post(func() { defer close(ran); f() })
	await(tb, "a posted function", ran)
}

// eventfd returns an eventfd whose counter is n; the test's end closes it.
func eventfd(tb testing.TB, n uint) int {
	tb.Helper()
	fd, err := unix.Eventfd(n, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

type handlerFunc func(events uint32)

func (f handlerFunc) Ready(events uint32) { f(events) }
