package blkback

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"xen-disk/disk"
	"xen-disk/grant"
	"xen-disk/internal/fakexen"
)

// faulty is a door whose calls may fail, and only those of this one.
type faulty struct {
	Xen
	op    string
	err   error
	armed atomic.Bool
	met   atomic.Int64
}

func (f *faulty) fail(op string) error {
	if op != f.op || !f.armed.Load() {
		return nil
	}
	f.met.Add(1)
	return f.err
}

func (f *faulty) Map(domid uint32, refs []uint32, writable bool) ([]byte, error) {
	if err := f.fail("map"); err != nil {
		return nil, err
	}
	return f.Xen.Map(domid, refs, writable)
}

func (f *faulty) Unmap(mem []byte) error {
	if err := f.fail("unmap"); err != nil {
		return err
	}
	return f.Xen.Unmap(mem)
}

// Copy fails as the kernel does: some segments may have been copied, and the
// statuses say nothing, here that all is well.
func (f *faulty) Copy(segs []grant.CopySegment) error {
	if err := f.fail("copy"); err != nil {
		for i := range segs {
			segs[i].Status = grant.StatusOKAY
		}
		return err
	}
	return f.Xen.Copy(segs)
}

func (f *faulty) Bind(domid, remotePort uint32) (uint32, error) {
	if err := f.fail("bind"); err != nil {
		return 0, err
	}
	return f.Xen.Bind(domid, remotePort)
}

func (f *faulty) Notify(port uint32) error {
	if err := f.fail("notify"); err != nil {
		return err
	}
	return f.Xen.Notify(port)
}

func (f *faulty) Pending(ports []uint32) (int, error) {
	if err := f.fail("pending"); err != nil {
		return 0, err
	}
	return f.Xen.Pending(ports)
}

func (f *faulty) Unmask(ports []uint32) error {
	if err := f.fail("unmask"); err != nil {
		return err
	}
	return f.Xen.Unmask(ports)
}

// failures are what a guest or a kernel short of memory can make of a call.
var failures = []error{syscall.EINVAL, syscall.EAGAIN, syscall.ENOMEM, syscall.ENOSPC, syscall.EFAULT}

// TestDoorFailsAtConnect (XSA-362): nothing is left of a link that could not
// be made.
func TestDoorFailsAtConnect(t *testing.T) {
	for _, op := range []string{"map", "bind"} {
		for _, failure := range failures {
			t.Run(fmt.Sprintf("%s/%v", op, failure), func(t *testing.T) {
				p := newPlane(t)
				d, _, _ := openDisk(t, disk.Mmap, 64, disk.Options{})
				o, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
				other := p.serve(o, attached{domid: 6})
				door := &faulty{op: op, err: failure}
				door.armed.Store(true)
				s, err := p.tryServe(d, attached{xen: func(x Xen) Xen { door.Xen = x; return door }})
				if !errors.Is(err, failure) || s != nil {
					t.Errorf("connect: %v, want %v", err, failure)
				}
				if got := p.m.Mapped(); got != 1 {
					t.Errorf("%d pages are mapped, want the other disk's ring", got)
				}
				other.unharmed()
			})
		}
	}
}

// TestDoorFailsWhileServing (XSA-362): the device suffers, the process and the
// other disks live, and the device can be taken down.
func TestDoorFailsWhileServing(t *testing.T) {
	for _, c := range []struct {
		op     string
		status int16 // of a request meanwhile
		lost   bool  // the event channel is: what comes later is not heard
	}{
		{"copy", -1, false},
		{"notify", 0, false},
		{"pending", 0, true},
		{"unmask", 0, true},
		{"unmap", 0, false},
	} {
		for _, failure := range failures {
			for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
				t.Run(fmt.Sprintf("%s/%v/%v", c.op, failure, f), func(t *testing.T) {
					door := &faulty{op: c.op, err: failure}
					failWhileServing(t, f, door, c.status, c.lost)
				})
			}
		}
	}
}

func failWhileServing(t *testing.T, f disk.Format, door *faulty, status int16, lost bool) {
	p := newPlane(t)
	d, _, _ := openDisk(t, f, 640, disk.Options{})
	o, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
	other := p.serve(o, attached{domid: 6})
	s := p.serve(d, attached{front: fakexen.Options{Polled: true}, xen: func(x Xen) Xen { door.Xen = x; return door }})
	front, ctx := newRawFront(s, 11, func(i int) uint8 { return uint8(i % 2) }), deadlineData(t)
	if err := front.run(ctx, 100, 32); err != nil || front.bad > 0 {
		t.Fatalf("before: %d bad responses, %v", front.bad, err)
	}
	door.armed.Store(true)
	front.polls = true
	front.push(8)
	if door.op != "pending" { // after which nothing is pulled
		got, err := front.raw.Responses(ctx, 108)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range got[100:] {
			if r.Status != status {
				t.Errorf("meanwhile: %+v, want status %d", r, status)
			}
		}
		front.reap()
	}
	if lost {
		if err := awaitData(t, s.reports, "a report"); !errors.Is(err, door.err) {
			t.Errorf("reported %v, want %v", err, door.err)
		}
	}
	other.unharmed()
	if !lost && door.op != "unmap" {
		door.armed.Store(false)
		bad := front.bad
		if err := front.run(ctx, 100, 32); err != nil || front.bad != bad {
			t.Errorf("afterwards: %d bad responses, %v", front.bad-bad, err)
		}
	}
	s.stop()
	must(t, s.drain(nil))
	s.closed = true
	if err := s.link.close(); (err != nil) != (door.op == "unmap") {
		t.Errorf("close: %v", err)
	}
	front.end(t)
	if door.op != "unmap" && door.op != "notify" && door.met.Load() == 0 {
		t.Error("the call was not made")
	}
	if len(s.reports) > 0 {
		t.Errorf("reported again: %v", <-s.reports)
	}
	other.unharmed()
}

// TestEagainIsTriedAgain: a guest page that Xen has paged out comes back, and
// the wait for one that does not is bounded.
func TestEagainIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		name   string
		times  int
		status int16
	}{
		{"once", 1, 0},
		{"a few times", 20, 0},
		{"for ever", 1 << 30, -1},
	} {
		for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
			t.Run(fmt.Sprintf("%s/%v", c.name, f), func(t *testing.T) {
				p := newPlane(t)
				d, _, _ := openDisk(t, f, 640, disk.Options{})
				s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
				front := newRawFront(s, 2, func(i int) uint8 { return uint8(i % 2) })
				defer front.end(t)
				p.m.FailCopies(grant.StatusEagain, c.times)
				front.push(1)
				got, err := front.raw.Responses(deadlineData(t), 1)
				if err != nil || got[0].Status != c.status {
					t.Errorf("answered %+v, %v, want status %d", got, err, c.status)
				}
				calls, most := p.m.Stats().CopyCalls, uint64(eagainTries+1)
				if calls < 2 || calls > most {
					t.Errorf("%d calls, want 2 to %d", calls, most)
				}
				p.m.SetCopyStatus(nil)
			})
		}
	}
}
