package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// sysOf reaches the doors that an open disk calls.
func sysOf(d Disk) *syscalls {
	switch d := d.(type) {
	case *raw:
		return &d.file.sys
	case *mmap:
		return &d.file.sys
	}
	return nil
}

// TestStoreWithoutHoles: what the store cannot do is done by writing zeros, and
// a discard is nothing at all.
func TestStoreWithoutHoles(t *testing.T) {
	modes := map[string]func(mode uint32) bool{
		"all":     func(uint32) bool { return true },
		"punch":   func(mode uint32) bool { return mode == punchHole },
		"zero":    func(mode uint32) bool { return mode == zeroRange },
		"neither": func(uint32) bool { return false },
	}
	for _, errno := range []unix.Errno{
		unix.EOPNOTSUPP, unix.ENOSYS, unix.EPERM, unix.EINVAL, unix.ENODEV, unix.ENOTTY,
	} {
		for refused, refuses := range modes {
			for _, f := range []Format{Raw, Mmap} {
				t.Run(fmt.Sprintf("%v/%s/%v", unix.ErrnoName(errno), refused, f), func(t *testing.T) {
					d := mustOpen(t, image(t, 256<<10), f, Options{}).(spacious)
					sysOf(d).fallocate = func(fd int, mode uint32, off, n int64) error {
						if refuses(mode) {
							return errno
						}
						return unix.Fallocate(fd, mode, off, n)
					}
					want := readAll(t, d)
					const off, n = 512, 200 << 10 // not a multiple of what is written at once
					must(t, d.WriteZeroes(off, n, false))
					must(t, d.WriteZeroes(off+1024, n, true))
					clear(want[off : off+1024+n])
					if !bytes.Equal(readAll(t, d), want) {
						t.Error("zeros: the disk differs")
					}
					must(t, d.Discard(n+32<<10, 16<<10))
					if refuses(punchHole) && !bytes.Equal(readAll(t, d), want) {
						t.Error("a discard that is refused has changed the disk")
					}
				})
			}
		}
	}
}

func TestHoleErrors(t *testing.T) {
	for _, f := range []Format{Raw, Mmap} {
		d := mustOpen(t, image(t, 64<<10), f, Options{}).(spacious)
		for _, errno := range []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT} {
			calls := 0
			sysOf(d).fallocate = func(int, uint32, int64, int64) error { calls++; return errno }
			for op, err := range map[string]error{
				"discard": d.Discard(0, 4096),
				"zeros":   d.WriteZeroes(0, 4096, false),
				"freeing": d.WriteZeroes(0, 4096, true),
			} {
				if !errors.Is(err, errno) {
					t.Errorf("%v: %s: %v, want %v", f, op, err, errno)
				}
			}
			if calls != 3 {
				t.Errorf("%v: the kernel was asked %d times, want 3", f, calls)
			}
		}
		sysOf(d).fallocate = func(int, uint32, int64, int64) error { return unix.EOPNOTSUPP }
		sysOf(d).pwrite = func(int, []byte, int64) (int, error) { return -1, unix.EIO }
		if err := d.WriteZeroes(0, 4096, true); !errors.Is(err, unix.EIO) {
			t.Errorf("%v: writing zeros: %v", f, err)
		}
		if !bytes.Equal(readAll(t, d), pattern(64<<10)) {
			t.Errorf("%v: the disk has changed", f)
		}
	}
}

func TestHolesAreRepeatedWhenInterrupted(t *testing.T) {
	d := mustOpen(t, image(t, 64<<10), Raw, Options{}).(spacious)
	calls := 0
	s := sysOf(d)
	s.fallocate = func(fd int, mode uint32, off, n int64) error {
		if calls++; calls%2 == 1 {
			return unix.EINTR
		}
		return unix.Fallocate(fd, mode, off, n)
	}
	s.seek = func(fd int, off int64, whence int) (int64, error) {
		if calls++; calls%2 == 1 {
			return -1, unix.EINTR
		}
		return unix.Seek(fd, off, whence)
	}
	must(t, d.WriteZeroes(0, 4096, true))
	must(t, d.Discard(4096, 4096))
	x, err := d.NextExtent(0)
	if want := (Extent{Len: 8192, Zero: true}); x != want || err != nil {
		t.Errorf("%+v, %v, want %+v", x, err, want)
	}
}

// TestDeviceDiscard: a block device is asked by BLKDISCARD, and not at all when
// it is known to discard nothing.
func TestDeviceDiscard(t *testing.T) {
	for _, c := range []struct {
		name  string
		g     grain
		errno error
		calls int
		want  error
	}{
		{"works", grain{4096, 0}, nil, 1, nil},
		{"refused", grain{4096, 0}, unix.EOPNOTSUPP, 1, nil},
		{"fails", grain{4096, 0}, unix.EIO, 1, unix.EIO},
		{"cannot", grain{}, unix.EIO, 0, nil},
	} {
		d := mustOpen(t, loop(t, image(t, 64<<10)), Raw, Options{}).(*raw)
		d.grain = c.g
		calls := 0
		d.file.sys.discard = func(_ int, off, n int64) error {
			if calls++; off != 4096 || n != 8192 {
				t.Errorf("%s: %d bytes at %d", c.name, n, off)
			}
			return c.errno
		}
		if err := d.Discard(512, 16<<10-512-1024); !errors.Is(err, c.want) || calls != c.calls {
			t.Errorf("%s: %v after %d calls", c.name, err, calls)
		}
		d.Close()
	}
}

// TestExtentsOfAnyAnswer: the walk over a disk ends, whatever the filesystem
// says, and calls data what it does not know.
func TestExtentsOfAnyAnswer(t *testing.T) {
	const size, far = 64 << 10, 1<<63 - 1
	type answer struct {
		pos int64
		err error
	}
	for _, c := range []struct {
		name       string
		data, hole answer
		want       Extent
		err        error
	}{
		{"data", answer{0, nil}, answer{4096, nil}, Extent{Len: 4096, Allocated: true}, nil},
		{"hole", answer{4096, nil}, answer{8192, nil}, Extent{Len: 4096, Zero: true}, nil},
		{"no data", answer{-1, unix.ENXIO}, answer{}, Extent{Len: size, Zero: true}, nil},
		{"data to the end of time", answer{0, nil}, answer{far, nil}, Extent{Len: size, Allocated: true}, nil},
		{"hole to the end of time", answer{far - 1, nil}, answer{far, nil}, Extent{Len: size, Zero: true}, nil},
		{"within a sector", answer{100, nil}, answer{200, nil}, Extent{Len: 512, Allocated: true}, nil},
		{"edges within sectors", answer{1000, nil}, answer{2000, nil}, Extent{Len: 512, Zero: true}, nil},
		{"data that end where they begin", answer{0, nil}, answer{0, nil}, Extent{Len: size, Allocated: true}, nil},
		{"data before the offset", answer{-4096, nil}, answer{4096, nil}, Extent{Len: size, Allocated: true}, nil},
		{"hole before the data", answer{4096, nil}, answer{0, nil}, Extent{Len: size, Allocated: true}, nil},
		{"cut off meanwhile", answer{0, nil}, answer{-1, unix.ENXIO}, Extent{Len: size, Allocated: true}, nil},
		{"cannot tell", answer{-1, unix.EINVAL}, answer{}, Extent{Len: size, Allocated: true}, nil},
		{"i/o error", answer{-1, unix.EIO}, answer{}, Extent{}, unix.EIO},
		{"i/o error later", answer{0, nil}, answer{-1, unix.EIO}, Extent{}, unix.EIO},
	} {
		d := mustOpen(t, image(t, size), Raw, Options{}).(*raw)
		d.file.sys.seek = func(_ int, _ int64, whence int) (int64, error) {
			if whence == unix.SEEK_DATA {
				return c.data.pos, c.data.err
			}
			return c.hole.pos, c.hole.err
		}
		if x, err := d.NextExtent(0); x != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v, want %+v, %v", c.name, x, err, c.want, c.err)
		}
		for off := int64(0); off < size && c.err == nil; {
			x, err := d.NextExtent(off)
			must(t, err)
			if x.Off != off || x.Len <= 0 || x.Len > size-off {
				t.Errorf("%s: extent at %d: %+v", c.name, off, x)
				break
			}
			off += x.Len
		}
		d.Close()
	}
}

// TestExtentsOfTruncatedFile: what is cut off is no hole, since it cannot be
// read.
func TestExtentsOfTruncatedFile(t *testing.T) {
	path := inDir(ext4)(t, 64<<10)
	d := mustOpen(t, path, Raw, Options{}).(spacious)
	must(t, d.WriteZeroes(0, 64<<10, true))
	must(t, os.Truncate(path, 10000))
	for _, c := range []struct {
		off  int64
		want Extent
	}{
		{0, Extent{Off: 0, Len: 9728, Zero: true}},
		{9728, Extent{Off: 9728, Len: 512, Allocated: true}}, // where the file ends
		{32 << 10, Extent{Off: 32 << 10, Len: 32 << 10, Allocated: true}},
	} {
		if x, err := d.NextExtent(c.off); x != c.want || err != nil {
			t.Errorf("at %d: %+v, %v, want %+v", c.off, x, err, c.want)
		}
	}
}
