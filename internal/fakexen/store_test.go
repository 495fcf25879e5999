package fakexen

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTransactions(t *testing.T) {
	for _, c := range []struct {
		name    string
		in      func(tx *Store) error // in the transaction
		outside func(s *Store) error  // meanwhile
		again   bool
	}{
		{"nothing else happened", func(tx *Store) error { return tx.Write("/n/a", "tx") }, nil, false},
		{"write of a node someone changed", func(tx *Store) error { return tx.Write("/n/a", "tx") },
			func(s *Store) error { return s.Write("/n/a", "other") }, true},
		{"read of a node someone changed", func(tx *Store) error { _, err := tx.Read("/n/a"); return err },
			func(s *Store) error { return s.Write("/n/a", "other") }, true},
		{"read of a node someone removed", func(tx *Store) error { _, err := tx.Read("/n/a"); return err },
			func(s *Store) error { return s.Rm("/n/a") }, true},
		{"read of a missing node someone made", func(tx *Store) error { tx.Exists("/n/new"); return nil },
			func(s *Store) error { return s.Write("/n/new", "other") }, true},
		{"two new children of one parent", func(tx *Store) error { return tx.Write("/n/mine", "tx") },
			func(s *Store) error { return s.Write("/n/theirs", "other") }, true},
		{"someone set permissions", func(tx *Store) error { return tx.Write("/n/a", "tx") },
			func(s *Store) error { return s.SetPerms("/n/a", "n0", "r3") }, true},
		{"unrelated change", func(tx *Store) error { return tx.Write("/n/a", "tx") },
			func(s *Store) error { return s.Write("/m/b", "other") }, false},
		{"change of a sibling's value", func(tx *Store) error { return tx.Write("/n/a", "tx") },
			func(s *Store) error { return s.Write("/n/b", "other") }, false},
	} {
		x := newStore(t, nil)
		s := x.Store(0)
		if err := errors.Join(s.Write("/n/a", "0"), s.Write("/n/b", "0")); err != nil {
			t.Fatal(err)
		}
		runs := 0
		err := s.Tx(func(tx *Store) error {
			runs++
			if err := c.in(tx); err != nil && runs == 1 {
				return err
			}
			if runs == 1 && c.outside != nil {
				return c.outside(s)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if again := runs > 1; again != c.again {
			t.Errorf("%s: commit EAGAIN %v, want %v", c.name, again, c.again)
		}
	}
}

func TestWireTransaction(t *testing.T) {
	x := newStore(t, nil)
	w, other := dialWire(t, x, 0), dialWire(t, x, 0)
	other.send(4, 0, "/t\x00w\x00")
	other.recv()
	other.recv()
	for _, c := range []struct{ end, after string }{{"F", "!ENOENT"}, {"T", "1"}} {
		id := strings.TrimSuffix(w.call(6, 0, "\x00"), "\x00")
		tx, err := strconv.Atoi(id)
		if err != nil || tx == 0 {
			t.Fatalf("transaction id %q", id)
		}
		if got := w.call(6, uint32(tx), "\x00"); got != "!EBUSY" {
			t.Errorf("nested: %q", got)
		}
		w.call(11, uint32(tx), "/t/a\x001")
		w.call(11, uint32(tx), "/t/a\x001")
		if got := w.call(2, uint32(tx), "/t/a\x00"); got != "1" {
			t.Errorf("inside: %q", got)
		}
		if got := other.call(2, 0, "/t/a\x00"); got != "!ENOENT" {
			t.Errorf("outside, before the end: %q", got)
		}
		if got := w.call(7, uint32(tx), c.end+"\x00"); got != "OK\x00" {
			t.Errorf("end %s: %q", c.end, got)
		}
		if c.end == "T" {
			if got := other.recv(); got != "15/0/0 /t/a\x00w\x00" {
				t.Errorf("event %q", got)
			}
		}
		if got := other.call(2, 0, "/t/a\x00"); got != c.after {
			t.Errorf("after %s: %q, want %q", c.end, got, c.after)
		}
	}
	x.FailCommits(1)
	if got := w.call(6, 0, "\x00"); got != "3\x00" {
		t.Fatalf("transaction id %q", got)
	}
	if got := w.call(7, 3, "T\x00"); got != "!EAGAIN" {
		t.Errorf("FailCommits: %q", got)
	}
	if got := w.call(2, 3, "/t\x00"); got != "!ENOENT" {
		t.Errorf("use after the end: %q", got)
	}
}

func TestPermissions(t *testing.T) {
	m := newMachine(t)
	x := newStore(t, m)
	if _, err := m.Boot(5, "guest", "u5"); err != nil {
		t.Fatal(err)
	}
	if err := m.AttachVBD(Attach{DomID: 5, DevID: 51712, Vdev: "xvda"}); err != nil {
		t.Fatal(err)
	}
	if err := x.Store(0).Write("/secret/x", "1"); err != nil {
		t.Fatal(err)
	}
	w := dialWire(t, x, 5)
	const front, back = "device/vbd/51712", "/local/domain/0/backend/vbd/5/51712"
	for _, c := range []struct {
		name    string
		kind    uint32
		payload string
		want    string
	}{
		{"read own name, relative", 2, "name\x00", "guest"},
		{"read own name", 2, "/local/domain/5/name\x00", "guest"},
		{"write own name", 11, "name\x00x", "!EACCES"},
		{"write own frontend", 11, front + "/ring-ref\x008", "OK\x00"},
		{"owns what it makes", 3, front + "/ring-ref\x00", "n5\x00r0\x00"},
		{"read backend", 2, back + "/state\x00", "1"},
		{"write backend", 11, back + "/state\x005", "!EACCES"},
		{"make in backend", 11, back + "/x\x005", "!EACCES"},
		{"read missing in backend", 2, back + "/x\x00", "!ENOENT"},
		{"read secret", 2, "/secret/x\x00", "!EACCES"},
		{"read missing secret", 2, "/secret/y\x00", "!EACCES"},
		{"list root", 1, "/\x00", "!EACCES"},
		{"write error", 11, "error/device/vbd/51712/error\x00e", "OK\x00"},
		{"give away", 14, front + "/ring-ref\x00n7\x00", "!EPERM"},
		{"perms of what is not ours", 14, back + "\x00n5\x00", "!EACCES"},
		{"introduced", 17, "5\x00", "!EACCES"},
		{"remove own frontend, as its owner may", 13, front + "\x00", "OK\x00"},
		{"entry too large", 11, "data/x\x00" + strings.Repeat("x", 2048), "!ENOSPC"},
	} {
		if got := w.call(c.kind, 0, c.payload); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	w.send(4, 0, "/secret\x00s\x00")
	w.recv()
	w.recv()
	if err := x.Store(0).Write("/secret/x", "2"); err != nil {
		t.Fatal(err)
	}
	if got := w.call(2, 0, "name\x00"); got != "guest" {
		t.Errorf("an event of a node the guest may not read? %q", got)
	}
}

func TestGuestQuotas(t *testing.T) {
	m := newMachine(t)
	x := newStore(t, m)
	if _, err := m.Boot(5, "guest", "u5"); err != nil {
		t.Fatal(err)
	}
	s := x.Store(5)
	var err error
	n := 0
	for ; err == nil && n < 2000; n++ {
		err = s.Write(fmt.Sprintf("data/%d", n), "")
	}
	if err != unix.ENOSPC || n > 1000 {
		t.Errorf("after %d nodes: %v, want ENOSPC", n, err)
	}
}

func TestStoreClientAndDump(t *testing.T) {
	x := newStore(t, nil)
	s := x.Store(0)
	before := x.Dump()
	want := `/ = "" (n0)
/local = "" (n0)
/local/domain = "" (n0)
/local/domain/0 = "" (n0)
/local/domain/0/domid = "0" (n0)
/local/domain/0/name = "Domain-0" (n0)
/tool = "" (n0)
/tool/xenstored = "" (n0)
`
	if before != want {
		t.Errorf("fresh store:\n%s", before)
	}
	done := make(chan error, 1)
	go func() { done <- s.WaitValue(deadline(t), "/w/state", "4") }()
	for _, v := range []string{"2", "4"} {
		if err := s.Write("/w/state", v); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n, err := s.ReadUint("/w/state"); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if l, err := s.List("/w"); err != nil || !slices.Equal(l, []string{"state"}) {
		t.Errorf("%v, %v", l, err)
	}
	if p, err := s.GetPerms("/w"); err != nil || !slices.Equal(p, []string{"n0"}) {
		t.Errorf("%v, %v", p, err)
	}
	if err := s.Tx(func(tx *Store) error {
		return errors.Join(tx.Write("/w/x", "1"), unix.EIO)
	}); !errors.Is(err, unix.EIO) || s.Exists("/w/x") {
		t.Errorf("a transaction that fails: %v", err)
	}
	if err := errors.Join(s.Rm("/w"), s.WaitGone(deadline(t), "/w")); err != nil {
		t.Fatal(err)
	}
	if after := x.Dump(); after != before {
		t.Errorf("not as before:\n%s", after)
	}
}

func TestBootAndDestroyLeaveNothing(t *testing.T) {
	m := newMachine(t)
	x := newStore(t, m)
	s := x.Store(0)
	if err := errors.Join(s.Mkdir("/vm"), s.Mkdir("/libxl")); err != nil {
		t.Fatal(err)
	}
	before := x.Dump()
	if err := s.Watch("@releaseDomain", "r"); err != nil {
		t.Fatal(err)
	}
	s.Events()
	for range 2 {
		d, err := m.Boot(5, "guest", "u5")
		if err != nil {
			t.Fatal(err)
		}
		g := x.Store(5)
		if v, err := g.Read("/vm/u5/name"); v != "guest" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		d.AllocUnbound(0)
		if err := s.Write("/elsewhere", ""); err != nil {
			t.Fatal(err)
		}
		if err := s.SetPerms("/elsewhere", "n5"); err != nil {
			t.Fatal(err)
		}
		if err := m.DestroyDomain(5); err != nil {
			t.Fatal(err)
		}
		if after := x.Dump(); after != before {
			t.Errorf("destroy leaves\n%s", after)
		}
		if ev := s.Events(); len(ev) != 1 {
			t.Errorf("events %v, want one @releaseDomain", ev)
		}
	}
}
