package nbd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
)

// patience bounds how long a test waits for what must happen; it is not
// reached unless the test fails.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	// What Go opens once and keeps is no leak of ours: /proc, and epoll.
	_, _ = os.ReadDir("/proc/self/fd")
	if ln, err := net.Listen("unix", ""); err == nil {
		_ = ln.Close()
	}
	os.Exit(m.Run())
}

// checkLeaks fails the test if it ends with more descriptors or goroutines
// than it has now. Call it first, so that its check comes last.
func checkLeaks(tb testing.TB) {
	tb.Helper()
	fds, goroutines := openFDs(tb), runtime.NumGoroutine()
	tb.Cleanup(func() {
		eventually(tb, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		if got := openFDs(tb); got != fds {
			tb.Errorf("open descriptors: got %d, want %d", got, fds)
		}
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
			buf := make([]byte, 1<<16)
			tb.Fatalf("waited %v for %s\n%s", patience, what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// random is seeded anew each time and says with what.
func random(tb testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("XEN_DISK_TEST_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			tb.Fatal(err)
		}
	}
	tb.Logf("XEN_DISK_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// call is what a fake disk was asked to do.
type call struct {
	what   string
	off, n int64
}

// plain is a disk in memory that can do nothing besides; with hook it can wait
// and fail.
type plain struct {
	mu       sync.Mutex
	mem      []byte
	readOnly bool
	calls    []call
	hook     func(call) error
}

func newPlain(sizeBytes int) *plain { return &plain{mem: make([]byte, sizeBytes)} }

func (d *plain) Info() disk.Info {
	return disk.Info{SizeBytes: int64(len(d.mem)), ReadOnly: d.readOnly, PhysicalSectorBytes: 512}
}

// enter notes a call, refuses what no disk should be asked, and locks.
func (d *plain) enter(what string, off, n int64) error {
	size := int64(len(d.mem))
	if off < 0 || n < 0 || off%512 != 0 || n%512 != 0 || off > size || n > size-off {
		panic(fmt.Sprintf("%s: %d bytes at %d of %d", what, n, off, size))
	}
	c := call{what, off, n}
	d.mu.Lock()
	d.calls = append(d.calls, c)
	hook := d.hook
	d.mu.Unlock()
	if hook != nil {
		if err := hook(c); err != nil {
			return err
		}
	}
	if d.readOnly && what != "read" && what != "flush" && what != "extent" {
		return disk.ErrReadOnly
	}
	d.mu.Lock()
	return nil
}

func (d *plain) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	return copy(p, d.mem[off:]), nil
}

func (d *plain) WriteAt(p []byte, off int64) (int, error) {
	if err := d.enter("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	return copy(d.mem[off:], p), nil
}

func (d *plain) Flush() error {
	if err := d.enter("flush", 0, 0); err != nil {
		return err
	}
	d.mu.Unlock()
	return nil
}

func (d *plain) Close() error { return nil }

// contents are what it holds now.
func (d *plain) contents() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.mem)
}

// seen are the calls so far.
func (d *plain) seen() []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// full can do all that a disk may do besides. Its extents are sectors, data
// where marks says so.
type full struct {
	*plain
	marks []disk.Extent // what NextExtent returns, by sector
}

func newFull(sizeBytes int) *full { return &full{plain: newPlain(sizeBytes)} }

func (d *full) Discard(off, n int64) error {
	if err := d.enter("discard", off, n); err != nil {
		return err
	}
	defer d.mu.Unlock()
	clear(d.mem[off : off+n])
	return nil
}

func (d *full) Granularity() (granularity, alignment int64) { return 4096, 0 }

func (d *full) WriteZeroes(off, n int64, mayFree bool) error {
	what := "keep zeroes"
	if mayFree {
		what = "free zeroes"
	}
	if err := d.enter(what, off, n); err != nil {
		return err
	}
	defer d.mu.Unlock()
	clear(d.mem[off : off+n])
	return nil
}

func (d *full) NextExtent(off int64) (disk.Extent, error) {
	if err := d.enter("extent", off, 0); err != nil {
		return disk.Extent{}, err
	}
	defer d.mu.Unlock()
	for _, x := range d.marks {
		if off >= x.Off && off < x.Off+x.Len {
			x.Len -= off - x.Off
			x.Off = off
			return x, nil
		}
	}
	return disk.Extent{Off: off, Len: int64(len(d.mem)) - off, Allocated: true}, nil
}

// served is a server on a socket, and what it reported.
type served struct {
	*Server
	path string
	done chan error // what Serve returned

	mu      sync.Mutex
	reports []error
}

// serve starts a server that the test's end shuts down.
func serve(tb testing.TB, d disk.Disk) *served {
	tb.Helper()
	checkLeaks(tb)
	s := &served{path: filepath.Join(tb.TempDir(), "socket"), done: make(chan error, 1)}
	s.Server = New(d, Options{Report: func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.reports = append(s.reports, err)
	}})
	ln, err := Listen(s.path)
	if err != nil {
		tb.Fatal(err)
	}
	go func() { s.done <- s.Serve(ln) }() // until Shutdown
	tb.Cleanup(func() {
		s.shutdown(tb)
		if err := <-s.done; err != nil {
			tb.Error(err)
		}
	})
	return s
}

func (s *served) shutdown(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		tb.Error(err)
	}
}

// reported are the reports so far, as one error.
func (s *served) reported() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.reports...)
}

// clients is how many there are.
func (s *served) clients() int {
	s.Server.mu.Lock()
	defer s.Server.mu.Unlock()
	return len(s.conns)
}

var errDisk = unix.EIO
