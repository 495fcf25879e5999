package vhd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	path := save(t, dir, "x", make([]byte, 1<<20))
	link, symlink := filepath.Join(dir, "link"), filepath.Join(dir, "symlink")
	if err := errors.Join(os.Link(path, link), os.Symlink("x", symlink)); err != nil {
		t.Fatal(err)
	}
	var identities []Identity
	for _, p := range []string{path, link, symlink} {
		f, err := OpenFile(p, false)
		if err != nil {
			t.Fatal(err)
		}
		identities = append(identities, f.Identity())
		if size, err := f.Size(); size != 1<<20 || err != nil {
			t.Errorf("%s: got %d bytes, %v", p, size, err)
		}
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Errorf("%s: was opened for reading and can be written", p)
		}
		for range 2 {
			if err := f.Close(); err != nil {
				t.Errorf("%s: close: %v", p, err)
			}
		}
		if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: read after close: got %v", p, err)
		}
	}
	if identities[0] != identities[1] || identities[0] != identities[2] || identities[0].Block {
		t.Errorf("got identities %+v, want the same", identities)
	}
	other, err := OpenFile(save(t, dir, "y", nil), false)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if other.Identity() == identities[0] {
		t.Error("two files have one identity")
	}
}

func TestOpenFileRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		dir: ErrNotRegular, fifo: ErrNotRegular, "/dev/null": ErrNotRegular, dir + "/none": fs.ErrNotExist,
	} {
		for _, write := range []bool{false, true} {
			within(t, func() {
				if _, err := OpenFile(path, write); !errors.Is(err, want) {
					t.Errorf("%s, write %v: got %v, want %v", path, write, err, want)
				}
			})
		}
	}
}

// TestFileHoles: what is punched reads as zeros and is no data, where the file
// system can, and the length stays.
func TestFileHoles(t *testing.T) {
	const size, at, n = 1 << 20, 256 << 10, 512 << 10
	b := make([]byte, size)
	fillPattern(b, 0)
	f, err := OpenFile(save(t, t.TempDir(), "x", b), true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = f.PunchHole(at, n)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	if err == nil {
		clear(b[at : at+n])
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !slices.Equal(got, b) {
		t.Errorf("got other bytes, %v", err)
	}
	if end, err := f.Size(); end != size || err != nil {
		t.Errorf("got %d bytes, %v", end, err)
	}
	for off := int64(0); off < size; {
		start, end, err := f.NextData(off)
		if err != nil || start < off || end < start || end > size {
			t.Fatalf("from %d: got %d to %d, %v", off, start, end, err)
		}
		for _, c := range b[off:start] {
			if c != 0 {
				t.Fatalf("from %d: data at %d, and a byte before that", off, start)
			}
		}
		if start == size {
			break
		}
		off = end
	}
	if start, _, err := f.NextData(size + 1); start != size || err != nil {
		t.Errorf("past the end: got %d, %v", start, err)
	}
	if err := errors.Join(f.Truncate(2*size), f.Sync()); err != nil {
		t.Fatal(err)
	}
	if start, end, err := f.NextData(size); err != nil || start < size || end > 2*size {
		t.Errorf("what was added: got %d to %d, %v", start, end, err)
	}
	if _, err := f.ReadAt(got, 2*size); !errors.Is(err, io.EOF) {
		t.Errorf("past the end: got %v, want io.EOF", err)
	}
}
