package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRawSmallSteps: the kernel may interrupt and may do less than asked.
func TestRawSmallSteps(t *testing.T) {
	path := image(t, 8*sectorBytes)
	d := mustOpen(t, path, Raw, Options{})
	calls := 0
	stingy := func(do func(int, []byte, int64) (int, error)) func(int, []byte, int64) (int, error) {
		return func(fd int, p []byte, off int64) (int, error) {
			if calls++; calls%2 == 1 {
				return -1, unix.EINTR
			}
			return do(fd, p[:min(len(p), 100)], off)
		}
	}
	s := &d.(*raw).file.sys
	s.pread, s.pwrite = stingy(unix.Pread), stingy(unix.Pwrite)
	want, got := pattern(4*sectorBytes), make([]byte, 4*sectorBytes)
	if n, err := d.WriteAt(want, sectorBytes); n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	if n, err := d.ReadAt(got, sectorBytes); n != len(got) || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(got, want) || !bytes.Equal(readFile(t, path)[sectorBytes:5*sectorBytes], want) {
		t.Error("data differ")
	}
}

func TestRawErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		n    int
		err  error
		read error
		wrte error
	}{
		{"i/o error", -1, unix.EIO, unix.EIO, unix.EIO},
		{"nothing moves", 0, nil, io.ErrUnexpectedEOF, io.ErrShortWrite},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := mustOpen(t, image(t, 8*sectorBytes), Raw, Options{})
			fails := func(_ int, p []byte, off int64) (int, error) {
				if off == 0 {
					return sectorBytes, nil // the first sector works
				}
				return c.n, c.err
			}
			s := &d.(*raw).file.sys
			s.pread, s.pwrite = fails, fails
			p := make([]byte, 2*sectorBytes)
			if n, err := d.ReadAt(p, 0); n != sectorBytes || !errors.Is(err, c.read) {
				t.Errorf("read: %d, %v", n, err)
			}
			n, err := d.WriteAt(p, 0)
			if n != sectorBytes || !errors.Is(err, c.wrte) {
				t.Errorf("write: %d, %v", n, err)
			}
			if err != nil && !strings.Contains(err.Error(), "at byte 512") {
				t.Errorf("error names no offset: %v", err)
			}
		})
	}
}

// failFlushes makes the next flush of d fail and those after it succeed, which
// is what Linux does; it returns the count of flushes that reached the kernel.
func failFlushes(d Disk, errs ...error) *int {
	calls := new(int)
	next := func() error {
		if *calls++; *calls <= len(errs) {
			return errs[*calls-1]
		}
		return nil
	}
	switch d := d.(type) {
	case *raw:
		d.file.sys.fdatasync = func(int) error { return next() }
	case *mmap:
		d.file.sys.msync = func([]byte, int) error { return next() }
	}
	return calls
}

func TestFlushFailureIsNeverForgotten(t *testing.T) {
	for _, f := range []Format{Raw, Mmap} {
		t.Run(f.String(), func(t *testing.T) {
			noLeaks(t)
			path := image(t, sectorBytes)
			d := mustOpen(t, path, f, Options{})
			calls := failFlushes(d, unix.EIO)
			for i := range 3 {
				if err := d.Flush(); !errors.Is(err, unix.EIO) {
					t.Errorf("flush %d: %v, want EIO", i+1, err)
				}
			}
			if *calls != 1 {
				t.Errorf("the kernel was asked %d times, want once", *calls)
			}
			if _, err := d.WriteAt(pattern(sectorBytes), 0); err != nil {
				t.Errorf("write after a failed flush: %v", err)
			}
			if err := d.Close(); !errors.Is(err, unix.EIO) {
				t.Errorf("close: %v, want EIO", err)
			}
			must(t, mustOpen(t, path, f, Options{}).Flush()) // a new open is a new start
		})
	}
}

// TestFlushesTogetherAllFail: the kernel reports an error to one of them only.
func TestFlushesTogetherAllFail(t *testing.T) {
	d := mustOpen(t, image(t, sectorBytes), Raw, Options{})
	failFlushes(d, unix.EIO)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := d.Flush(); !errors.Is(err, unix.EIO) {
				t.Errorf("flush: %v, want EIO", err)
			}
		}()
	}
	wg.Wait()
}

func TestFlushIsRepeatedWhenInterrupted(t *testing.T) {
	for _, f := range []Format{Raw, Mmap} {
		d := mustOpen(t, image(t, sectorBytes), f, Options{})
		calls := failFlushes(d, unix.EINTR, unix.EINTR)
		if err := d.Flush(); err != nil || *calls != 3 {
			t.Errorf("%v: %v after %d calls", f, err, *calls)
		}
	}
}

func TestReadOnlyNeverFlushes(t *testing.T) {
	for _, f := range []Format{Raw, Mmap} {
		d := mustOpen(t, image(t, sectorBytes), f, Options{ReadOnly: true})
		calls := failFlushes(d, unix.EROFS)
		if err := errors.Join(d.Flush(), d.Close()); err != nil || *calls != 0 {
			t.Errorf("%v: %v, %d calls", f, err, *calls)
		}
	}
}

// TestFlushReachesTheDevice looks below a loop device, whose file shows what
// the device was told to write, and counts the flushes the device got.
func TestFlushReachesTheDevice(t *testing.T) {
	for _, f := range []Format{Raw, Mmap} {
		t.Run(f.String(), func(t *testing.T) {
			below := image(t, 1<<20)
			device := loop(t, below)
			d := mustOpen(t, device, f, Options{})
			want := bytes.Repeat([]byte{0x5a}, 1<<20)
			if _, err := d.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			before := deviceFlushes(t, device)
			must(t, d.Flush())
			if !bytes.Equal(readFile(t, below), want) {
				t.Error("not all was written when Flush returned")
			}
			if n := deviceFlushes(t, device) - before; n < 1 {
				t.Errorf("the device was told to flush %d times, want at least once", n)
			}
		})
	}
}

// deviceFlushes is the sixteenth field of /sys/block/DEV/stat, since Linux 5.5
// (Documentation/block/stat.rst).
func deviceFlushes(t *testing.T, device string) (n int) {
	t.Helper()
	text := string(readFile(t, filepath.Join("/sys/block", filepath.Base(device), "stat")))
	fields := strings.Fields(text)
	if len(fields) < 16 {
		t.Fatalf("stat has %d fields: %s", len(fields), text)
	}
	if _, err := fmt.Sscan(fields[15], &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNoAllocations(t *testing.T) {
	for _, c := range []struct {
		format Format
		path   string
	}{{Raw, image(t, pages)}, {Mmap, image(t, pages)}, {Discard, ""}} {
		t.Run(c.format.String(), func(t *testing.T) {
			d := mustOpen(t, c.path, c.format, Options{})
			p := make([]byte, 4096)
			var failed error
			for name, call := range map[string]func(){
				"read":  func() { _, failed = d.ReadAt(p, 4096) },
				"write": func() { _, failed = d.WriteAt(p, 4096) },
			} {
				if n := testing.AllocsPerRun(100, call); n != 0 || failed != nil {
					t.Errorf("%s: %v allocations, %v", name, n, failed)
				}
			}
		})
	}
}

func BenchmarkDisk(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, f := range []Format{Raw, Mmap, Discard} {
		name := path
		if f == Discard {
			name = ""
		}
		d, err := Open(name, f, Options{})
		if err != nil {
			b.Fatal(err)
		}
		p := make([]byte, 4096)
		for op, call := range map[string]func([]byte, int64) (int, error){"read": d.ReadAt, "write": d.WriteAt} {
			b.Run(fmt.Sprintf("%v/%s", f, op), func(b *testing.B) {
				b.SetBytes(int64(len(p)))
				b.ReportAllocs()
				for i := range b.N {
					if _, err := call(p, int64(i%256)*4096); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		d.Close()
	}
}
