package ring

import "fmt"

// Op is a blkif operation (blkif.h, BLKIF_OP_*).
type Op uint8

const (
	OpRead     Op = 0
	OpWrite    Op = 1
	OpBarrier  Op = 2
	OpFlush    Op = 3
	OpDiscard  Op = 5
	OpIndirect Op = 6
)

// String returns blkif.h's word for the operation.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpBarrier:
		return "barrier"
	case OpFlush:
		return "flush"
	case OpDiscard:
		return "discard"
	case OpIndirect:
		return "indirect"
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// Status answers a request (blkif.h, BLKIF_RSP_*).
type Status int16

const (
	StatusOK      Status = 0
	StatusError   Status = -1
	StatusNotSupp Status = -2
)

const (
	// SectorBytes is the unit of every sector number on the ring, whatever
	// the disk's own sector size is (blkif.h since xen 221f2748e8).
	SectorBytes = 512
	// PageBytes is the size of a granted page in the interface.
	PageBytes = 4096
	// MaxSegments is how many segments a direct request can hold
	// (BLKIF_MAX_SEGMENTS_PER_REQUEST).
	MaxSegments = 11
	// MaxRequestBytes is the most data that one direct request can move.
	MaxRequestBytes = MaxSegments * PageBytes

	sectorsPerPage = PageBytes / SectorBytes
)

// Segment is a run of sectors in one granted page of the guest.
type Segment struct {
	Ref   uint32 // grant reference
	First uint8  // first sector of the page, 0 to 7
	Last  uint8  // last sector of the page, inclusive
	_     [2]byte
}

// Bytes is the length of a segment that passed Check.
func (s *Segment) Bytes() int { return (int(s.Last) - int(s.First) + 1) * SectorBytes }

// Offset is where in its page the segment begins, in bytes.
func (s *Segment) Offset() int { return int(s.First) * SectorBytes }

// Request is the private copy of a request: 120 bytes, flat, and without
// pointers, so an array of them can live in memory that outlives the process.
// The handle is not kept: a ring belongs to one vbd, whatever the guest says.
type Request struct {
	ID        uint64 // the guest's own; echoed, all 64 bits
	Sector    uint64 // first sector on the disk
	NrSectors uint64 // of a discard
	Op        Op
	Inner     Op     // of an indirect request: what it asks for
	Flag      uint8  // of a discard: bit 0 asks for a secure one; see Check
	NrSegs    uint16 // as the guest sent it; Segs holds no more than MaxSegments
	Segs      [MaxSegments]Segment
}

// AnswerOp is the operation that the response must name: the request's, or
// for an indirect one the operation inside, which is what Linux' blkfront
// compares it with.
func (r *Request) AnswerOp() Op {
	if r.Op == OpIndirect {
		return r.Inner
	}
	return r.Op
}

// Segments returns the segments of a request that passed Check.
func (r *Request) Segments() []Segment { return r.Segs[:r.NrSegs] }

// DataBytes is how much data a request that passed Check moves.
func (r *Request) DataBytes() int {
	n := 0
	for i := range r.Segs[:r.NrSegs] {
		n += r.Segs[i].Bytes()
	}
	return n
}

// Offset is where on the disk a request that passed Check begins, in bytes.
// It means nothing of a flush or barrier without segments: then Check has not
// looked at Sector.
func (r *Request) Offset() int64 { return int64(r.Sector) * SectorBytes }

// DiscardBytes is how much a discard that passed Check gives back. It may be
// none, and as much as the whole vbd.
func (r *Request) DiscardBytes() int64 { return int64(r.NrSectors) * SectorBytes }

// Limits are what a vbd offers. A request outside them is refused.
type Limits struct {
	Sectors  uint64 // size of the vbd
	ReadOnly bool
	Flush    bool // feature-flush-cache
	Barrier  bool // feature-barrier
	Discard  bool // feature-discard; discard-secure is never offered
}

// inside reports whether n sectors from first on are on the vbd. The
// subtraction cannot wrap once n <= Sectors.
func (l *Limits) inside(first, n uint64) bool {
	return n <= l.Sectors && first <= l.Sectors-n
}

// Check decides whether a request may be served; StatusOK means yes, anything
// else is the answer. It applies the rules that Linux' xen-blkback applies
// (dispatch_rw_block_io, dispatch_discard_io, xen_vbd_translate), on the
// private copy only.
func Check(r *Request, l *Limits) Status {
	switch r.Op {
	case OpRead, OpWrite:
		return checkData(r, l)
	case OpFlush:
		return checkFlush(r, l, l.Flush)
	case OpBarrier:
		return checkFlush(r, l, l.Barrier)
	case OpDiscard:
		return checkDiscard(r, l)
	}
	// Indirect requests are not offered; the rest is unknown.
	return StatusNotSupp
}

// checkFlush lets a flush or barrier through that carries no data, or data
// that a write may carry: blkif.h allows both, and backends write it after
// the flush.
func checkFlush(r *Request, l *Limits, offered bool) Status {
	if !offered {
		return StatusNotSupp
	}
	if r.NrSegs == 0 {
		return StatusOK
	}
	return checkData(r, l)
}

func checkData(r *Request, l *Limits) Status {
	if r.Op != OpRead && l.ReadOnly {
		return StatusError
	}
	if r.NrSegs == 0 || r.NrSegs > MaxSegments {
		return StatusError
	}
	var n uint64
	for i := range r.Segs[:r.NrSegs] {
		s := &r.Segs[i]
		if s.First > s.Last || s.Last >= sectorsPerPage {
			return StatusError
		}
		n += uint64(s.Last-s.First) + 1
	}
	if !l.inside(r.Sector, n) {
		return StatusError
	}
	return StatusOK
}

// checkDiscard lets a discard through that lies on a vbd that may be written
// (CVE-2013-2140: it erases as a write does). Three things are no reason to
// refuse one:
//
//   - That it is of no sectors. SCSI's UNMAP may be, and win-xenvbd passes it
//     on (RingPrepareUnmap).
//   - That it is not aligned to discard-granularity, as blkif.h wants it.
//     Linux' blkfront does not see to it, nor xen-blkback.
//   - Its flag. BLKIF_DISCARD_SECURE is "ignored if discard-secure=0" (blkif.h),
//     which is what is offered, and early win-xenvbd leaves in that byte what
//     the slot had there (__FrontendInsertRequestOnRing). StatusNotSupp would
//     not mean "not secure" to a frontend but the end of all discards
//     (blkfront, blkif_interrupt; win-xenvbd, FrontendRemoveFeature).
func checkDiscard(r *Request, l *Limits) Status {
	if !l.Discard {
		return StatusNotSupp
	}
	if l.ReadOnly || !l.inside(r.Sector, r.NrSectors) {
		return StatusError
	}
	return StatusOK
}
