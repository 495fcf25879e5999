package ring_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"xen-disk/ring"
)

// The frontend of these tests is written from blkif.h and ring.h and shares no
// code with the package: offsets are literals, and the number of slots is a
// table.

var abis = []ring.ABI{ring.X86_32, ring.X86_64}

// ringSlots is __RING_SIZE by pages; both ABIs have the same.
var ringSlots = map[int]uint32{1: 32, 2: 64, 4: 128, 8: 256, 16: 512}

// is32 says whether an ABI aligns u64 to four bytes.
func is32(abi ring.ABI) bool {
	return abi == ring.X86_32 || abi == ring.Native && runtime.GOARCH == "386"
}

// mapRing returns pages that are mapped, not allocated: the race detector
// leaves them alone, as it leaves grants alone.
func mapRing(tb testing.TB, pages int) []byte {
	tb.Helper()
	mem, err := syscall.Mmap(-1, 0, pages*4096,
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANON)
	if err != nil {
		tb.Fatalf("mmap: %v", err)
	}
	tb.Cleanup(func() {
		if err := syscall.Munmap(mem); err != nil {
			tb.Errorf("munmap: %v", err)
		}
	})
	return mem
}

type wireSegment struct {
	gref        uint32
	first, last uint8
}

// wire is a request as a guest means it, or as it lies.
type wire struct {
	op         uint8
	b1         uint8  // nr_segments; flag of a discard; indirect_op
	b2         uint16 // handle; nr_segments of an indirect request
	id, sector uint64
	segs       []wireSegment
	nrSectors  uint64 // of a discard
}

// front is the frontend's end of a ring.
type front struct {
	mem              []byte
	abi              ring.ABI
	size             uint32
	slotBytes        int
	reqPvt, rspCons  uint32
	idAt, sectAt     int
	segAt            int
	reqPushed        uint32
	reqEvent, rspIdx int // offsets of what the frontend reads
}

// newFront initialises fresh pages as SHARED_RING_INIT does, except that the
// indices begin at start.
func newFront(mem []byte, abi ring.ABI, start uint32) *front {
	f := &front{mem: mem, abi: abi, size: ringSlots[len(mem)/4096], reqEvent: 4, rspIdx: 8}
	f.slotBytes, f.idAt, f.sectAt, f.segAt = 112, 8, 16, 24
	if is32(abi) {
		f.slotBytes, f.idAt, f.sectAt, f.segAt = 108, 4, 12, 20
	}
	f.reqPvt, f.rspCons, f.reqPushed = start, start, start
	word(mem, 0).Store(start)
	word(mem, 4).Store(start + 1)
	word(mem, 8).Store(start)
	word(mem, 12).Store(start + 1)
	return f
}

func (f *front) free() uint32 { return f.size - (f.reqPvt - f.rspCons) }

// slot is the slot of a free-running index.
func (f *front) slot(i uint32) []byte {
	at := 64 + int(i%f.size)*f.slotBytes
	return f.mem[at : at+f.slotBytes]
}

func (f *front) encode(s []byte, w wire) {
	le := binary.LittleEndian
	s[0], s[1] = w.op, w.b1
	le.PutUint16(s[2:], w.b2)
	le.PutUint64(s[f.idAt:], w.id)
	le.PutUint64(s[f.sectAt:], w.sector)
	if w.op == 5 {
		le.PutUint64(s[f.segAt:], w.nrSectors)
		return
	}
	for i, seg := range w.segs {
		at := f.segAt + 8*i
		le.PutUint32(s[at:], seg.gref)
		s[at+4], s[at+5] = seg.first, seg.last
	}
}

// put writes a request where the backend does not look until push.
func (f *front) put(w wire) {
	f.encode(f.slot(f.reqPvt), w)
	f.reqPvt++
}

// push is RING_PUSH_REQUESTS_AND_CHECK_NOTIFY. Its xen_mb is a Swap, since a
// Store is none in a -race build.
func (f *front) push() (notify bool) {
	old := f.reqPushed
	f.reqPushed = f.reqPvt
	word(f.mem, 0).Swap(f.reqPvt)
	return f.reqPvt-word(f.mem, f.reqEvent).Load() < f.reqPvt-old
}

type response struct {
	id     uint64
	op     uint8
	status int16
}

// take consumes the responses that are published, through the frontend's own
// check of rsp_prod (RING_RESPONSE_PROD_OVERFLOW).
func (f *front) take() ([]response, error) {
	prod := word(f.mem, f.rspIdx).Load()
	if prod-f.rspCons > f.reqPvt-f.rspCons {
		return nil, fmt.Errorf("rsp_prod %d is past req_prod %d", prod, f.reqPvt)
	}
	var rs []response
	for ; f.rspCons != prod; f.rspCons++ {
		s := f.slot(f.rspCons)
		rs = append(rs, response{
			id: binary.LittleEndian.Uint64(s), op: s[8],
			status: int16(binary.LittleEndian.Uint16(s[10:])),
		})
	}
	return rs, nil
}

// arm is RING_FINAL_CHECK_FOR_RESPONSES.
func (f *front) arm() (more bool) {
	word(f.mem, 12).Swap(f.rspCons + 1)
	return word(f.mem, f.rspIdx).Load() != f.rspCons
}

// pair maps a ring, with a frontend and the backend under test on it.
func pair(tb testing.TB, pages int, abi ring.ABI, start uint32) (*front, *ring.Back) {
	tb.Helper()
	f := newFront(mapRing(tb, pages), abi, start)
	b, err := ring.New(f.mem, abi)
	if err != nil {
		tb.Fatalf("New: %v", err)
	}
	return f, b
}

// pending is Pending of a ring that must be whole.
func pending(tb testing.TB, b *ring.Back) int {
	tb.Helper()
	n, err := b.Pending()
	if err != nil {
		tb.Fatalf("Pending: %v", err)
	}
	return n
}

// readWire is a read that Check lets through.
func readWire(id uint64) wire {
	return wire{op: 0, b1: 1, id: id, segs: []wireSegment{{gref: 8, last: 7}}}
}

// roundTrip sends one request and pulls it.
func roundTrip(tb testing.TB, f *front, b *ring.Back, w wire) *ring.Request {
	tb.Helper()
	f.put(w)
	f.push()
	if n := pending(tb, b); n != 1 {
		tb.Fatalf("Pending: got %d, want 1", n)
	}
	var r ring.Request
	b.Pull(&r)
	return &r
}

// encodeHead writes what a response overwrites of a request.
func (f *front) encodeHead(s []byte, w wire) {
	w.segs = nil
	f.encode(s, w)
}
