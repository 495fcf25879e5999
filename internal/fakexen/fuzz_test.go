package fakexen

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
	"xen-disk/grant"
)

// FuzzXenstored feeds a stream of bytes to the store as a guest's connection.
func FuzzXenstored(f *testing.F) {
	for _, m := range []message{
		{kind: xsWrite, payload: []byte("data/a\x00v")},
		{kind: xsWatch, payload: []byte("data\x00t\x00")},
		{kind: xsTxStart, payload: []byte{0}},
		{kind: xsTxEnd, tx: 1, payload: []byte("T\x00")},
		{kind: xsSetPerms, payload: []byte("data\x00n5\x00r0\x00")},
		{kind: xsDirectoryPart, payload: []byte("data\x00-1\x00")},
		{kind: xsRm, tx: 1, payload: []byte("/\x00")},
	} {
		f.Add(m.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x := &Xenstored{
			tree:     map[string]*node{"/": {perms: []perm{{5, 0}}}},
			requests: make(map[string]int),
		}
		s := &session{domid: 5, event: func(string, string) {}}
		x.addSession(s)
		for r := bytes.NewReader(b); ; {
			q, err := readMessage(r)
			if err != nil {
				break
			}
			x.handle(s, q, func(m message) {
				if len(m.payload) > maxPayload {
					t.Errorf("reply of %d bytes", len(m.payload))
				}
			})
		}
		for path, n := range x.tree {
			for _, c := range n.children {
				if x.tree[join(path, c)] == nil {
					t.Errorf("%s has no child %s", path, c)
				}
			}
			if path != "/" && x.tree[parentOf(path)] == nil {
				t.Errorf("%s has no parent", path)
			}
		}
	})
}

// TestDoorAllocatesNothing lets the backend's own guards count through a Door.
func TestDoorAllocatesNothing(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 1)
	d := openDoor(t, m)
	at := uint64(addressOf(arena(t, PageSize)))
	seg := grant.CopySegment{Source: packed(dom.Grant(0, 0, false), 0, 5), Dest: at, Len: 8, Flags: 1}
	segs := []grant.CopySegment{seg, seg, {Source: at, Dest: seg.Source, Len: 8, Flags: 2}}
	gp := dom.AllocUnbound(0)
	p, err := d.Bind(5, gp)
	if err != nil {
		t.Fatal(err)
	}
	ports := make([]uint32, 4)
	unmask := []uint32{p}
	n := testing.AllocsPerRun(100, func() {
		dom.Kick(gp)
		k, e1 := d.Pending(ports)
		e2, e3, e4 := d.Copy(segs), d.Notify(p), d.Unmask(unmask)
		if k != 1 || e1 != nil || e2 != nil || e3 != nil || e4 != nil || segs[2].Status != 0 {
			t.Fatal(k, e1, e2, e3, e4)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := d.Copy(nil); err != nil {
		t.Errorf("the probe, a copy of nothing: %v", err)
	}
	_ = d.Close()
	if err := d.Copy(segs); err != unix.EBADF {
		t.Errorf("copy after Close: %v", err)
	}
}
