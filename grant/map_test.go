package grant

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMapAndUnmap(t *testing.T) {
	f := newFake(t)
	refs := []uint32{8, 1, 500}
	mem, err := f.door.Map(3, refs, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(mem) != 3*pageBytes || cap(mem) != len(mem) {
		t.Errorf("memory: got %d bytes, capacity %d, want %d both", len(mem), cap(mem), 3*pageBytes)
	}
	if f.domid != 3 || !slices.Equal(f.refs, refs) {
		t.Errorf("got domain %d, refs %v, want 3, %v", f.domid, f.refs, refs)
	}
	mem[0], mem[len(mem)-1] = 1, 2 // writable from end to end
	other, err := f.door.Map(3, []uint32{9}, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		mem  []byte
		want error
	}{
		{"nothing", nil, unix.EINVAL},
		{"memory of ours", make([]byte, pageBytes), unix.EINVAL},
		{"a part from the beginning", mem[:pageBytes], unix.EINVAL},
		{"a part to the end", mem[pageBytes:], unix.EINVAL},
		{"the whole", mem, nil},
		{"the whole again", mem, unix.EINVAL},
		{"the other", other, nil},
	} {
		if err := f.door.Unmap(tc.mem); !errors.Is(err, tc.want) {
			t.Errorf("unmap of %s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if len(f.registered) != 0 || f.mapped != 0 {
		t.Errorf("got %d registrations, %d mappings, want none", len(f.registered), f.mapped)
	}
}

func TestMapProtection(t *testing.T) {
	for _, tc := range []struct {
		writable bool
		want     int
	}{{false, unix.PROT_READ}, {true, unix.PROT_READ | unix.PROT_WRITE}} {
		f := newFake(t)
		mmap := f.door.sys.mmap
		f.door.sys.mmap = func(fd int, offset int64, length, prot, flags int) ([]byte, error) {
			if prot != tc.want {
				t.Errorf("writable %v: got protection %#x, want %#x", tc.writable, prot, tc.want)
			}
			return mmap(fd, offset, length, prot, flags)
		}
		if _, err := f.door.Map(1, []uint32{1}, tc.writable); err != nil {
			t.Error(err)
		}
	}
}

func TestMapRefusesBeforeAsking(t *testing.T) {
	f := newFake(t)
	f.door.sys.mapRefs = func(int, uint32, []uint32) (uint64, unix.Errno) {
		t.Error("the kernel was asked")
		return 0, unix.EINVAL
	}
	for _, tc := range []struct {
		name  string
		domid uint32
		refs  []uint32
	}{
		{"no refs", 1, nil},
		{"too many refs", 1, make([]uint32, maxMapRefs+1)},
		{"a domid that 16 bits would make another", 1<<16 | 1, []uint32{1}},
	} {
		if mem, err := f.door.Map(tc.domid, tc.refs, true); mem != nil || !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: got %d bytes, %v, want EINVAL", tc.name, len(mem), err)
		}
	}
}

// mmap is where Xen says no; the registration must not stay behind.
func TestMapUndoneWhenMmapFails(t *testing.T) {
	f := newFake(t)
	calls := 0
	f.door.sys.mmap = func(int, int64, int, int, int) ([]byte, error) {
		if calls++; calls == 1 {
			return nil, unix.EINTR
		}
		return nil, unix.EINVAL
	}
	if mem, err := f.door.Map(1, []uint32{1, 2}, true); mem != nil || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %d bytes, %v, want EINVAL", len(mem), err)
	}
	if calls != 2 || len(f.registered) != 0 || len(f.door.maps) != 0 {
		t.Errorf("got %d calls, %d registrations, %d mappings, want 2, 0, 0",
			calls, len(f.registered), len(f.door.maps))
	}
	// The undoing may fail too; then the error says both.
	unmapRefs := f.door.sys.unmapRefs
	f.door.sys.unmapRefs = func(fd int, index uint64, count uint32) unix.Errno {
		_ = unmapRefs(fd, index, count)
		return unix.ENOENT
	}
	if _, err := f.door.Map(1, []uint32{1}, true); !errors.Is(err, unix.EINVAL) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want EINVAL and ENOENT", err)
	}
}

func TestMapFailsToRegister(t *testing.T) {
	f := newFake(t)
	f.door.sys.mapRefs = func(int, uint32, []uint32) (uint64, unix.Errno) { return 0, unix.ENOMEM }
	if mem, err := f.door.Map(1, []uint32{1}, true); mem != nil || !errors.Is(err, unix.ENOMEM) {
		t.Errorf("got %d bytes, %v, want ENOMEM", len(mem), err)
	}
}

// What munmap refused is still mapped: it may be tried again.
func TestUnmapThatFailsKeepsTheMapping(t *testing.T) {
	f := newFake(t)
	mem, err := f.door.Map(1, []uint32{1}, true)
	if err != nil {
		t.Fatal(err)
	}
	munmap := f.door.sys.munmap
	f.door.sys.munmap = func([]byte) error { return unix.ENOMEM }
	if err := f.door.Unmap(mem); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("got %v, want ENOMEM", err)
	}
	f.door.sys.munmap = munmap
	if err := f.door.Unmap(mem); err != nil {
		t.Errorf("second try: %v", err)
	}
}

func TestCopy(t *testing.T) {
	f := newFake(t)
	for _, segs := range [][]CopySegment{nil, {}} {
		if err := f.door.Copy(segs); err != nil {
			t.Errorf("%d segments: %v", len(segs), err)
		}
	}
	segs := make([]CopySegment, 3)
	f.door.sys.copy = func(_ int, got []CopySegment) unix.Errno {
		if len(got) != len(segs) || &got[0] != &segs[0] {
			t.Error("the kernel got other segments than the caller's")
		}
		got[1].Status = StatusBadGref
		return 0
	}
	if err := f.door.Copy(segs); err != nil {
		t.Errorf("one bad segment: got %v, want nil: its status says so", err)
	}
	if segs[1].Status != StatusBadGref {
		t.Errorf("status: got %d, want %d", segs[1].Status, StatusBadGref)
	}
	f.door.sys.copy = func(int, []CopySegment) unix.Errno { return unix.EFAULT }
	if err := f.door.Copy(segs); !errors.Is(err, unix.EFAULT) {
		t.Errorf("got %v, want EFAULT", err)
	}
}
