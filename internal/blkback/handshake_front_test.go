package blkback

import (
	"testing"

	"xen-disk/internal/fakexen"
)

// works proves that the disk serves the frontend.
func (r *rig) works(f *fakexen.Blkfront) {
	r.t.Helper()
	if err := f.Write(r.ctx(), 3, make([]byte, 8192)); err != nil {
		r.t.Fatal(err)
	}
}

func TestMiniOSPublishesConnectedAtOnce(t *testing.T) {
	r := newRig(t)
	states := r.history(guest, firstDevid)
	d := r.attach(Spec{})
	f := d.front(fakexen.Options{StateReady: 4})
	d.state("4")
	r.ok(f.WaitConnected(r.ctx()))
	r.works(f)
	expect(t, "states", states(), "[- 1 2 4]")
	r.ok(f.ReopenMiniOS(r.ctx()))
	d.state("2")
	expect(t, "states", states(), "[- 1 2 4 5 6 2]")
	d.stop()
}

func TestFrontendThatIsReadyBeforeTheBackendStillSeesInitWait(t *testing.T) {
	r := newRig(t)
	states := r.history(guest, firstDevid)
	front := pathsOf(0, kind, guest, firstDevid).front
	// The frontend's driver is there while the nodes are made.
	ring := r.honest()
	ring["state"] = "3"
	evil := r.store.Store(guest)
	defer evil.Close()
	r.ok(evil.Watch(front, "front"))
	d := r.attach(Spec{})
	for name, value := range ring {
		r.ok(evil.Write(front+"/"+name, value))
	}
	d.await(EventConnected, 1)
	expect(t, "states", states(), "[- 1 2 4]")
	d.Force()
	d.ends(EventForced)
}

func TestWinvbdClosesBeforeItConnects(t *testing.T) {
	r := newRig(t)
	states := r.history(guest, firstDevid)
	d := r.attach(Spec{})
	f := d.front(fakexen.Options{Manual: true, WideIDs: true, WriteQueues: true})
	for range 3 {
		// frontend.c, FrontendClose: 5 until 5 or 6, 6 until 6, 1 until
		// neither 6 nor 1, which must be exactly 2.
		r.ok(f.SetState("5"))
		d.state("5")
		r.ok(f.SetState("6"))
		d.state("6")
		r.ok(f.SetState("1"))
		d.state("2")
	}
	r.ok(f.Publish())
	d.state("4")
	d.await(EventConnected, 1)
	f.Auto()
	r.ok(f.WaitConnected(r.ctx()))
	r.works(f)
	s := states()
	// It may close before it is offered anything.
	if s[2] != "2" {
		s = append([]string{"-", "1", "2"}, s[2:]...)
	}
	expect(t, "states", s, "[- 1 2 5 6 2 5 6 2 5 6 2 4]")
	d.stop()
}

func TestGRUBHandsOverToAKernel(t *testing.T) {
	r := newRig(t)
	states := r.history(guest, firstDevid)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{Polled: true})
	r.works(f)
	r.ok(f.Reopen(r.ctx()))
	r.ok(f.WaitConnected(r.ctx()))
	d.await(EventConnected, 2)
	r.works(f)
	expect(t, "states", states(), "[- 1 2 4 6 2 4]")
	d.stop()
}

func TestKexecStartsOverWithoutAWord(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	for i := range 5 {
		r.works(f)
		r.ok(f.Reset())
		r.ok(f.WaitConnected(r.ctx()))
		d.await(EventConnected, i+2)
	}
	r.works(f)
	d.stop()
}

func TestKexecWithRequestsInTheDisk(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	f := d.connect(fakexen.Options{})
	release := disk.hold()
	_, err := f.Submit(fakexen.Req{Op: fakexen.OpWrite, Data: make([]byte, 4096)})
	r.ok(err)
	r.eventually("the write is inside the disk", func() bool { return disk.held() == 1 })
	r.ok(f.Reset())
	release()
	d.await(EventConnected, 2)
	r.ok(f.WaitConnected(r.ctx()))
	r.works(f)
	d.stop()
}

func TestResumedGuestHasANewRingAtInitialised(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	for i := range 3 {
		r.ok(f.Publish())
		d.await(EventConnected, i+2)
		r.works(f)
	}
	expect(t, "pages mapped", r.m.Mapped(), 1)
	d.stop()
}

func TestInitialisedAgainWithTheSameRingIsNoNews(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	for range 10 {
		r.ok(f.SetState("3"))
		r.works(f)
	}
	expect(t, "connects", d.count(EventConnected), 1)
	d.stop()
}

// Linux' blkfront, started by kexec, finds us at Connected: it publishes its
// ring and is Connected itself before we have seen it at Initialising.
func TestKexecThatIsTooQuickToSee(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	guest := r.store.Store(guest)
	defer guest.Close()
	for i := range 5 {
		nodes := r.honest()
		r.ok(guest.Tx(func(t *fakexen.Store) error {
			for name, value := range nodes {
				if err := t.Write(f.Dir()+"/"+name, value); err != nil {
					return err
				}
			}
			return t.Write(f.Dir()+"/state", "4")
		}))
		d.await(EventConnected, i+2)
	}
	d.Force()
	d.ends(EventForced)
}

func TestNodesThatMakeNoSenseWhileConnectedAreNoRing(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	for name, value := range map[string]string{
		"ring-ref": "x", "event-channel": "", "protocol": "mips-abi", "ring-page-order": "4",
		"multi-queue-num-queues": "7", "feature-persistent": "1",
	} {
		r.ok(f.Node(name, value))
		r.ok(f.SetState("4"))
		r.works(f)
	}
	expect(t, "connects", d.count(EventConnected), 1)
	expect(t, "refusals", d.count(EventRefused), 0)
	d.stop()
}

func TestLieWhileConnectedIsRefusedOnce(t *testing.T) {
	r := newRig(t)
	other := r.attach(Spec{})
	witness := other.connect(fakexen.Options{})
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	r.ok(f.Node("ring-ref", "4000000000"))
	r.ok(f.SetState("4"))
	d.await(EventRefused, 1)
	r.ok(f.WaitClosed(r.ctx()))
	r.ok(f.Reopen(r.ctx()))
	r.ok(f.WaitConnected(r.ctx()))
	r.works(f)
	r.works(witness)
	expect(t, "refusals", d.count(EventRefused), 1)
	d.stop()
	other.stop()
}

func TestReconnectManyTimes(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	f := d.connect(fakexen.Options{})
	const times = 50
	for i := range times {
		r.works(f)
		r.ok(f.Reopen(r.ctx()))
		r.ok(f.WaitConnected(r.ctx()))
		d.await(EventConnected, i+2)
	}
	r.works(f)
	d.stop()
	expect(t, "requests over all links", d.Stats().Writes, times+1)
	expect(t, "times that the disk was closed", disk.closed(), 1)
}

func TestDriverThatIsUnloadedAndLoaded(t *testing.T) {
	r := newRig(t)
	states := r.history(guest, firstDevid)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	r.ok(f.Close(r.ctx()))
	d.await(EventClosing, 1)
	expect(t, "pages mapped", r.m.Mapped(), 0)
	r.ok(f.SetState("1"))
	d.state("2")
	f.Auto()
	r.ok(f.WaitConnected(r.ctx()))
	r.works(f)
	expect(t, "states", states(), "[- 1 2 4 5 6 2 4]")
	d.stop()
}
