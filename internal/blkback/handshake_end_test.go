package blkback

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"xen-disk/internal/fakexen"
	"xen-disk/xs"
)

// shortDrain is the bound of a forced end where the disk hangs: what a test
// waits for in vain.
const shortDrain = 20 * time.Millisecond

// busy connects a frontend and leaves a write inside the disk.
func (d *device) busy(disk *testDisk) (f *fakexen.Blkfront, release func()) {
	d.r.t.Helper()
	f = d.connect(fakexen.Options{})
	release = disk.hold()
	_, err := f.Submit(fakexen.Req{Op: fakexen.OpWrite, Data: make([]byte, 4096)})
	d.r.ok(err)
	d.r.eventually("the write is inside the disk", func() bool { return disk.held() == 1 })
	return f, release
}

// draining waits until no request is pulled any more.
func (d *device) draining() {
	d.r.t.Helper()
	d.VBD.mu.Lock()
	l := d.live
	d.VBD.mu.Unlock()
	d.r.eventually("the link is stopped", func() bool {
		stopped := make(chan bool)
		d.r.loop.Post(func() { stopped <- l.stopped })
		return <-stopped
	})
}

func TestDestroyedDomainIsNoZombieWhileTheDiskIsSlow(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	_, release := d.busy(disk)
	r.destroy(guest)
	r.eventually("no zombie", func() bool { return len(r.m.Zombies()) == 0 })
	expect(t, "calls inside the disk", disk.held(), 1)
	release()
	d.ends(EventGone)
}

func TestDomainDestroyedWhileItsCloseDrainsIsNoZombie(t *testing.T) {
	for _, how := range []string{"closed", "starts over", "resumed"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			disk := newDisk(1 << 20)
			d := r.attach(Spec{Disk: disk})
			f, release := d.busy(disk)
			switch how {
			case "closed":
				r.ok(f.SetState("6"))
			case "starts over":
				r.ok(f.SetState("1"))
			case "resumed":
				r.ok(f.Node("ring-ref", "7"))
				r.ok(f.SetState("3"))
			}
			d.draining()
			r.destroy(guest)
			r.eventually("no zombie", func() bool { return len(r.m.Zombies()) == 0 })
			expect(t, "calls inside the disk", disk.held(), 1)
			release()
			d.ends(EventGone)
		})
	}
}

func TestDeathThatOnlyReleaseDomainTells(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	// A crash: nothing is removed, and the toolstack may look into the
	// domain yet. Its disk is not taken.
	r.store.FireRelease()
	r.works(f)
	r.m.Crash(guest)
	r.store.Release(guest)
	d.ends(EventGone)
	expect(t, "zombies", len(r.m.Zombies()), 0)
	r.ok(errors.Join(r.dom0.Rm("/local/domain/5"), r.dom0.Rm("/libxl/5"), r.dom0.Rm("/vm/uuid-5")))
	r.forget(guest)
}

func TestDeathOfOtherDomainsIsNothing(t *testing.T) {
	r := newRig(t)
	r.boot(6)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	before, told := r.store.Requests()["IS_DOMAIN_INTRODUCED"], len(d.events())
	r.destroy(6)
	r.eventually("the vbd looks", func() bool { return r.store.Requests()["IS_DOMAIN_INTRODUCED"] > before })
	for range 100 {
		r.store.FireRelease()
	}
	r.works(f)
	expect(t, "events", len(d.events()), told)
	d.stop()
}

func TestForceAtEveryStage(t *testing.T) {
	stages := map[string]func(r *rig, d *device){
		"at once":   func(*rig, *device) {},
		"offered":   func(_ *rig, d *device) { d.state("2") },
		"connected": func(_ *rig, d *device) { d.connect(fakexen.Options{}) },
		"refused": func(r *rig, d *device) {
			f := d.front(fakexen.Options{Manual: true})
			d.state("2")
			r.ok(f.SetState("3"))
			d.await(EventRefused, 1)
		},
		"closing": func(r *rig, d *device) {
			r.ok(d.connect(fakexen.Options{RefuseClose: true}).SetState("5"))
			d.await(EventClosing, 1)
		},
		"closed": func(r *rig, d *device) { r.ok(d.connect(fakexen.Options{}).Close(r.ctx())) },
		"detaching": func(r *rig, d *device) {
			d.connect(fakexen.Options{RefuseClose: true})
			d.Detach()
			d.await(EventDetaching, 1)
		},
	}
	for name, stage := range stages {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			disk := newDisk(1 << 20)
			d := r.attach(Spec{Disk: disk})
			stage(r, d)
			d.Force()
			d.ends(EventForced)
			expect(t, "times that the disk was closed", disk.closed(), 1)
			r.ok(r.dom0.Rm("/local/domain/5/error/device"))
		})
	}
}

func TestForceWithADiskThatHangsEnds(t *testing.T) {
	stages := map[string]func(r *rig, d *device, f *fakexen.Blkfront){
		"connected": func(*rig, *device, *fakexen.Blkfront) {},
		"draining": func(r *rig, d *device, f *fakexen.Blkfront) {
			r.ok(f.SetState("6"))
			d.draining()
		},
		"the guest is gone": func(r *rig, _ *device, _ *fakexen.Blkfront) {
			r.destroy(guest)
		},
	}
	for name, stage := range stages {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.back.forcedDrain = shortDrain
			r.boot(6)
			other := r.attach(Spec{Domid: 6})
			witness := other.connect(fakexen.Options{})
			disk := newDisk(1 << 20)
			d := r.attach(Spec{Disk: disk})
			f, release := d.busy(disk)
			stage(r, d, f)
			d.Force()
			if err := d.wait(); !errors.Is(err, errBusy) {
				t.Errorf("ends with %v, want %v", err, errBusy)
			}
			expect(t, "pages mapped", r.m.Mapped(), 1) // the other's
			r.works(witness)
			other.stop()
			if err := r.back.Close(); !errors.Is(err, errBusy) {
				t.Errorf("backend closes with %v, want %v", err, errBusy)
			}
			release()
			r.eventually("the disk lets go", func() bool { return r.back.late.Load() == 0 })
			expect(t, "times that the disk was closed", disk.closed(), 1)
		})
	}
}

func TestForceWhileTheLastFlushHangs(t *testing.T) {
	r := newRig(t)
	r.back.forcedDrain = shortDrain
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	f := d.connect(fakexen.Options{})
	release := disk.hold()
	r.ok(f.SetState("6"))
	r.eventually("the flush is inside the disk", func() bool { return disk.held() == 1 })
	// The guest has its pages back already.
	expect(t, "pages mapped", r.m.Mapped(), 0)
	d.Force()
	if err := d.wait(); !errors.Is(err, errBusy) {
		t.Errorf("ends with %v, want %v", err, errBusy)
	}
	release()
	r.eventually("the disk lets go", func() bool { return r.back.late.Load() == 0 })
}

func TestLostXenstoreServesOnUntilForced(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	idle := r.attach(Spec{})
	idle.state("2")
	f := d.connect(fakexen.Options{})
	r.store.Drop()
	if e := d.await(EventLost, 1); !errors.Is(e.Err, xs.ErrLost) {
		t.Errorf("event %v", e.Err)
	}
	if err := idle.wait(); !errors.Is(err, xs.ErrLost) {
		t.Errorf("a vbd without a guest ends with %v", err)
	}
	for range 20 {
		r.works(f)
	}
	d.Detach() // nobody can ask the guest
	r.works(f)
	d.Force()
	if err := d.wait(); !errors.Is(err, xs.ErrLost) {
		t.Errorf("ends with %v", err)
	}
	expect(t, "times that the disk was closed", disk.closed(), 1)
	expect(t, "pages mapped", r.m.Mapped(), 0)
	if _, err := r.tryAttach(Spec{}); !errors.Is(err, xs.ErrLost) {
		t.Errorf("attach without xenstore: %v", err)
	}
	// Nodes outlive xenstored's clients.
	r.ok(errors.Join(r.dom0.Rm("/local/domain/0/backend"), r.dom0.Rm("/local/domain/5/device/vbd")))
}

func TestLostXenstoreWhileAClosingGuestDrains(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	f, release := d.busy(disk)
	r.ok(f.SetState("6"))
	d.draining()
	r.store.Drop()
	<-r.conn.Done()
	release()
	if err := d.wait(); !errors.Is(err, xs.ErrLost) {
		t.Errorf("ends with %v", err)
	}
	r.ok(errors.Join(r.dom0.Rm("/local/domain/0/backend"), r.dom0.Rm("/local/domain/5/device/vbd")))
}

func TestLateEventsAfterTheEndAreNothing(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	d.stop()
	n := len(d.events())
	d.wake()
	d.Detach()
	d.Force()
	d.report(fmt.Errorf("too late"))
	r.store.FireRelease()
	_ = f.SetState("3")
	expect(t, "events after the end", len(d.events())-n, 0)
	stats := d.Stats()
	expect(t, "requests", stats.Requests(), 0)
}
