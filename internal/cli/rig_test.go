package cli

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xen-disk/internal/blkback"
	"xen-disk/internal/fakexen"
	"xen-disk/reactor"
	"xen-disk/xs"
)

var update = flag.Bool("update", false, "write the golden files")

// patience bounds how long a test waits for what must happen; it is not
// reached unless the test fails.
const patience = 30 * time.Second

// guestID is the domain called debian, xvda the device it gets first.
const (
	guestID = 1
	xvda    = 51712
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		os.Exit(child(role))
	}
	// What Go opens and starts once and keeps is no leak of ours.
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR1)
	signal.Stop(c)
	_, _ = os.ReadDir("/proc/self/fd")
	os.Exit(m.Run())
}

// rig is a pretend machine with a guest called debian, and a command line.
type rig struct {
	m   *fakexen.Machine
	x   *fakexen.Xenstored
	env *environment
	// What the command printed.
	out, err screen
	// signal is what the command does with a signal; set once it listens.
	signal   func(os.Signal)
	listens  chan struct{}
	readies  int
	before   string // the store
	finished chan int
}

// makeRig is newRig without a test, for child processes.
func makeRig() (*rig, error) {
	m, err := fakexen.New()
	if err != nil {
		return nil, err
	}
	x, err := fakexen.NewXenstored(m)
	if err != nil {
		return nil, err
	}
	if _, err := m.Boot(guestID, "debian", "11111111-2222-3333-4444-555555555555"); err != nil {
		return nil, err
	}
	r := &rig{m: m, x: x, listens: make(chan struct{}), finished: make(chan int, 1)}
	r.env = &environment{
		stdout: &r.out, stderr: &r.err, version: "xen-disk test", now: time.Now,
		onXen: func() bool { return true },
		dial:  func() (*xs.Conn, error) { return xs.Open(x.Path()) },
		openXen: func() (blkback.Xen, error) {
			door, err := m.OpenDoor(0)
			if err != nil {
				return nil, err
			}
			return door, nil
		},
		signals: func(loop *reactor.Loop, f func(os.Signal)) {
			r.signal = func(sig os.Signal) { loop.Post(func() { f(sig) }) }
			close(r.listens)
		},
		ready: func() { r.readies++ },
	}
	return r, nil
}

// newRig works in a directory of its own. Its end checks that the command left
// the store, descriptors and goroutines as they were.
func newRig(t *testing.T) *rig {
	t.Helper()
	t.Chdir(t.TempDir())
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	r, err := makeRig()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.m.Close(); err != nil {
			t.Errorf("left in Xen: %v", err)
		}
		if err := r.x.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		if got := openFDs(t); got != fds {
			t.Errorf("open descriptors: got %d, want %d", got, fds)
		}
	})
	return r
}

// start runs a command line.
func (r *rig) start(args ...string) {
	r.before = r.x.Dump()
	go func() { r.finished <- run(args, r.env) }()
}

// waitEnd waits for the command's end.
func (r *rig) waitEnd(t *testing.T, want int) {
	t.Helper()
	select {
	case code := <-r.finished:
		if code != want {
			t.Errorf("exit code %d, want %d\n%s%s", code, want, &r.out, &r.err)
		}
	case <-time.After(patience):
		t.Fatalf("the command did not end\n%s%s", &r.out, &r.err)
	}
}

// wait is waitEnd, and looks at what was printed and what is left in Xen.
func (r *rig) wait(t *testing.T, want int) {
	t.Helper()
	r.waitEnd(t, want)
	if strings.Count(r.err.String(), "\n") > 3 {
		t.Errorf("an error of more than three lines:\n%s", &r.err)
	}
	narrow(t, r.out.String()+r.err.String())
	if n := r.m.Mapped(); n != 0 {
		t.Errorf("%d pages are still mapped", n)
	}
}

// clean compares the store with what it was when the command started.
func (r *rig) clean(t *testing.T) {
	t.Helper()
	if after := r.x.Dump(); after != r.before {
		t.Errorf("the store was:\n%s\nand is:\n%s", r.before, after)
	}
	eventually(t, "watches to end", func() bool { return r.x.Watches() == 0 })
}

// see waits until the command has printed a text.
func (r *rig) see(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !r.out.wait(ctx, text) {
		t.Fatalf("no %q in:\n%s%s", text, &r.out, &r.err)
	}
}

// press sends a signal once the command listens.
func (r *rig) press(sig os.Signal) {
	<-r.listens
	r.signal(sig)
}

// guest starts the guest's driver for xvda, which the command has made.
func (r *rig) guest(t *testing.T, opts fakexen.Options) *fakexen.Blkfront {
	t.Helper()
	r.see(t, "Waiting for the guest's block driver")
	front, err := fakexen.NewBlkfront(r.m, guestID, xvda, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := front.Stop(); err != nil {
			t.Error(err)
		}
		if err := front.Violations(); err != nil {
			t.Error(err)
		}
	})
	return front
}

// connected starts the guest's driver and waits until it has the disk.
func (r *rig) connected(t *testing.T, opts fakexen.Options) *fakexen.Blkfront {
	t.Helper()
	front := r.guest(t, opts)
	if err := front.WaitConnected(deadline(t)); err != nil {
		t.Fatal(err)
	}
	r.see(t, "Connected:")
	return front
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// screen is an io.Writer whose reader can wait.
type screen struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) wait(ctx context.Context, text string) bool {
	for {
		s.mu.Lock()
		found := strings.Contains(s.text.String(), text)
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// narrow fails for lines that do not fit a terminal.
func narrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > columns {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
}

// golden compares a text with testdata/name, which lies beside the test and
// not in its working directory.
func golden(t *testing.T, dir, name, got string) {
	t.Helper()
	path := filepath.Join(dir, "testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what it was (-update accepts it). Got:\n%s\nwant:\n%s", name, got, want)
	}
}

func here(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("waited %v for %s\n%s", patience, what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// makeFile makes a sparse image in the working directory.
func makeFile(t *testing.T, name string, size int64) {
	t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
}

func sprintCase(name string, args []string, code int, stderr string) string {
	return fmt.Sprintf("# %s\n$ xen-disk %s\n%s(exit code %d)\n\n", name, strings.Join(args, " "), stderr, code)
}
