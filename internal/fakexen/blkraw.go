package fakexen

import (
	"context"
	"fmt"
	"runtime"
)

// A Raw is a ring in the hands of a liar. From the moment it is taken the
// frontend leaves the ring alone: no request of Do is answered.
type Raw struct {
	q    *queue
	next uint32 // response that Responses looks at
}

// Raw takes over a ring.
func (b *Blkfront) Raw(queue int) (*Raw, error) {
	q, err := b.queue(queue)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.raw = true
	return &Raw{q, q.rspCons}, nil
}

// Size is the number of slots.
func (r *Raw) Size() uint32 { return r.q.size }

// Bytes is the whole ring, header and slots, as shared.
func (r *Raw) Bytes() []byte { return r.q.mem }

// Slot is the shared bytes of the slot that index i falls on.
func (r *Raw) Slot(i uint32) []byte { return r.q.slot(i) }

// Refs are the grants of the ring's pages.
func (r *Raw) Refs() []uint32 { return r.q.refs }

// Port is the guest's event channel.
func (r *Raw) Port() uint32 { return r.q.port }

// ReqProd reads req_prod.
func (r *Raw) ReqProd() uint32 { return index(r.q.mem, offReqProd).Load() }

// SetReqProd writes req_prod.
func (r *Raw) SetReqProd(v uint32) { index(r.q.mem, offReqProd).Store(v) }

// ReqEvent reads req_event, which the backend sets.
func (r *Raw) ReqEvent() uint32 { return index(r.q.mem, offReqEvent).Load() }

// SetReqEvent writes req_event.
func (r *Raw) SetReqEvent(v uint32) { index(r.q.mem, offReqEvent).Store(v) }

// RspProd reads rsp_prod, which the backend sets.
func (r *Raw) RspProd() uint32 { return index(r.q.mem, offRspProd).Load() }

// SetRspProd writes rsp_prod.
func (r *Raw) SetRspProd(v uint32) { index(r.q.mem, offRspProd).Store(v) }

// RspEvent reads rsp_event.
func (r *Raw) RspEvent() uint32 { return index(r.q.mem, offRspEvent).Load() }

// SetRspEvent writes rsp_event.
func (r *Raw) SetRspEvent(v uint32) { index(r.q.mem, offRspEvent).Store(v) }

// Kick notifies the backend n times.
func (r *Raw) Kick(n int) {
	for range n {
		r.q.b.dom.Kick(r.q.port)
	}
}

// Write writes a request to the slot of index i, and filler around it.
func (r *Raw) Write(i uint32, req RawReq) { copy(r.q.slot(i), r.q.lay.encode(req)) }

// Fill sets every byte of all slots.
func (r *Raw) Fill(c byte) {
	b := r.q.mem[offSlots:]
	for i := range b {
		b[i] = c
	}
}

// Push writes requests from index ReqProd on, moves req_prod behind them, and
// kicks once.
func (r *Raw) Push(reqs ...RawReq) {
	at := r.ReqProd()
	for i, q := range reqs {
		r.Write(at+uint32(i), q)
	}
	r.SetReqProd(at + uint32(len(reqs)))
	r.Kick(1)
}

// Response decodes what is in the slot of index i.
func (r *Raw) Response(i uint32) Response { return decodeResponse(r.q.slot(i)) }

// Responses waits, polling, for the next n responses.
func (r *Raw) Responses(ctx context.Context, n int) ([]Response, error) {
	var rs []Response
	for len(rs) < n {
		for r.next != r.RspProd() && len(rs) < n {
			rs = append(rs, r.Response(r.next))
			r.next++
		}
		if err := ctx.Err(); err != nil {
			return rs, fmt.Errorf("%d of %d responses: %w", len(rs), n, err)
		}
		runtime.Gosched()
	}
	return rs, nil
}

// Page takes a page and grants it to the backend; end it with RevokePage.
func (r *Raw) Page(readonly bool) (page int, ref uint32) {
	d := r.q.b.dom
	page = d.AllocPage()
	return page, d.Grant(page, r.q.b.backendID, readonly)
}

// RevokePage ends a grant of Page. It reports whether the backend had it in
// use; the page is then not given back.
func (r *Raw) RevokePage(page int, ref uint32) (inUse bool) {
	return r.q.b.revoke(granted{page, ref}) != nil
}

// RevokeRing ends the grants of the ring itself, without a word to the
// backend, which keeps its mapping.
func (r *Raw) RevokeRing() {
	for _, ref := range r.q.refs {
		r.q.b.dom.Revoke(ref)
	}
}

// PutSegs writes segments as they stand in an indirect page.
func PutSegs(page []byte, segs []Seg) {
	for i, s := range segs {
		putSeg(page[8*i:], s)
	}
}
