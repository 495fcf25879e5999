package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCreate(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(t.TempDir(), "new.img")
	d, err := Create(path, 1<<20)
	must(t, err)
	if _, err := Open(path, Raw, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("open of what is being made: %v", err)
	}
	want := Info{SizeBytes: 1 << 20, PhysicalSectorBytes: 4096, Format: Raw, Path: path}
	if d.Info() != want {
		t.Errorf("info %+v, want %+v", d.Info(), want)
	}
	if _, err := d.WriteAt(pattern(sectorBytes), 1<<20-sectorBytes); err != nil {
		t.Error(err)
	}
	must(t, d.Close())
	b := readFile(t, path)
	if len(b) != 1<<20 || !bytes.Equal(b[:1<<20-sectorBytes], make([]byte, 1<<20-sectorBytes)) {
		t.Errorf("%d bytes, or not zeros", len(b))
	}
	if n := spaceOf(t, path); n > 64<<10 {
		t.Errorf("the file takes %d bytes", n)
	}
}

// TestCreateObeysUmask changes what belongs to the process, and puts it back.
func TestCreateObeysUmask(t *testing.T) {
	for umask, want := range map[int]fs.FileMode{0o022: 0o644, 0: 0o644, 0o077: 0o600} {
		path := filepath.Join(t.TempDir(), "new.img")
		old := syscall.Umask(umask)
		d, err := Create(path, sectorBytes)
		syscall.Umask(old)
		must(t, err)
		must(t, d.Close())
		st, err := os.Stat(path)
		must(t, err)
		if st.Mode() != want {
			t.Errorf("umask %#o: mode %v, want %v", umask, st.Mode(), want)
		}
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string)
	}{
		{"file", func(t *testing.T, path string) { writeFile(t, path, pattern(sectorBytes)) }},
		{"directory", func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }},
		{"fifo", func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }},
		{"dangling link", func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			path := filepath.Join(t.TempDir(), "old")
			c.make(t, path)
			before, err := os.Lstat(path)
			must(t, err)
			if d, err := Create(path, 4096); !errors.Is(err, fs.ErrExist) || d != nil {
				t.Errorf("create: %v, %v", d, err)
			}
			after, err := os.Lstat(path)
			must(t, err)
			if !os.SameFile(before, after) || before.Size() != after.Size() || before.ModTime() != after.ModTime() {
				t.Errorf("was %v, is %v", before, after)
			}
		})
	}
}

// TestCreateLeavesNothingBehind when the size cannot be had.
func TestCreateLeavesNothingBehind(t *testing.T) {
	noLeaks(t)
	for _, c := range []struct {
		name      string
		sizeBytes int64
		want      error
	}{
		{"negative", -sectorBytes, ErrRange},
		{"nothing", 0, ErrRange},
		{"not whole sectors", sectorBytes + 1, ErrRange},
		{"more than ext4 takes", 1<<63 - sectorBytes, unix.EFBIG},
	} {
		path := filepath.Join(ext4(t), "new.img")
		if d, err := Create(path, c.sizeBytes); !errors.Is(err, c.want) || d != nil {
			t.Errorf("%s: %v, %v", c.name, d, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the file is there: %v", c.name, err)
		}
	}
}
