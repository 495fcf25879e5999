package fakexen

import (
	"bytes"
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newMachine(t *testing.T) *Machine {
	t.Helper()
	m, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func openDoor(t *testing.T, m *Machine) *Door {
	t.Helper()
	d, err := m.OpenDoor(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func readable(t *testing.T, fd int) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := pollIn(fds, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n == 1
}

// faults reports whether reading (or writing) b[0] is a SIGSEGV.
func faults(b []byte, write bool) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if e := recover(); e != nil {
			if _, ok := e.(interface{ Addr() uintptr }); !ok {
				panic(e)
			}
			fault = true
		}
	}()
	if write {
		b[0] = 1
	} else {
		bytes.Count(b[:1], []byte{0})
	}
	return false
}

func TestMapIsSharedMemoryAndFaultsAfterUnmap(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 8)
	d := openDoor(t, m)
	var refs []uint32
	for _, p := range []int{6, 1, 3} { // not contiguous in the guest
		refs = append(refs, dom.Grant(p, 0, false))
		dom.Page(p)[0] = byte(p)
	}
	mem, err := d.Map(5, refs, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(mem) != 3*PageSize || mem[0] != 6 || mem[PageSize] != 1 || mem[2*PageSize] != 3 {
		t.Fatalf("mapped %d bytes: %d %d %d", len(mem), mem[0], mem[PageSize], mem[2*PageSize])
	}
	mem[2*PageSize+5] = 0x77
	if dom.Page(3)[5] != 0x77 {
		t.Error("the guest does not see the backend's write")
	}
	if m.Mapped() != 3 || d.Mapped() != 3 {
		t.Errorf("mapped %d pages, want 3", m.Mapped())
	}
	if !dom.Revoke(refs[0]) {
		t.Error("revoke of a mapped grant says that it was not mapped")
	}
	if err := d.Unmap(mem[:PageSize]); err != unix.EINVAL {
		t.Errorf("unmap of a part: %v, want EINVAL", err)
	}
	if err := d.Unmap(mem); err != nil {
		t.Fatal(err)
	}
	if !faults(mem, false) {
		t.Error("memory can be read after Unmap")
	}
	if dom.Grants() != 2 {
		t.Errorf("%d grants left, want 2: the revoked one goes with its mapping", dom.Grants())
	}
	if dom.Revoke(refs[1]) {
		t.Error("revoke of an unmapped grant says that it is mapped")
	}
	if err := d.Unmap(mem); err != unix.EINVAL {
		t.Errorf("unmap twice: %v, want EINVAL", err)
	}
}

func TestMapReadOnlyFaultsOnWrite(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 1)
	d := openDoor(t, m)
	mem, err := d.Map(5, []uint32{dom.Grant(0, 0, true)}, false)
	if err != nil {
		t.Fatal(err)
	}
	if faults(mem, false) || !faults(mem, true) {
		t.Error("a read-only mapping must be readable and not writable")
	}
}

func TestMapRefuses(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 4)
	dead := m.AddDomain(6, 4)
	deadRef := dead.Grant(0, 0, false)
	dead.Kill()
	d := openDoor(t, m)
	good := dom.Grant(0, 0, false)
	gone := dom.Grant(0, 0, false)
	dom.Revoke(gone)
	for _, c := range []struct {
		name     string
		domid    uint32
		refs     []uint32
		writable bool
	}{
		{"reserved ref 0", 5, []uint32{0}, true},
		{"bad ref last", 5, []uint32{good, good, 0xffffffff}, true},
		{"bad ref first", 5, []uint32{999, good}, true},
		{"revoked", 5, []uint32{gone}, true},
		{"granted to another", 5, []uint32{dom.Grant(1, 7, false)}, true},
		{"read-only as writable", 5, []uint32{dom.Grant(1, 0, true)}, true},
		{"no refs", 5, nil, true},
		{"no such domain", 77, []uint32{good}, true},
		{"dead domain", 6, []uint32{deadRef}, true},
	} {
		if mem, err := d.Map(c.domid, c.refs, c.writable); err != unix.EINVAL || mem != nil {
			t.Errorf("%s: %v, want EINVAL", c.name, err)
		}
	}
	if m.Mapped() != 0 {
		t.Errorf("%d pages mapped by failed calls", m.Mapped())
	}
}

func TestEventChannel(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 1)
	d := openDoor(t, m)
	gp := dom.AllocUnbound(0)
	p, err := d.Bind(5, gp)
	if err != nil {
		t.Fatal(err)
	}
	var buf [4]uint32
	take := func(what string, want ...uint32) {
		t.Helper()
		if got := readable(t, d.EventFD()); got != (len(want) > 0) {
			t.Errorf("%s: fd readable %v", what, got)
		}
		n, err := d.Pending(buf[:])
		if err != nil || n != len(want) || (n == 1 && buf[0] != want[0]) {
			t.Fatalf("%s: pending %v, %v; want %v", what, buf[:n], err, want)
		}
	}
	take("bind fires once", p)
	dom.Kick(gp)
	dom.Kick(gp)
	take("masked")
	if err := d.Unmask([]uint32{p, 999}); err != nil {
		t.Fatal(err)
	}
	take("fired while masked", p)
	_ = d.Unmask([]uint32{p})
	take("nothing")
	dom.Kick(gp)
	dom.Kick(gp)
	take("coalesced", p)
	_ = d.Unmask([]uint32{p})
	take("coalesced is over")

	if err := d.Notify(p); err != nil {
		t.Fatal(err)
	}
	if err := dom.Wait(deadline(t), gp); err != nil {
		t.Fatal(err)
	}
	if err := d.Notify(p + 1); err != unix.ENOTCONN {
		t.Errorf("notify a port that is not ours: %v", err)
	}
	if _, err := d.Bind(5, gp); err != unix.EINVAL {
		t.Errorf("bind a bound port: %v", err)
	}
	if err := d.Unbind(p); err != nil {
		t.Fatal(err)
	}
	dom.Kick(gp)
	take("unbound")
	if p, err = d.Bind(5, gp); err != nil {
		t.Fatalf("bind again: %v", err)
	}
	dom.ClosePort(gp)
	if err := d.Notify(p); err != nil {
		t.Errorf("notify a port that the guest closed: %v, want it dropped", err)
	}
	if s := m.Stats(); s.ToBackend != 5 || s.ToGuest != 2 {
		t.Errorf("stats %+v", s)
	}
}

func TestBindRefuses(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 1)
	d := openDoor(t, m)
	other := dom.AllocUnbound(3)
	for _, c := range []struct {
		name        string
		domid, port uint32
		want        error
	}{
		{"no such port", 5, 1000, unix.EINVAL},
		{"port 0", 5, 0, unix.EINVAL},
		{"port for another domain", 5, other, unix.EINVAL},
		{"no such domain", 88, 1, unix.ESRCH},
	} {
		if _, err := d.Bind(c.domid, c.port); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestManyPortsOneDoor(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 1)
	d := openDoor(t, m)
	for range 5 {
		if _, err := d.Bind(5, dom.AllocUnbound(0)); err != nil {
			t.Fatal(err)
		}
	}
	var buf [3]uint32
	for _, want := range []int{3, 2, 0} {
		if n, err := d.Pending(buf[:]); err != nil || n != want {
			t.Errorf("pending %d, %v; want %d", n, err, want)
		}
	}
}

func TestZombie(t *testing.T) {
	m := newMachine(t)
	dom := m.AddDomain(5, 2)
	d := openDoor(t, m)
	gp := dom.AllocUnbound(0)
	p, err := d.Bind(5, gp)
	if err != nil {
		t.Fatal(err)
	}
	ref := dom.Grant(0, 0, false)
	mem, err := d.Map(5, []uint32{ref}, true)
	if err != nil {
		t.Fatal(err)
	}
	dom.Kill()
	if z := m.Zombies(); len(z) != 1 || z[0] != 5 {
		t.Errorf("zombies %v, want [5]", z)
	}
	mem[0] = 1 // still there
	if err := d.Notify(p); err != nil {
		t.Errorf("notify a dead domain: %v, want it dropped", err)
	}
	if _, err := d.Map(5, []uint32{ref}, true); err != unix.EINVAL {
		t.Errorf("map of a zombie: %v", err)
	}
	if err := d.Unmap(mem); err != nil {
		t.Fatal(err)
	}
	if z := m.Zombies(); len(z) != 0 {
		t.Errorf("zombies %v after unmap", z)
	}
	m.AddDomain(5, 1)
}

func TestCloseListsLeaks(t *testing.T) {
	m, err := New()
	if err != nil {
		t.Fatal(err)
	}
	dom := m.AddDomain(5, 2)
	d, err := m.OpenDoor(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Map(5, []uint32{dom.Grant(0, 0, false)}, true); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Bind(5, dom.AllocUnbound(0)); err != nil {
		t.Fatal(err)
	}
	want := "leak: door of domain 0 is open: 1 pages mapped, 1 ports bound"
	if err := m.Close(); err == nil || err.Error() != want {
		t.Errorf("close: %v, want %q", err, want)
	}
	if err := m.Close(); err != nil {
		t.Errorf("close twice: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("close the door afterwards: %v", err)
	}
	if _, err := d.Pending(nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("a closed door answers: %v", err)
	}
}

func TestKickWhileUnbinding(t *testing.T) { // XSA-331
	m := newMachine(t)
	dom := m.AddDomain(5, 1)
	d := openDoor(t, m)
	gp := dom.AllocUnbound(0)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				dom.Kick(gp)
			}
		}
	}()
	var buf [4]uint32
	for range 1000 {
		p, err := d.Bind(5, gp)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := d.Pending(buf[:]); n != 1 || err != nil {
			t.Fatalf("pending %d, %v", n, err)
		}
		if err := d.Unbind(p); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if readable(t, d.EventFD()) {
		t.Error("fd is readable with no port bound")
	}
}
