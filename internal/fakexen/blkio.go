package fakexen

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// A Req is one request of the frontend. With Data its segments are made of it;
// with Segs they are what the caller says, be it a lie.
type Req struct {
	Op     uint8
	Queue  int
	Sector uint64
	// Data is written from, or read into once the request is done: whole
	// sectors. It begins at sector FirstSect of the first page.
	Data      []byte
	FirstSect int
	Segs      []Seg
	NrSectors uint64 // DISCARD
	Flag      uint8  // DISCARD: 1 is secure
	Indirect  bool   // even if the segments fit into the slot

	// Lies. Nil is the truth.
	ID         *uint64
	NrSegments *int
	Handle     *uint16
	IndirectOp *uint8
	Refs       []uint32 // of the indirect pages
}

// A Pending is a request in flight.
type Pending struct {
	q      *queue
	req    Req
	id     uint64 // that it took, whatever it says
	op     uint8  // that the response must have
	data   []granted
	pages  []granted // of indirect segments
	done   chan struct{}
	status int16
	err    error
}

// Submit puts requests on one ring, and pushes them with one notification at
// most. Of those that were put a Pending is returned even if a later one fails,
// with ErrRingFull for example.
func (b *Blkfront) Submit(reqs ...Req) ([]*Pending, error) {
	if len(reqs) == 0 {
		return nil, nil
	}
	q, err := b.queue(reqs[0].Queue)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var ps []*Pending
	for _, r := range reqs {
		p, err := q.submit(r)
		if err != nil {
			q.push()
			return ps, err
		}
		ps = append(ps, p)
	}
	q.push()
	return ps, nil
}

func (q *queue) submit(r Req) (*Pending, error) {
	if q.broken != nil {
		return nil, q.broken
	}
	if q.closed {
		return nil, ErrClosed
	}
	if q.reqProd-q.rspCons >= q.size || len(q.ids) == 0 {
		return nil, ErrRingFull
	}
	p := &Pending{q: q, req: r, op: r.Op, done: make(chan struct{})}
	segs := r.Segs
	if segs == nil && len(r.Data) > 0 {
		segs = p.fill()
	}
	raw := RawReq{Op: r.Op, Flag: uint8(len(segs)), Handle: uint16(q.b.devid),
		Sector: r.Sector, Segs: segs, NrSectors: r.NrSectors}
	switch {
	case r.Op == OpDiscard:
		raw.Flag = r.Flag
	case r.Indirect || len(segs) > maxSegments:
		raw.Op, raw.Flag, raw.NrSegs = OpIndirect, r.Op, uint16(len(segs))
		raw.Segs, raw.Refs = nil, p.fillIndirect(segs)
	}
	p.id = q.ids[len(q.ids)-1]
	q.ids = q.ids[:len(q.ids)-1]
	raw.ID = p.id
	p.lie(&raw)
	if err := q.put(raw); err != nil {
		return nil, err
	}
	q.inflight[raw.ID] = p
	return p, nil
}

func (p *Pending) lie(raw *RawReq) {
	r := p.req
	if r.ID != nil {
		raw.ID = *r.ID
	}
	if r.Handle != nil {
		raw.Handle = *r.Handle
	}
	if r.Refs != nil {
		raw.Refs = r.Refs
	}
	if r.NrSegments != nil {
		raw.Flag, raw.NrSegs = pick(raw.Op == OpIndirect, raw.Flag, uint8(*r.NrSegments)), uint16(*r.NrSegments)
	}
	if r.IndirectOp != nil && raw.Op == OpIndirect {
		raw.Flag = *r.IndirectOp
		p.op = raw.Flag
	}
}

func pick(first bool, a, b uint8) uint8 {
	if first {
		return a
	}
	return b
}

// page takes a granted page: one of the pool if grants are persistent, else a
// new one, which the backend may not write if it has no need to.
func (p *Pending) page(readonly bool) granted {
	q := p.q
	var g granted
	if n := len(q.pool); q.b.persistent() && n > 0 {
		g, q.pool = q.pool[n-1], q.pool[:n-1]
	} else {
		g.page = q.b.dom.AllocPage()
		g.ref = q.b.dom.Grant(g.page, q.b.backendID, readonly && !q.b.persistent())
	}
	b := q.b.dom.Page(g.page)
	for i := range b {
		b[i] = filler
	}
	return g
}

// span calls f with each page's part of the data.
func (p *Pending) span(f func(i, first int, part []byte)) {
	data, first := p.req.Data, p.req.FirstSect
	for i := 0; len(data) > 0; i++ {
		n := min(len(data), PageSize-first*sectorSize)
		f(i, first, data[:n])
		data, first = data[n:], 0
	}
}

// fill makes segments of the data, and for a write puts it there.
func (p *Pending) fill() []Seg {
	var segs []Seg
	out := p.req.Op != OpRead
	p.span(func(_, first int, part []byte) {
		g := p.page(out)
		if out {
			copy(p.q.b.dom.Page(g.page)[first*sectorSize:], part)
		}
		p.data = append(p.data, g)
		last := first + (len(part)+sectorSize-1)/sectorSize - 1
		segs = append(segs, Seg{g.ref, uint8(first), uint8(last)})
	})
	return segs
}

func (p *Pending) fillIndirect(segs []Seg) []uint32 {
	var refs []uint32
	for len(segs) > 0 && len(refs) < maxIndirect {
		n := min(len(segs), segsPerIndirect)
		g := p.page(true)
		for i, s := range segs[:n] {
			putSeg(p.q.b.dom.Page(g.page)[8*i:], s)
		}
		p.pages = append(p.pages, g)
		refs = append(refs, g.ref)
		segs = segs[n:]
	}
	return refs
}

// finish ends the request: data is taken, bytes of the pages that it did not
// ask for are checked, and grants end. The caller holds q.mu.
func (p *Pending) finish(status int16) {
	p.status = status
	b := p.q.b
	if p.req.Op == OpRead && p.data != nil {
		p.span(func(i, first int, part []byte) {
			page := b.dom.Page(p.data[i].page)
			for at, c := range page {
				outside := at < first*sectorSize || at >= first*sectorSize+len(part)
				if outside && c != filler {
					p.err = b.violate(fmt.Errorf("read wrote byte %d of a page, outside the segment", at))
					break
				}
			}
			if status == StatusOkay {
				copy(part, page[first*sectorSize:])
			}
		})
	}
	end := b.revoke
	if b.persistent() {
		end = func(g granted) error {
			p.q.pool = append(p.q.pool, g)
			return nil
		}
	}
	if err := errors.Join(p.release(end)...); err != nil {
		p.err = b.violate(fmt.Errorf("response before unmap: %w", err))
	}
	close(p.done)
}

func (p *Pending) release(end func(granted) error) []error {
	var errs []error
	for _, g := range append(p.data, p.pages...) {
		errs = append(errs, end(g))
	}
	p.data, p.pages = nil, nil
	return errs
}

// Refs are the grants of the request's data, in order, and then those of its
// indirect pages: for a guest that revokes them in mid-flight. Nil once it is
// done.
func (p *Pending) Refs() []uint32 {
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	var refs []uint32
	for _, l := range [][]granted{p.data, p.pages} {
		for _, g := range l {
			refs = append(refs, g.ref)
		}
	}
	return refs
}

// Wait waits for the response and returns its status. An error means that
// there was none, or that it broke the protocol.
func (p *Pending) Wait(ctx context.Context) (int16, error) {
	for {
		select {
		case <-p.done:
			return p.status, p.err
		default:
		}
		if !p.q.b.opts.Polled {
			select {
			case <-p.done:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
			continue
		}
		p.q.consume()
		runtime.Gosched()
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
}

// Do sends one request, waiting for a free slot if need be, and waits for its
// response.
func (b *Blkfront) Do(ctx context.Context, r Req) (int16, error) {
	for {
		q, err := b.queue(r.Queue)
		if err != nil {
			return 0, err
		}
		q.mu.Lock()
		changed := q.changed
		q.mu.Unlock()
		ps, err := b.Submit(r)
		if err == nil {
			return ps[0].Wait(ctx)
		}
		if !errors.Is(err, ErrRingFull) {
			return 0, err
		}
		if b.opts.Polled {
			q.consume()
			runtime.Gosched()
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Reap takes what responses are there, for a polled frontend.
func (b *Blkfront) Reap() {
	for _, q := range b.allQueues() {
		q.consume()
	}
}

// StatusErr is a status other than 0 as an error.
type StatusErr int16

func (e StatusErr) Error() string { return fmt.Sprintf("status %d", int16(e)) }

// maxBytes is the longest request that Read and Write make.
func (b *Blkfront) maxBytes(firstSect int) int {
	n := maxSegments
	if b.opts.Indirect > maxSegments {
		n = max(n, min(b.opts.Indirect, int(b.Info().MaxIndirect)))
	}
	return n*PageSize - firstSect*sectorSize
}

// Read reads n sectors, split into requests as large as allowed.
func (b *Blkfront) Read(ctx context.Context, sector uint64, n int) ([]byte, error) {
	data := make([]byte, n*sectorSize)
	return data, b.each(ctx, OpRead, sector, data)
}

// Write writes whole sectors.
func (b *Blkfront) Write(ctx context.Context, sector uint64, data []byte) error {
	return b.each(ctx, OpWrite, sector, data)
}

func (b *Blkfront) each(ctx context.Context, op uint8, sector uint64, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), b.maxBytes(b.opts.FirstSect))
		status, err := b.Do(ctx, Req{Op: op, Sector: sector, Data: data[:n], FirstSect: b.opts.FirstSect})
		if err != nil {
			return err
		}
		if status != StatusOkay {
			return StatusErr(status)
		}
		sector += uint64(n / sectorSize)
		data = data[n:]
	}
	return nil
}

// Flush sends an empty FLUSH.
func (b *Blkfront) Flush(ctx context.Context) (int16, error) {
	return b.Do(ctx, Req{Op: OpFlush})
}

// Discard sends a DISCARD that is not secure, whether or not they are offered.
func (b *Blkfront) Discard(ctx context.Context, sector, sectors uint64) (int16, error) {
	return b.Do(ctx, Req{Op: OpDiscard, Sector: sector, NrSectors: sectors})
}
