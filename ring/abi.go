package ring

import (
	"encoding/binary"
	"fmt"
	"runtime"
)

// ABI is the layout of requests and responses. 32-bit x86 aligns u64 to four
// bytes, everything else to eight, so the fields lie at other offsets.
type ABI uint8

const (
	Native ABI = iota // the layout of this machine's own C compiler
	X86_32            // protocol "x86_32-abi"
	X86_64            // protocol "x86_64-abi"
)

// String returns the value of the frontend's protocol node.
func (a ABI) String() string {
	switch a {
	case X86_32:
		return "x86_32-abi"
	case X86_64:
		return "x86_64-abi"
	}
	switch runtime.GOARCH {
	case "386":
		return "x86_32-abi"
	case "amd64":
		return "x86_64-abi"
	}
	return "arm-abi"
}

// ParseABI reads a frontend's protocol node. Where a frontend writes none
// (gnumach), backends on x86 take it to be a 32-bit one: Linux' xen-blkback
// (common.h, BLKIF_PROTOCOL_DEFAULT) and tapback do.
func ParseABI(protocol string) (ABI, error) {
	switch protocol {
	case "x86_32-abi":
		return X86_32, nil
	case "x86_64-abi":
		return X86_64, nil
	case "arm-abi":
		return Native, nil
	case "":
		if runtime.GOARCH == "amd64" {
			return X86_32, nil
		}
		return Native, nil // on 386 the same
	}
	return 0, fmt.Errorf("unknown protocol %.32q", protocol)
}

// layout holds the offsets of one ABI in bytes. Those that do not differ
// (operation 0, nr_segments 1, handle 2; of a discard flag 1; of an indirect
// request operation 1 and nr_segments 2) are constants of decode.
type layout struct {
	slot       int // size of a slot: the larger of request and response
	id         int
	sector     int // sector_number
	segs       int // seg[0] of a direct request
	discardLen int // nr_sectors of a discard
}

var (
	layout32 = layout{slot: 108, id: 4, sector: 12, segs: 20, discardLen: 20}
	layout64 = layout{slot: 112, id: 8, sector: 16, segs: 24, discardLen: 24}
)

func (a ABI) layout() *layout {
	if a == X86_32 || a == Native && runtime.GOARCH == "386" {
		return &layout32
	}
	return &layout64
}

const (
	headerBytes  = 64
	maxSlotBytes = 112
	segmentBytes = 8
	// responseBytes is what a response fills: id, operation, a byte of
	// padding, status. The slot's other bytes stay as they are.
	responseBytes = 12
)

// decode reads the private copy of a slot. It fills every field of r that its
// operation has and zeroes the others, but for Segs past NrSegs: those keep
// what an earlier request left.
func decode(b *[maxSlotBytes]byte, l *layout, r *Request) {
	le := binary.LittleEndian
	r.Op = Op(b[0])
	r.Inner, r.Flag, r.NrSectors = 0, 0, 0
	r.ID = le.Uint64(b[l.id:])
	r.Sector = le.Uint64(b[l.sector:])
	switch r.Op {
	case OpDiscard:
		r.NrSegs, r.Flag = 0, b[1]
		r.NrSectors = le.Uint64(b[l.discardLen:])
		return
	case OpIndirect:
		// The grants of the segment pages are not read yet: the feature
		// is not offered, so Check refuses the request.
		r.Inner = Op(b[1])
		r.NrSegs = le.Uint16(b[2:])
		return
	}
	r.NrSegs = uint16(b[1])
	n := min(int(r.NrSegs), MaxSegments)
	for i := range n {
		s := b[l.segs+i*segmentBytes:]
		r.Segs[i] = Segment{Ref: le.Uint32(s), First: s[4], Last: s[5]}
	}
}
