package blkback

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"xen-disk/internal/fakexen"
	"xen-disk/ring"
)

// A rawFront drives a ring with requests that were made beforehand, so that
// the guest's half of a test costs and allocates next to nothing. Each slot
// has pages of its own.
type rawFront struct {
	s     *served
	raw   *fakexen.Raw
	slots [][]byte // what each slot holds before req_prod passes it
	pages []int
	refs  []uint32

	prod, cons uint32
	bad        int  // responses that were not OKAY
	polls      bool // never asks for an event
}

// newRawFront fills the slots with what op makes of their numbers; flushes and
// discards get no segments, the others segs pages each.
func newRawFront(s *served, segs int, op func(i int) uint8) *rawFront {
	f := &rawFront{s: s, raw: s.raw()}
	f.prod, f.cons = f.raw.ReqProd(), f.raw.RspProd()
	span := uint64(segs * ring.PageBytes / ring.SectorBytes)
	for i := range int(f.raw.Size()) {
		r := fakexen.RawReq{Op: op(i), ID: uint64(i), Sector: uint64(i) * span % (s.limits.Sectors - span)}
		for range segs {
			page, ref := f.raw.Page(false)
			f.pages, f.refs = append(f.pages, page), append(f.refs, ref)
			r.Segs = append(r.Segs, fakexen.Seg{Ref: ref, Last: 7})
		}
		if r.Op == fakexen.OpFlush || r.Op == fakexen.OpDiscard {
			r.Segs, r.NrSectors = nil, span
		}
		r.Flag = uint8(len(r.Segs))
		f.raw.Write(uint32(i), r)
		f.slots = append(f.slots, append([]byte(nil), f.raw.Slot(uint32(i))...))
	}
	return f
}

// push puts n requests on the ring, and notifies the backend if it wants that.
func (f *rawFront) push(n int) {
	old := f.prod
	for range n {
		copy(f.raw.Slot(f.prod), f.slots[f.prod%uint32(len(f.slots))])
		f.prod++
	}
	f.raw.SetReqProd(f.prod)
	if f.prod-f.raw.ReqEvent() < f.prod-old {
		f.raw.Kick(1)
	}
}

// reap takes the responses that are there.
func (f *rawFront) reap() int {
	n := 0
	for prod := f.raw.RspProd(); f.cons != prod; f.cons++ {
		if f.raw.Slot(f.cons)[10] != fakexen.StatusOkay {
			f.bad++
		}
		n++
	}
	return n
}

// run does n requests, depth at a time, and sleeps as blkfront does: it asks
// for an event with the next response and looks once more before.
func (f *rawFront) run(ctx context.Context, n, depth int) error {
	for sent, done := 0, 0; done < n; {
		if k := min(depth-(sent-done), n-sent); k > 0 {
			f.push(k)
			sent += k
		}
		k := f.reap()
		done += k
		if k > 0 {
			continue
		}
		if f.polls {
			runtime.Gosched()
			if err := ctx.Err(); err != nil {
				return err
			}
			continue
		}
		f.raw.SetRspEvent(f.cons + 1)
		if f.raw.RspProd() != f.cons {
			continue
		}
		if err := f.s.guest.Wait(ctx, f.raw.Port()); err != nil {
			return fmt.Errorf("%d of %d requests are done: %w", done, n, err)
		}
	}
	return nil
}

// end gives the pages back; the backend must use none of them.
func (f *rawFront) end(t testing.TB) {
	t.Helper()
	for i, page := range f.pages {
		if f.raw.RevokePage(page, f.refs[i]) {
			t.Errorf("grant %d is in use after the response", f.refs[i])
		}
	}
}
