package blkback

import (
	"errors"
	"runtime"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
	"xen-disk/ring"
)

// flushes are n empty flushes for a raw ring.
func flushes(n int) []fakexen.RawReq {
	reqs := make([]fakexen.RawReq, n)
	for i := range reqs {
		reqs[i] = fakexen.RawReq{Op: fakexen.OpFlush, ID: uint64(i)}
	}
	return reqs
}

// refill is a door whose guest pushes another request for every notification,
// so that the ring is never empty.
type refill struct {
	Xen
	more func()
}

func (r *refill) Notify(port uint32) error {
	if r.more != nil {
		r.more()
	}
	return r.Xen.Notify(port)
}

// TestTurnIsPostedOnce: a guest that keeps its ring full and kicks all the
// while must not collect turns, each of which would repeat itself for ever.
func TestTurnIsPostedOnce(t *testing.T) {
	p := newStillPlane(t)
	d, _, _ := openDisk(t, disk.Discard, 0, disk.Options{})
	door := &refill{}
	s := p.serve(d, attached{xen: func(x Xen) Xen { door.Xen = x; return door }})
	raw := s.raw()
	door.more = func() {
		raw.SetRspEvent(raw.RspProd() + 1)
		raw.SetReqProd(raw.ReqProd() + 1)
	}
	raw.SetRspEvent(1)
	raw.Fill(fakexen.OpFlush) // op 3 with 3 segments: answered at once, with an error
	raw.SetReqProd(1)

	const kicks = 10
	for range kicks {
		raw.Kick(1)
		s.Ready(0)
	}
	before := s.pulled()
	var after uint64
	s.loop.Post(func() {
		after = s.pulled()
		s.stopped = true
		s.loop.Stop()
	})
	must(t, s.loop.Run())
	if got := after - before; got != turnPulls {
		t.Errorf("one turn of the loop after %d kicks pulled %d times, want %d", kicks, got, turnPulls)
	}
}

// TestNoWakeUpIsLostBetweenTurns: a turn that is posted answers for kicks that
// come before it runs.
func TestNoWakeUpIsLostBetweenTurns(t *testing.T) {
	p := newStillPlane(t)
	d, _, _ := openDisk(t, disk.Discard, 0, disk.Options{})
	door := &refill{}
	s := p.serve(d, attached{xen: func(x Xen) Xen { door.Xen = x; return door }})
	raw := s.raw()
	left := turnPulls + 1 // the last one is found by the posted turn
	door.more = func() {
		if left--; left > 0 {
			raw.SetRspEvent(raw.RspProd() + 1)
			raw.SetReqProd(raw.ReqProd() + 1)
		}
	}
	raw.SetRspEvent(1)
	raw.SetReqProd(1)
	raw.Kick(1)
	s.Ready(0)
	if got := raw.RspProd(); got != turnPulls {
		t.Fatalf("first turn answered %d, want %d", got, turnPulls)
	}
	raw.Kick(1)
	s.Ready(0)
	s.loop.Post(s.loop.Stop)
	must(t, s.loop.Run())
	if raw.RspProd() != raw.ReqProd() || raw.ReqEvent() != raw.ReqProd()+1 {
		t.Errorf("rsp_prod %d, req_event %d, req_prod %d: the ring is asleep with work on it",
			raw.RspProd(), raw.ReqEvent(), raw.ReqProd())
	}
}

// TestEmptyBatchIsNoService: two workers may be sent for one batch. The one
// that finds nothing must leave the accounts alone, since the link may be gone
// by then: it is drained when the other one is done.
func TestEmptyBatchIsNoService(t *testing.T) {
	p := newStillPlane(t)
	d, _, _ := openDisk(t, disk.Mmap, 64, disk.Options{})
	s := p.serve(d, attached{})
	raw, q := s.raw(), s.queue()
	raw.Push(flushes(2)...)
	s.Ready(0)
	one, _ := q.Take()
	two, _ := q.Take()
	if one != unitBatch || two != unitBatch {
		t.Fatalf("units %d and %d, want two batches", one, two)
	}
	q.Run(0, one)
	if s.busy() != 0 || len(s.idleC) != 1 {
		t.Fatalf("busy %d, idle %d after the batch, want 0 and 1", s.busy(), len(s.idleC))
	}
	<-s.idleC
	s.detach()
	q.Run(1, two)
	if len(s.idleC) != 0 {
		t.Error("an empty batch said that it had ended the last request")
	}
}

// TestDrainedMeansPublished: when nothing is busy every answer is on the ring
// and nobody goes to touch it. Requests come one by one, so that several
// workers are sent for the same batch.
func TestDrainedMeansPublished(t *testing.T) {
	for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			d, _, _ := openDisk(t, f, 64, disk.Options{ReadOnly: true})
			s := p.serve(d, attached{})
			raw := s.raw()
			for round := range 2000 {
				for range 3 {
					raw.Push(flushes(1)...)
				}
				want := raw.ReqProd()
				for s.pulled() != uint64(want) || s.busy() > 0 {
					runtime.Gosched()
				}
				if got := raw.RspProd(); got != want {
					t.Fatalf("round %d: nothing is busy with %d answers published, want %d", round, got, want)
				}
			}
		})
	}
}

// TestBrokenRingIsParked: a req_prod that no honest frontend can have stops
// the queue, once and for good: it is reported once, nothing is executed, and
// what the guest kicks afterwards costs nothing. The vbd can be detached.
func TestBrokenRingIsParked(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(rsp, size uint32) uint32
	}{
		{"one more than the ring has slots", func(rsp, size uint32) uint32 { return rsp + size + 1 }},
		{"half the index space ahead", func(rsp, _ uint32) uint32 { return rsp + 1<<31 }},
		{"one behind rsp_prod", func(rsp, _ uint32) uint32 { return rsp - 1 }},
		{"a ring behind rsp_prod", func(rsp, size uint32) uint32 { return rsp - size }},
	} {
		for _, abi := range abis {
			t.Run(c.name+"/"+abi, func(t *testing.T) {
				p := newPlane(t)
				inner, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
				d := &tapped{Disk: inner}
				other, _, _ := openDisk(t, disk.Mmap, 64, disk.Options{})
				s := p.serve(d, attached{front: fakexen.Options{ABI: abi}})
				o := p.serve(other, attached{domid: 6})
				raw, ctx := s.raw(), deadlineData(t)
				raw.Push(flushes(8)...)
				if _, err := raw.Responses(ctx, 8); err != nil {
					t.Fatal(err)
				}
				calls := d.all()
				raw.Fill(0)
				raw.SetReqProd(c.lie(raw.RspProd(), raw.Size()))
				raw.Kick(1)
				if err := awaitData(t, s.reports, "a report"); !errors.Is(err, ring.ErrBroken) {
					t.Errorf("reported %v, want %v", err, ring.ErrBroken)
				}
				parkedForGood(t, p, s, o, raw)
				if got := d.all(); got != calls {
					t.Errorf("%d calls reached the disk after the lie", got-calls)
				}
				s.detach()
				o.unharmed()
			})
		}
	}
}

// parkedForGood kicks a parked ring while another disk is served and looks for
// what that costs.
func parkedForGood(t *testing.T, p *plane, s, other *served, raw *fakexen.Raw) {
	t.Helper()
	p.onLoop(func() {})
	pulled, pending := s.pulled(), s.p.m.Stats().PendingCalls
	for range 100 {
		raw.Kick(10)
		p.onLoop(func() {})
	}
	if got := p.m.Stats().PendingCalls - pending; got > 1 {
		t.Errorf("1000 kicks of a parked ring cost %d looks at its port, want at most 1", got)
	}
	other.unharmed()
	raw.SetReqProd(raw.RspProd() + 1) // too late to be good
	raw.Kick(1)
	p.onLoop(func() {})
	if got := s.pulled(); got != pulled {
		t.Errorf("%d requests were pulled from a parked ring", got-pulled)
	}
	if len(s.reports) > 0 {
		t.Errorf("reported again: %v", <-s.reports)
	}
}
