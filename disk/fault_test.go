package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pages is the size of the images here: several pages, of any architecture.
const pages = 4 << 16

func TestMmapSurvivesTruncation(t *testing.T) {
	noLeaks(t)
	path, otherPath := image(t, pages), image(t, pages)
	d, other := mustOpen(t, path, Mmap, Options{}), mustOpen(t, otherPath, Mmap, Options{})
	p := make([]byte, pages/2)

	must(t, os.Truncate(path, pages/2))
	if n, err := d.ReadAt(p, pages/2); n != 0 || !errors.Is(err, ErrFault) {
		t.Fatalf("read past the new end: %d, %v", n, err)
	} else if off := faultOffset(t, err); off < pages/2 || off >= pages || !strings.Contains(err.Error(), path) {
		t.Errorf("error names no path or a wrong offset: %v", err)
	}
	if n, err := d.WriteAt(p, pages/2); n != 0 || !errors.Is(err, ErrFault) {
		t.Errorf("write past the new end: %d, %v", n, err)
	}
	if err := d.Flush(); !errors.Is(err, ErrFault) {
		t.Errorf("flush of a truncated file: %v", err)
	}
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Errorf("read before the new end: %v", err)
	}
	if _, err := other.ReadAt(p, pages/2); err != nil || !bytes.Equal(p, readFile(t, otherPath)[pages/2:]) {
		t.Errorf("the other disk was harmed (%v)", err)
	}

	must(t, os.Truncate(path, pages))
	want := pattern(pages / 2)
	if _, err := d.WriteAt(want, pages/2); err != nil {
		t.Fatalf("write after the file has grown again: %v", err)
	}
	if _, err := d.ReadAt(p, pages/2); err != nil || !bytes.Equal(p, want) {
		t.Errorf("read after the file has grown again differs (%v)", err)
	}
	must(t, d.Flush())
	must(t, d.Close())
	if !bytes.Equal(readFile(t, path)[pages/2:], want) {
		t.Error("the file differs from what was written")
	}
}

// faultOffset is where the error says that the fault was. memmove touches a
// large range's last bytes first, so it need not be the first bad byte.
func faultOffset(t *testing.T, err error) (off int) {
	t.Helper()
	text := err.Error()
	if _, err := fmt.Sscan(text[strings.LastIndexByte(text, ' ')+1:], &off); err != nil {
		t.Errorf("error names no offset: %s", text)
	}
	return off
}

func TestMmapCloseOfTruncatedFileReleases(t *testing.T) {
	noLeaks(t)
	path := image(t, pages)
	d := mustOpen(t, path, Mmap, Options{})
	must(t, os.Truncate(path, 0))
	if err := d.Close(); !errors.Is(err, ErrFault) {
		t.Errorf("close: %v", err)
	}
	must(t, os.Truncate(path, pages))
	mustOpen(t, path, Mmap, Options{})
}

// TestMmapRestoresPanicOnFault: the setting is the goroutine's, not ours.
func TestMmapRestoresPanicOnFault(t *testing.T) {
	path := image(t, pages)
	d := mustOpen(t, path, Mmap, Options{})
	p := make([]byte, sectorBytes)
	for _, sizeBytes := range []int64{pages, 0} {
		must(t, os.Truncate(path, sizeBytes))
		for _, want := range []bool{true, false} {
			debug.SetPanicOnFault(want)
			_, err := d.ReadAt(p, 0)
			if errors.Is(err, ErrFault) != (sizeBytes == 0) {
				t.Errorf("read of %d bytes: %v", sizeBytes, err)
			}
			if got := debug.SetPanicOnFault(false); got != want {
				t.Errorf("file of %d bytes: PanicOnFault is %v, want %v", sizeBytes, got, want)
			}
		}
	}
	must(t, os.Truncate(path, pages))
}

// TestMmapLeavesOtherFaultsAlone gives a buffer that faults itself.
func TestMmapLeavesOtherFaultsAlone(t *testing.T) {
	d := mustOpen(t, image(t, pages), Mmap, Options{})
	bad, err := unix.Mmap(-1, 0, pages, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	must(t, err)
	defer func() { must(t, unix.Munmap(bad)) }()
	for name, call := range map[string]func([]byte, int64) (int, error){
		"read": d.ReadAt, "write": d.WriteAt,
	} {
		func() {
			defer func() {
				e, ok := recover().(interface{ Addr() uintptr })
				if !ok {
					t.Errorf("%s: no fault came through", name)
				} else if _, inside := offsetIn(bad, e.Addr()); !inside {
					t.Errorf("%s: fault at %#x, want one in the buffer", name, e.Addr())
				}
			}()
			_, err := call(bad[:sectorBytes], 0)
			t.Errorf("%s: returned %v", name, err)
		}()
	}
	must(t, d.Flush()) // and no lock was left behind
}

// TestMemoryFaultsAsEFAULT: the kernel's way to the mapping, which a grant
// copy takes, reports a fault and no signal.
func TestMemoryFaultsAsEFAULT(t *testing.T) {
	path := image(t, pages)
	d := mustOpen(t, path, Mmap, Options{})
	b := d.(Memory).Bytes(0, sectorBytes)
	sink, err := os.OpenFile(filepath.Join(t.TempDir(), "sink"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer sink.Close()
	if _, err := unix.Pwrite(int(sink.Fd()), b, 0); err != nil {
		t.Fatal(err)
	}
	must(t, os.Truncate(path, 0))
	if _, err := unix.Pwrite(int(sink.Fd()), b, 0); err != unix.EFAULT {
		t.Errorf("write from the mapping: %v, want EFAULT", err)
	}
	must(t, os.Truncate(path, pages))
}

func TestMemoryIsTheDisk(t *testing.T) {
	path := image(t, pages)
	d := mustOpen(t, path, Mmap, Options{})
	b := d.(Memory).Bytes(sectorBytes, sectorBytes)
	want := bytes.Repeat([]byte{0x5a}, sectorBytes)
	copy(b, want)
	got := make([]byte, sectorBytes)
	if _, err := d.ReadAt(got, sectorBytes); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt does not see what was stored (%v)", err)
	}
	must(t, d.Flush())
	must(t, d.Close())
	if !bytes.Equal(readFile(t, path)[sectorBytes:2*sectorBytes], want) {
		t.Error("the file differs from what was stored")
	}
}

// TestNoSpace writes into holes of a full filesystem, and again after there
// is room.
func TestNoSpace(t *testing.T) {
	for _, c := range []struct {
		format Format
		want   error
	}{{Raw, unix.ENOSPC}, {Mmap, ErrFault}} {
		t.Run(c.format.String(), func(t *testing.T) {
			noLeaks(t)
			dir := tinyFS(t, pages)
			path, ballast := filepath.Join(dir, "disk.img"), filepath.Join(dir, "ballast")
			writeFile(t, ballast, make([]byte, pages/2))
			writeFile(t, path, nil)
			must(t, os.Truncate(path, 2*pages))
			d := mustOpen(t, path, c.format, Options{})
			p := pattern(pages)
			if n, err := d.WriteAt(p, 0); n >= len(p) || !errors.Is(err, c.want) {
				t.Fatalf("write of more than there is: %d, %v", n, err)
			}
			// tmpfs, alone among filesystems, fills a hole when its mapping is
			// read: then reading fails too, as an error again.
			_, err := d.ReadAt(make([]byte, 2*pages), 0)
			if c.format == Raw && err != nil || c.format == Mmap && !errors.Is(err, ErrFault) {
				t.Errorf("read of the holes: %v", err)
			}
			must(t, os.Remove(ballast))
			if _, err := d.WriteAt(p, 0); err != nil {
				t.Fatalf("write after making room: %v", err)
			}
			must(t, d.Flush())
			got := make([]byte, pages)
			if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
				t.Errorf("read after making room differs (%v)", err)
			}
			must(t, d.Close())
		})
	}
}

func TestRawReadOfTruncatedFile(t *testing.T) {
	path := image(t, pages)
	d := mustOpen(t, path, Raw, Options{})
	must(t, os.Truncate(path, pages/2+100))
	p := make([]byte, pages)
	n, err := d.ReadAt(p, 0)
	if n != pages/2+100 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read over the new end: %d, %v", n, err)
	}
}
