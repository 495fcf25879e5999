package blkback

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"xen-disk/internal/fakexen"
)

// libxlDetach is what libxl writes to remove a device.
func (r *rig) libxlDetach(d *device) {
	r.t.Helper()
	r.ok(r.dom0.Tx(func(t *fakexen.Store) error {
		state, err := t.Read(d.BackendPath() + "/state")
		if err != nil {
			return err
		}
		if err := t.Write(d.BackendPath()+"/online", "0"); err != nil || state == "6" {
			return err
		}
		return t.Write(d.BackendPath()+"/state", "5")
	}))
}

func TestToolstackDetaches(t *testing.T) {
	ways := map[string]func(r *rig, d *device) *fakexen.Blkfront{
		"a frontend that is connected": func(_ *rig, d *device) *fakexen.Blkfront {
			return d.connect(fakexen.Options{})
		},
		"one that never came": func(_ *rig, d *device) *fakexen.Blkfront {
			d.state("2")
			return nil
		},
		"one that closed first": func(r *rig, d *device) *fakexen.Blkfront {
			f := d.connect(fakexen.Options{})
			r.ok(f.Close(r.ctx()))
			return f
		},
		"one that is at Initialised": func(r *rig, d *device) *fakexen.Blkfront {
			f := d.connect(fakexen.Options{})
			r.ok(f.SetState("3"))
			return f
		},
		"one that is at a state of no meaning": func(r *rig, d *device) *fakexen.Blkfront {
			f := d.front(fakexen.Options{Manual: true})
			d.state("2")
			r.ok(f.SetState("77"))
			return f
		},
		"one that is closing": func(r *rig, d *device) *fakexen.Blkfront {
			f := d.connect(fakexen.Options{RefuseClose: true})
			r.ok(f.SetState("5"))
			d.state("5")
			return f
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			d := r.attach(Spec{})
			f := way(r, d)
			r.libxlDetach(d)
			if name == "one that is closing" {
				r.works(f) // until it is closed
				r.ok(f.SetState("6"))
			}
			d.ends(EventDetached)
			expect(t, "events of a detach that we did not ask for", d.count(EventDetaching), 0)
		})
	}
}

func TestToolstackThatLostPatienceWritesClosed(t *testing.T) {
	for _, connected := range []bool{true, false} {
		t.Run(fmt.Sprint(connected), func(t *testing.T) {
			r := newRig(t)
			d := r.attach(Spec{})
			d.state("2")
			if connected {
				f := d.front(fakexen.Options{Manual: true})
				r.ok(f.Publish())
				d.state("4")
				r.ok(f.SetState("4"))
				r.works(f)
				r.libxlDetach(d)
			}
			r.ok(r.dom0.Tx(func(t *fakexen.Store) error {
				return errors.Join(t.Write(d.BackendPath()+"/online", "0"), t.Write(d.BackendPath()+"/state", "6"))
			}))
			d.ends(EventDetached)
		})
	}
}

func TestToolstackDeletesTheFrontend(t *testing.T) {
	r := newRig(t)
	a, b := r.attach(Spec{}), r.attach(Spec{})
	a.connect(fakexen.Options{})
	b.state("2")
	r.ok(r.dom0.Rm(a.paths.front))
	a.ends(EventGone)
	r.ok(r.dom0.Rm(b.paths.front))
	b.ends(EventGone)
}

func TestToolstackDeletesTheBackend(t *testing.T) {
	r := newRig(t)
	a, b := r.attach(Spec{}), r.attach(Spec{})
	a.connect(fakexen.Options{})
	b.state("2")
	r.ok(r.dom0.Rm("/local/domain/0/backend"))
	a.ends(EventGone)
	b.ends(EventGone)
}

// The toolstack writes Closing between our look and our Connected.
func TestDetachThatMeetsAConnectIsNotLost(t *testing.T) {
	for _, what := range []string{"sectors", "hotplug-status", "state"} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			d := r.attach(Spec{})
			d.state("2")
			hit, overwritten := false, false
			r.store.OnRequest(func(kind, path string) {
				if kind == "WRITE" && path == d.BackendPath()+"/"+what && !hit {
					hit = true
					r.libxlDetach(d)
				}
				overwritten = overwritten || hit && r.read(d.BackendPath()+"/state") == "4"
			})
			f := d.front(fakexen.Options{})
			d.ends(EventDetached)
			r.store.OnRequest(nil)
			if overwritten {
				t.Error("Closing was overwritten by Connected")
			}
			r.ok(f.WaitClosed(r.ctx()))
		})
	}
}

// The toolstack has removed the device between our look and our write.
func TestRemovedDirectoryIsNotMadeAnew(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	d.state("2")
	hit := false
	r.store.OnRequest(func(kind, path string) {
		if kind == "WRITE" && path == d.BackendPath()+"/state" && !hit {
			hit = true
			if err := errors.Join(r.dom0.Rm(d.paths.front), r.dom0.Rm(d.paths.back)); err != nil {
				t.Error(err)
			}
		}
	})
	d.front(fakexen.Options{})
	d.ends(EventGone)
}

func TestDetachBeforeTheGuestConnects(t *testing.T) {
	for _, offered := range []bool{false, true} {
		r := newRig(t)
		d := r.attach(Spec{})
		if offered {
			d.state("2")
		}
		d.stop()
		d.Detach() // and again
		d.Force()
	}
}

func TestGuestThatRefusesIsServedUntilItLetsGo(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{RefuseClose: true})
	d.Detach()
	d.await(EventDetaching, 1)
	r.eventually("the guest's words are told", func() bool {
		for _, e := range d.events() {
			if e.Kind == EventWaiting && strings.Contains(e.Text, "refusing to close") {
				return true
			}
		}
		return false
	})
	for range 20 {
		r.works(f)
	}
	d.state("5")
	r.ok(f.Close(r.ctx()))
	d.ends(EventDetached)
	// The next attach forgets what the guest said.
	if r.read(d.paths.frontErr+"/error") == "-" {
		t.Error("the guest said nothing")
	}
	e := r.attach(Spec{})
	expect(t, "words of the device before", r.read(e.paths.frontErr+"/error"), "-")
	e.stop()
	r.hush()
}

// hush removes the guest's words, which are its own to remove.
func (r *rig) hush() {
	r.t.Helper()
	r.ok(r.dom0.Rm(fmt.Sprintf("/local/domain/%d/error/device", guest)))
}

func TestDetachWithRequestsInTheDiskWaitsForThem(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	f := d.connect(fakexen.Options{RefuseClose: true})
	release := disk.hold()
	ps, err := f.Submit(fakexen.Req{Op: fakexen.OpWrite, Data: make([]byte, 4096)})
	r.ok(err)
	r.eventually("the write is inside the disk", func() bool { return disk.held() == 1 })
	d.Detach()
	d.await(EventDetaching, 1)
	release()
	status, err := ps[0].Wait(r.ctx())
	r.ok(err)
	expect(t, "status", status, 0)
	r.ok(f.Close(r.ctx()))
	d.ends(EventDetached)
	r.hush()
}

// refuseCommits makes our next commits fail.
func (r *rig) refuseCommits(times int) {
	left := times
	r.store.OnRequest(func(kind, _ string) {
		if kind == "TRANSACTION_END" && left > 0 {
			left--
			r.store.FailCommits(1)
		}
	})
}

func TestCommitsThatAreRefusedAreRepeated(t *testing.T) {
	r := newRig(t)
	const times = 5
	r.refuseCommits(times)
	d := r.attach(Spec{})
	r.refuseCommits(times)
	f := d.connect(fakexen.Options{})
	r.works(f)
	r.refuseCommits(times)
	r.ok(f.Reopen(r.ctx()))
	r.ok(f.WaitConnected(r.ctx()))
	r.refuseCommits(times)
	d.stop()
	expect(t, "refusals", d.count(EventRefused), 0)
}

func TestDetachOutlivesAStormThatATransactionDoesNot(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	const more = 45 // than xs tries
	r.refuseCommits(more)
	d.Detach()
	d.await(EventDetaching, 1)
	d.ends(EventDetached)
	r.ok(f.WaitClosed(r.ctx()))
	expect(t, "refusals", d.count(EventRefused), 0)
}

func TestConnectOutlivesAStormThatATransactionDoesNot(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	d.state("2")
	const more = 45
	r.refuseCommits(more)
	f := d.connect(fakexen.Options{})
	r.works(f)
	expect(t, "refusals", d.count(EventRefused), 0)
	d.stop()
}

func TestForceThatCannotCommitStillRemovesTheNodes(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	d.connect(fakexen.Options{})
	r.refuseCommits(1 << 20)
	d.Force()
	if err := d.wait(); err != nil && !errors.Is(err, syscall.EAGAIN) {
		t.Error(err)
	}
	r.store.OnRequest(nil)
	// What is above them may stay, empty.
	r.gone(d.paths.front)
	r.gone(d.paths.back)
	r.ok(r.dom0.Rm("/local/domain/0/backend"))
	r.ok(r.dom0.Rm("/local/domain/5/device/vbd"))
}
