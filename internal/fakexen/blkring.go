package fakexen

import (
	"encoding/binary"
	"math/bits"
)

// Operations and statuses (xen/include/public/io/blkif.h).
const (
	OpRead     = 0
	OpWrite    = 1
	OpBarrier  = 2
	OpFlush    = 3
	OpDiscard  = 5
	OpIndirect = 6

	StatusOkay         = 0
	StatusError        = -1
	StatusNotSupported = -2
)

const (
	sectorSize      = 512
	pageSectors     = PageSize / sectorSize
	maxSegments     = 11  // BLKIF_MAX_SEGMENTS_PER_REQUEST
	maxIndirect     = 8   // BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST
	segsPerIndirect = 512 // in one page, of 8 bytes each

	offReqProd, offReqEvent = 0, 4
	offRspProd, offRspEvent = 8, 12
	offSlots                = 64

	// filler is what a slot and a page hold where the frontend has set
	// nothing, so that a byte that comes back changed is noticed.
	filler = 0xaa
)

// A layout is where a guest's compiler put the fields of a slot: on x86_32 a
// u64 is aligned to 4 bytes, elsewhere to 8.
type layout struct {
	slot     int // bytes of a slot, the larger of request and response
	id       int // of requests; in responses it is at 0
	sector   int
	segs     int // segments of READ, WRITE, BARRIER and FLUSH
	nr       int // nr_sectors of DISCARD
	handle   int // of INDIRECT, u16
	grefs    int // of INDIRECT, u32 each
	response int // bytes of a response
}

var (
	layout64 = layout{slot: 112, id: 8, sector: 16, segs: 24, nr: 24, handle: 24, grefs: 28, response: 16}
	layout32 = layout{slot: 108, id: 4, sector: 12, segs: 20, nr: 20, handle: 20, grefs: 24, response: 12}
)

func layoutOf(abi string) layout {
	if abi == "x86_32-abi" {
		return layout32
	}
	return layout64
}

// entries is how many slots a ring of that many pages has.
func (l layout) entries(pages int) uint32 {
	n := uint(pages*PageSize-offSlots) / uint(l.slot)
	return 1 << (bits.Len(n) - 1)
}

// A Seg is a segment of a request: sectors First to Last, both included, of
// the page that Ref grants.
type Seg struct {
	Ref         uint32
	First, Last uint8
}

func putSeg(b []byte, s Seg) {
	binary.LittleEndian.PutUint32(b, s.Ref)
	b[4], b[5] = s.First, s.Last // 6 and 7 are padding
}

// A RawReq is a request as it stands in a slot; nothing in it is checked.
type RawReq struct {
	Op     uint8
	Flag   uint8 // byte 1: nr_segments, flag of a discard, or indirect_op
	Handle uint16
	ID     uint64
	Sector uint64

	Segs      []Seg    // at most 11
	NrSectors uint64   // DISCARD
	NrSegs    uint16   // INDIRECT
	Refs      []uint32 // INDIRECT: at most 8 pages of segments
}

// encode makes a slot; what the request does not set is filler.
func (l layout) encode(r RawReq) []byte {
	le := binary.LittleEndian
	b := make([]byte, l.slot)
	for i := range b {
		b[i] = filler
	}
	b[0], b[1] = r.Op, r.Flag
	le.PutUint64(b[l.id:], r.ID)
	le.PutUint64(b[l.sector:], r.Sector)
	switch r.Op {
	case OpIndirect:
		le.PutUint16(b[2:], r.NrSegs)
		le.PutUint16(b[l.handle:], r.Handle)
		for i, ref := range r.Refs {
			le.PutUint32(b[l.grefs+4*i:], ref)
		}
	case OpDiscard:
		le.PutUint16(b[2:], r.Handle)
		le.PutUint64(b[l.nr:], r.NrSectors)
	default:
		le.PutUint16(b[2:], r.Handle)
		for i, s := range r.Segs {
			putSeg(b[l.segs+8*i:], s)
		}
	}
	return b
}

// A Response is what a backend put into a slot.
type Response struct {
	ID     uint64
	Op     uint8
	Status int16
}

func decodeResponse(slot []byte) Response {
	le := binary.LittleEndian
	return Response{ID: le.Uint64(slot), Op: slot[8], Status: int16(le.Uint16(slot[10:]))}
}

// leak compares a slot with what was in it before the response: padding may be
// zero or unchanged, and bytes after the response must be unchanged, else they
// may be the backend's memory (XSA-216). It returns the first bad offset, or
// -1.
func (l layout) leak(before, after []byte) int {
	for i := 9; i < len(after); i++ {
		switch {
		case i == 10 || i == 11 || after[i] == before[i]:
		case i < l.response && after[i] == 0:
		default:
			return i
		}
	}
	return -1
}
