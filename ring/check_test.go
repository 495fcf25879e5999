package ring_test

import (
	"fmt"
	"math"
	"math/big"
	"testing"

	"xen-disk/ring"
)

// diskSectors is the size of the vbd of these tests.
const diskSectors = 1000

var (
	writable = ring.Limits{Sectors: diskSectors, Flush: true}
	readOnly = ring.Limits{Sectors: diskSectors, Flush: true, ReadOnly: true}
	barriers = ring.Limits{Sectors: diskSectors, Barrier: true}
	bare     = ring.Limits{Sectors: diskSectors}
	empty    = ring.Limits{Flush: true, Discard: true}
	huge     = ring.Limits{Sectors: math.MaxUint64, Discard: true}

	discards         = ring.Limits{Sectors: diskSectors, Flush: true, Discard: true}
	readOnlyDiscards = ring.Limits{Sectors: diskSectors, ReadOnly: true, Discard: true}
)

// data is a request of nr segments, each a whole page, at a sector.
func data(op, nr uint8, sector uint64) wire {
	w := wire{op: op, b1: nr, sector: sector}
	for i := range min(nr, 11) {
		w.segs = append(w.segs, wireSegment{gref: 100 + uint32(i), last: 7})
	}
	return w
}

// oneSegment is a request of one segment.
func oneSegment(op uint8, sector uint64, first, last uint8) wire {
	return wire{op: op, b1: 1, sector: sector, segs: []wireSegment{{8, first, last}}}
}

// discard is one without a flag.
func discard(sector, nrSectors uint64) wire {
	return wire{op: 5, sector: sector, nrSectors: nrSectors}
}

// nth spoils one segment of a request of eleven.
func nth(n int, first, last uint8) wire {
	w := data(1, 11, 0)
	w.segs[n].first, w.segs[n].last = first, last
	return w
}

type checkCase struct {
	name   string
	limits *ring.Limits
	w      wire
	want   ring.Status
}

// refused are the lies, each named.
var refused = []checkCase{
	{"no segment to read", &writable, data(0, 0, 0), ring.StatusError},
	{"no segment to write", &writable, data(1, 0, 0), ring.StatusError},
	{"twelve segments", &writable, data(0, 12, 0), ring.StatusError},
	{"255 segments", &writable, data(0, 255, 0), ring.StatusError},
	{"twelve segments to write", &writable, data(1, 12, 0), ring.StatusError},
	{"twelve segments to flush", &writable, data(3, 12, 0), ring.StatusError},
	{"255 segments to flush", &writable, data(3, 255, 0), ring.StatusError},
	{"255 segments in a barrier", &barriers, data(2, 255, 0), ring.StatusError},

	{"first after last", &writable, oneSegment(0, 0, 4, 3), ring.StatusError},
	{"first after last by seven", &writable, oneSegment(0, 0, 7, 0), ring.StatusError},
	{"first after last, both past the page", &writable, oneSegment(0, 0, 255, 254), ring.StatusError},
	{"last past the page", &writable, oneSegment(0, 0, 0, 8), ring.StatusError},
	{"last far past the page", &writable, oneSegment(0, 0, 0, 255), ring.StatusError},
	{"first and last past the page", &writable, oneSegment(0, 0, 8, 8), ring.StatusError},
	{"first and last far past the page", &writable, oneSegment(1, 0, 255, 255), ring.StatusError},
	{"first after last in the first of eleven", &writable, nth(0, 1, 0), ring.StatusError},
	{"last past the page in the sixth of eleven", &writable, nth(5, 0, 8), ring.StatusError},
	{"last past the page in the last of eleven", &writable, nth(10, 0, 255), ring.StatusError},
	{"bad segment in a flush", &writable, oneSegment(3, 0, 0, 8), ring.StatusError},

	{"one past the end", &writable, oneSegment(0, diskSectors, 0, 0), ring.StatusError},
	{"last sector and one more", &writable, oneSegment(0, diskSectors-1, 0, 1), ring.StatusError},
	{"last sector and one more to write", &writable, oneSegment(1, diskSectors-1, 0, 1), ring.StatusError},
	{"eleven pages, the last sector past the end", &writable, data(0, 11, diskSectors-87), ring.StatusError},
	{"sector whose byte offset wraps int64", &writable, oneSegment(0, 1<<54, 0, 0), ring.StatusError},
	{"sector whose byte offset wraps uint64", &writable, oneSegment(0, 1<<55, 0, 0), ring.StatusError},
	{"sector 2^63", &writable, oneSegment(1, 1<<63, 0, 0), ring.StatusError},
	{"sector 2^64-1", &writable, oneSegment(1, math.MaxUint64, 0, 0), ring.StatusError},
	{"sector 2^64-1 and one more, which wraps to 1", &writable, oneSegment(1, math.MaxUint64, 0, 1), ring.StatusError},
	{"sector 2^64-88 of eleven pages, which wraps to 0", &writable, data(1, 11, 1<<64-88), ring.StatusError},
	{"flush with data past the end", &writable, oneSegment(3, diskSectors, 0, 0), ring.StatusError},
	{"read of an empty vbd", &empty, oneSegment(0, 0, 0, 0), ring.StatusError},

	{"write to a read-only vbd", &readOnly, oneSegment(1, 0, 0, 0), ring.StatusError},
	{"flush with data to a read-only vbd", &readOnly, oneSegment(3, 0, 0, 0), ring.StatusError},

	{"barrier not offered", &writable, data(2, 0, 0), ring.StatusNotSupp},
	{"barrier with data not offered", &writable, data(2, 1, 0), ring.StatusNotSupp},
	{"flush not offered", &bare, data(3, 0, 0), ring.StatusNotSupp},
	{"flush with data not offered", &bare, data(3, 1, 0), ring.StatusNotSupp},
	{"discard not offered", &writable, discard(0, 8), ring.StatusNotSupp},
	{"discard not offered of a read-only vbd", &readOnly, discard(0, 8), ring.StatusNotSupp},
	{"discard not offered of 2^64-1 sectors", &writable, discard(0, math.MaxUint64), ring.StatusNotSupp},
	{"secure discard not offered", &writable, wire{op: 5, b1: 1, nrSectors: 8}, ring.StatusNotSupp},

	{"discard of a read-only vbd", &readOnlyDiscards, discard(0, 8), ring.StatusError},
	{"discard of no sector of a read-only vbd", &readOnlyDiscards, discard(0, 0), ring.StatusError},
	{"discard of one sector past the end", &discards, discard(diskSectors, 1), ring.StatusError},
	{"discard of the last sector and one more", &discards, discard(diskSectors-1, 2), ring.StatusError},
	{"discard of the whole vbd and one more", &discards, discard(0, diskSectors+1), ring.StatusError},
	{"discard of no sector past the end", &discards, discard(diskSectors+1, 0), ring.StatusError},
	{"discard of no sector at 2^64-1", &discards, discard(math.MaxUint64, 0), ring.StatusError},
	{"discard of 2^64-1 sectors", &discards, discard(0, math.MaxUint64), ring.StatusError},
	{"discard of 2^64-1 sectors from 1, which wraps to 0", &discards, discard(1, math.MaxUint64), ring.StatusError},
	{"discard of 2^64-8 sectors from 16, which wraps to 8", &discards, discard(16, 1<<64-8), ring.StatusError},
	{"discard at 2^64-1 of two sectors, which wraps to 1", &discards, discard(math.MaxUint64, 2), ring.StatusError},
	{"discard at 2^63 of 2^63 sectors, which wraps to 0", &discards, discard(1<<63, 1<<63), ring.StatusError},
	{"discard whose length in bytes wraps int64", &discards, discard(0, 1<<54), ring.StatusError},
	{"discard whose length in bytes wraps to 0", &discards, discard(0, 1<<55), ring.StatusError},
	{"discard whose length in bytes wraps to 4096", &discards, discard(0, 1<<55|8), ring.StatusError},
	{"discard whose byte offset wraps to 4096", &discards, discard(1<<55|8, 8), ring.StatusError},
	{"discard of an empty vbd", &empty, discard(0, 1), ring.StatusError},
	{"secure discard past the end", &discards, wire{op: 5, b1: 1, sector: diskSectors, nrSectors: 1}, ring.StatusError},

	{"indirect not offered", &writable, wire{op: 6, b1: 0, b2: 32}, ring.StatusNotSupp},
	{"indirect of no segment", &writable, wire{op: 6, b1: 1, b2: 0}, ring.StatusNotSupp},
	{"indirect of 65535 segments", &writable, wire{op: 6, b1: 0, b2: 65535}, ring.StatusNotSupp},
	{"indirect in an indirect", &writable, wire{op: 6, b1: 6, b2: 1}, ring.StatusNotSupp},
	{"indirect of an unknown operation", &writable, wire{op: 6, b1: 255, b2: 1}, ring.StatusNotSupp},
}

// served are the requests next to the lies, which are honest or hurt nobody
// but their guest.
var served = []checkCase{
	{"read of the first sector", &writable, oneSegment(0, 0, 0, 0), ring.StatusOK},
	{"read of the last sector", &writable, oneSegment(0, diskSectors-1, 0, 0), ring.StatusOK},
	{"write of the last two sectors", &writable, oneSegment(1, diskSectors-2, 6, 7), ring.StatusOK},
	{"eleven pages up to the end", &writable, data(1, 11, diskSectors-88), ring.StatusOK},
	{"eleven pages", &writable, data(0, 11, 0), ring.StatusOK},
	{"a vbd of all sectors there are", &huge, oneSegment(0, 1<<64-2, 0, 0), ring.StatusOK},
	{"read of a read-only vbd", &readOnly, oneSegment(0, 0, 0, 7), ring.StatusOK},
	{"flush", &writable, data(3, 0, 0), ring.StatusOK},
	{"flush of a read-only vbd", &readOnly, data(3, 0, 0), ring.StatusOK},
	{"flush of an empty vbd", &empty, data(3, 0, 0), ring.StatusOK},
	{"flush names a sector that it does not use", &writable, data(3, 0, math.MaxUint64), ring.StatusOK},
	{"flush with data", &writable, data(3, 2, 0), ring.StatusOK},
	{"barrier", &barriers, data(2, 0, 0), ring.StatusOK},
	{"barrier with data", &barriers, data(2, 11, 0), ring.StatusOK},
	{"discard of the first sector", &discards, discard(0, 1), ring.StatusOK},
	{"discard of the last sector", &discards, discard(diskSectors-1, 1), ring.StatusOK},
	{"discard of the whole vbd", &discards, discard(0, diskSectors), ring.StatusOK},
	{"discard of all sectors there are", &huge, discard(0, math.MaxUint64), ring.StatusOK},
	{"discard of no sector", &discards, discard(8, 0), ring.StatusOK},
	{"discard of no sector at the end", &discards, discard(diskSectors, 0), ring.StatusOK},
	{"discard of no sector of an empty vbd", &empty, discard(0, 0), ring.StatusOK},
	{"discard that asks to be secure", &discards, wire{op: 5, b1: 1, nrSectors: 8}, ring.StatusOK},
	{"discard with rubbish for a flag", &discards, wire{op: 5, b1: 255, nrSectors: 8}, ring.StatusOK},
	{"discard with the handle of another vbd", &discards, wire{op: 5, b2: 0xffff, nrSectors: 8}, ring.StatusOK},
	{"one grant twice", &writable, wire{op: 1, b1: 2, segs: []wireSegment{{8, 0, 7}, {8, 0, 7}}}, ring.StatusOK},
	{"grants 0 and 2^32-1", &writable, wire{op: 0, b1: 2, segs: []wireSegment{{0, 0, 7}, {math.MaxUint32, 0, 7}}}, ring.StatusOK},
	{"handle of another vbd", &writable, wire{op: 0, b1: 1, b2: 0xffff, segs: []wireSegment{{8, 0, 0}}}, ring.StatusOK},
	{"rubbish behind the last segment", &writable, wire{op: 0, b1: 1, segs: []wireSegment{{8, 0, 0}, {9, 255, 255}}}, ring.StatusOK},
	{"rubbish behind an empty flush", &writable, wire{op: 3, segs: []wireSegment{{9, 255, 255}}}, ring.StatusOK},
}

// unknown are the operations that blkif.h does not know: 4 is reserved.
func unknown() []checkCase {
	var cases []checkCase
	for op := 4; op < 256; op++ {
		if op == 5 || op == 6 {
			continue
		}
		name := fmt.Sprintf("operation %d", op)
		cases = append(cases, checkCase{name, &writable, data(uint8(op), 1, 0), ring.StatusNotSupp})
	}
	return cases
}

// TestCheck sends each through a ring and answers it, as the guest sees it.
func TestCheck(t *testing.T) {
	cases := append(append(unknown(), refused...), served...)
	for _, abi := range abis {
		f, b := pair(t, 1, abi, math.MaxUint32-100)
		for i, c := range cases {
			t.Run(abi.String()+"/"+c.name, func(t *testing.T) {
				w := c.w
				w.id = 1<<63 | uint64(i)
				r := roundTrip(t, f, b, w)
				status := ring.Check(r, c.limits)
				if status != c.want {
					t.Errorf("Check: got %d, want %d", status, c.want)
				}
				if status == ring.StatusOK {
					wantInBounds(t, r, c.limits)
				}
				b.Put(r.ID, r.AnswerOp(), status)
				b.Publish()
				op := w.op
				if op == 6 {
					op = w.b1 // blkfront compares with the inner operation
				}
				want := response{w.id, op, int16(c.want)}
				if rs, err := f.take(); err != nil || len(rs) != 1 || rs[0] != want {
					t.Errorf("response: got %v, %v, want %v", rs, err, want)
				}
			})
		}
	}
}

// wantInBounds holds what everybody behind Check relies on, computed another
// way than Check does.
func wantInBounds(tb testing.TB, r *ring.Request, l *ring.Limits) {
	tb.Helper()
	if r.Op == ring.OpDiscard {
		wantDiscardInBounds(tb, r, l)
		return
	}
	if r.Op > ring.OpFlush {
		tb.Fatalf("%v passed", r.Op)
	}
	if l.ReadOnly && r.Op != ring.OpRead && r.NrSegs > 0 {
		tb.Fatalf("%v of %d segments passed on a read-only vbd", r.Op, r.NrSegs)
	}
	if len(r.Segments()) > 11 {
		tb.Fatalf("%d segments passed", r.NrSegs)
	}
	total := 0
	for i := range r.Segments() {
		s := &r.Segs[i]
		if s.Offset() < 0 || s.Bytes() < 512 || s.Offset()+s.Bytes() > 4096 {
			tb.Fatalf("segment %d passed: bytes %d to %d of a page", i, s.Offset(), s.Offset()+s.Bytes())
		}
		total += s.Bytes()
	}
	if total != r.DataBytes() || total > ring.MaxRequestBytes {
		tb.Fatalf("%d bytes passed, DataBytes says %d", total, r.DataBytes())
	}
	if total == 0 {
		if r.Op != ring.OpFlush && r.Op != ring.OpBarrier {
			tb.Fatalf("%v of nothing passed", r.Op)
		}
		return
	}
	// Sector by sector, without a sum that could wrap.
	for n := range uint64(total / 512) {
		if s := r.Sector + n; s < r.Sector || s >= l.Sectors {
			tb.Fatalf("sector %d passed on a vbd of %d", s, l.Sectors)
		}
	}
}

// wantDiscardInBounds is wantInBounds with numbers that do not wrap.
func wantDiscardInBounds(tb testing.TB, r *ring.Request, l *ring.Limits) {
	tb.Helper()
	if l.ReadOnly || !l.Discard {
		tb.Fatalf("a discard passed with %+v", l)
	}
	if len(r.Segments()) != 0 || r.DataBytes() != 0 {
		tb.Fatalf("a discard has %d segments of %d bytes", r.NrSegs, r.DataBytes())
	}
	end := new(big.Int).SetUint64(r.Sector)
	end.Add(end, new(big.Int).SetUint64(r.NrSectors))
	if end.Cmp(new(big.Int).SetUint64(l.Sectors)) > 0 {
		tb.Fatalf("a discard of %d sectors from %d passed on a vbd of %d", r.NrSectors, r.Sector, l.Sectors)
	}
	if l.Sectors < 1<<54 && r.DiscardBytes()/512 != int64(r.NrSectors) {
		tb.Fatalf("a discard of %d sectors is %d bytes", r.NrSectors, r.DiscardBytes())
	}
}

// TestDiscardHasNoSegments: what lies where another request has its segments,
// and the byte that counts them, mean nothing in a discard.
func TestDiscardHasNoSegments(t *testing.T) {
	for _, abi := range append([]ring.ABI{ring.Native}, abis...) {
		f, b := pair(t, 1, abi, 0)
		for flag := range 256 {
			slot := f.slot(f.reqPvt)
			for i := range slot {
				slot[i] = 0xff
			}
			r := roundTrip(t, f, b, wire{op: 5, b1: uint8(flag), b2: 0xffff, id: 7, sector: 1, nrSectors: 2})
			want := ring.Request{Op: ring.OpDiscard, ID: 7, Flag: uint8(flag), Sector: 1, NrSectors: 2}
			if *r != want {
				t.Fatalf("%v: got %+v, want %+v", abi, *r, want)
			}
			if r.AnswerOp() != ring.OpDiscard || ring.Check(r, &discards) != ring.StatusOK {
				t.Fatalf("%v, flag %d: answered as %v with %d", abi, flag, r.AnswerOp(), ring.Check(r, &discards))
			}
			wantInBounds(t, r, &discards)
			b.Put(r.ID, r.AnswerOp(), ring.StatusOK)
			b.Publish()
			if _, err := f.take(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSegmentBytes(t *testing.T) {
	for first := range uint8(8) {
		for last := first; last < 8; last++ {
			s := ring.Segment{First: first, Last: last}
			if got, want := s.Bytes(), int(last-first+1)*512; got != want {
				t.Errorf("%d to %d: got %d bytes, want %d", first, last, got, want)
			}
			if got, want := s.Offset(), int(first)*512; got != want {
				t.Errorf("%d to %d: got offset %d, want %d", first, last, got, want)
			}
		}
	}
	r := ring.Request{Sector: 1 << 32}
	if got := r.Offset(); got != 1<<41 {
		t.Errorf("offset of sector 2^32: got %d, want 2^41", got)
	}
	r.NrSectors = 1 << 33
	if got := r.DiscardBytes(); got != 1<<42 {
		t.Errorf("a discard of 2^33 sectors: got %d bytes, want 2^42", got)
	}
}

func TestOpStrings(t *testing.T) {
	want := map[ring.Op]string{0: "read", 1: "write", 2: "barrier", 3: "flush",
		4: "op 4", 5: "discard", 6: "indirect", 255: "op 255"}
	for op, s := range want {
		if got := op.String(); got != s {
			t.Errorf("operation %d: got %q, want %q", uint8(op), got, s)
		}
	}
}
