package fakexen

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"xen-disk/grant"
)

func arena(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// packed is the foreign half by the bytes of the kernel's struct.
func packed(ref uint32, offset, domid uint16) uint64 {
	return uint64(domid)<<48 | uint64(offset)<<32 | uint64(ref)
}

func TestCopyMovesBytesBothWays(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 4)
	d := openDoor(t, m)
	buf := arena(t, 4*PageSize)
	at := uint64(addressOf(buf))
	ref := dom.Grant(2, 0, false)
	copy(dom.Page(2)[512:], "from the guest")
	copy(buf[PageSize-4:], "from dom0")
	segs := []grant.CopySegment{
		{Source: packed(ref, 512, 5), Dest: at + 100, Len: 14, Flags: 1},
		{Source: at + PageSize - 4, Dest: packed(ref, 4096-9, 5), Len: 9, Flags: 2},
		{Source: packed(ref, 4096-9, 5), Dest: at + 200, Len: 9, Flags: 1, Status: 3},
		{Source: packed(1, 4096, 5), Dest: 0, Len: 0, Flags: 1, Status: 3},
	}
	if err := d.Copy(segs); err != nil {
		t.Fatal(err)
	}
	for i, s := range segs {
		if s.Status != 0 {
			t.Errorf("segment %d: status %d", i, s.Status)
		}
	}
	if got := string(buf[100:114]); got != "from the guest" {
		t.Errorf("read %q", got)
	}
	if got := string(dom.Page(2)[4096-9:]); got != "from dom0" {
		t.Errorf("wrote %q", got)
	}
	if got := string(buf[200:209]); got != "from dom0" {
		t.Errorf("read what an earlier segment wrote: %q", got)
	}
	if s := m.Stats(); s.CopyCalls != 1 || s.CopySegments != 4 || s.CopyBytes != 32 {
		t.Errorf("stats %+v", s)
	}
	if dom.Revoke(ref) {
		t.Error("grant is still in use after Copy")
	}
}

func TestCopyStatusOfEachSegment(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 4)
	d := openDoor(t, m)
	at := uint64(addressOf(arena(t, PageSize)))
	zombie := m.AddDomain(6, 1)
	zref := zombie.Grant(0, 0, false)
	if _, err := d.Map(6, []uint32{zref}, true); err != nil {
		t.Fatal(err)
	}
	zombie.Kill()
	rw, ro := dom.Grant(0, 0, false), dom.Grant(1, 0, true)
	other := dom.Grant(2, 9, false)
	cases := []struct {
		name string
		seg  grant.CopySegment
		want int16
	}{
		{"read", grant.CopySegment{Source: packed(rw, 0, 5), Dest: at, Len: 512, Flags: 1}, 0},
		{"bad ref", grant.CopySegment{Source: packed(4711, 0, 5), Dest: at, Len: 512, Flags: 1}, -3},
		{"read of read-only", grant.CopySegment{Source: packed(ro, 0, 5), Dest: at, Len: 512, Flags: 1}, 0},
		{"write of read-only", grant.CopySegment{Source: at, Dest: packed(ro, 0, 5), Len: 512, Flags: 2}, -8},
		{"granted to another", grant.CopySegment{Source: packed(other, 0, 5), Dest: at, Len: 1, Flags: 1}, -8},
		{"no such domain", grant.CopySegment{Source: packed(rw, 0, 99), Dest: at, Len: 1, Flags: 1}, -2},
		{"zombie", grant.CopySegment{Source: packed(zref, 0, 6), Dest: at, Len: 1, Flags: 1}, -3},
		{"write", grant.CopySegment{Source: at, Dest: packed(rw, 3584, 5), Len: 512, Flags: 2}, 0},
	}
	segs := make([]grant.CopySegment, len(cases))
	for i, c := range cases {
		segs[i] = c.seg
	}
	if err := d.Copy(segs); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		if segs[i].Status != c.want {
			t.Errorf("%s: status %d, want %d", c.name, segs[i].Status, c.want)
		}
	}
}

func TestCopyFailsAsAWhole(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 4)
	d := openDoor(t, m)
	buf := arena(t, PageSize)
	at := uint64(addressOf(buf))
	ref := dom.Grant(0, 0, false)

	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(2 * PageSize); err != nil {
		t.Fatal(err)
	}
	disk, err := unix.Mmap(int(f.Fd()), 0, 2*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(disk)
	if err := f.Truncate(PageSize); err != nil {
		t.Fatal(err)
	}
	hole := uint64(addressOf(disk)) + PageSize
	for _, c := range []struct {
		name string
		seg  grant.CopySegment
		want error
	}{
		{"past the end of the page", grant.CopySegment{Source: packed(ref, 1, 5), Dest: at, Len: 4096, Flags: 1}, unix.EINVAL},
		{"len 65535", grant.CopySegment{Source: packed(ref, 0, 5), Dest: at, Len: 65535, Flags: 1}, unix.EINVAL},
		{"both local", grant.CopySegment{Source: at, Dest: at, Len: 4}, unix.EINVAL},
		{"both foreign", grant.CopySegment{Source: packed(ref, 0, 5), Dest: packed(ref, 0, 5), Len: 4, Flags: 3}, unix.EINVAL},
		{"to a truncated file", grant.CopySegment{Source: packed(ref, 0, 5), Dest: hole, Len: 512, Flags: 1}, unix.EFAULT},
		{"from a truncated file", grant.CopySegment{Source: hole, Dest: packed(ref, 0, 5), Len: 512, Flags: 2}, unix.EFAULT},
		{"half in a hole", grant.CopySegment{Source: hole - 256, Dest: packed(ref, 0, 5), Len: 512, Flags: 2}, unix.EFAULT},
		{"nil", grant.CopySegment{Source: packed(ref, 0, 5), Dest: 0, Len: 512, Flags: 1}, unix.EFAULT},
	} {
		good := grant.CopySegment{Source: packed(ref, 0, 5), Dest: at, Len: 8, Flags: 1}
		segs := []grant.CopySegment{good, c.seg, good}
		if err := d.Copy(segs); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		for i, s := range segs {
			if s.Status != garbage {
				t.Errorf("%s: status %d of segment %d can be taken for a result", c.name, s.Status, i)
			}
		}
	}
	if dom.Revoke(ref) {
		t.Error("a failed copy keeps the grant")
	}
}

func TestCopyHooks(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 1)
	d := openDoor(t, m)
	at := uint64(addressOf(arena(t, PageSize)))
	seg := grant.CopySegment{Source: packed(dom.Grant(0, 0, false), 0, 5), Dest: at, Len: 8, Flags: 1}
	segs := []grant.CopySegment{seg, seg, seg}
	m.FailCopies(-12, 2)
	if err := d.Copy(segs); err != nil {
		t.Fatal(err)
	}
	if segs[0].Status != -12 || segs[1].Status != -12 || segs[2].Status != 0 {
		t.Errorf("statuses %d %d %d", segs[0].Status, segs[1].Status, segs[2].Status)
	}
	m.SetFault(func(op string, n int) error {
		if op == "copy" && n == 1 {
			return unix.ENOMEM
		}
		return nil
	})
	for i, want := range []error{nil, unix.ENOMEM, nil} {
		if err := d.Copy(segs); err != want {
			t.Errorf("copy %d: %v, want %v", i, err, want)
		}
	}
}
