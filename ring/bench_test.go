package ring_test

import (
	"reflect"
	"testing"

	"xen-disk/ring"
)

var offered = ring.Limits{Sectors: 1 << 30, Flush: true, Discard: true}

// elevenSegments is the largest direct request: all of its slot is in use.
func elevenSegments(id uint64) wire {
	w := wire{op: 1, b1: 11, id: id, sector: 4096}
	for i := range uint32(11) {
		w.segs = append(w.segs, wireSegment{gref: 100 + i, first: 0, last: 7})
	}
	return w
}

// elevenSegmentsHead is elevenSegments without the segments, which a response
// does not overwrite.
var elevenSegmentsHead = wire{op: 1, b1: 11, id: 1, sector: 4096}

// batch is one turn of a backend: Pending, Pull and Check all, Put all,
// Publish, Rearm.
func batch(tb testing.TB, b *ring.Back, reqs []ring.Request) int {
	n, err := b.Pending()
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		b.Pull(&reqs[i])
	}
	for i := range n {
		r := &reqs[i]
		b.Put(r.ID, r.AnswerOp(), ring.Check(r, &offered))
	}
	b.Publish()
	b.Rearm()
	return n
}

func TestBatchDoesNotAllocate(t *testing.T) {
	for _, abi := range abis {
		f, b := pair(t, 1, abi, 0)
		reqs := make([]ring.Request, b.Size())
		for i := range f.size {
			f.encode(f.slot(i), elevenSegments(uint64(i)))
		}
		allocs := testing.AllocsPerRun(1000, func() {
			for i := range f.size {
				f.encodeHead(f.slot(i), elevenSegmentsHead)
				if i%2 == 1 {
					f.encode(f.slot(i), wire{op: 5, b1: 1, id: 1, sector: 4096, nrSectors: 1 << 20})
				}
			}
			f.reqPvt += f.size
			f.push()
			if n := batch(t, b, reqs); n != int(f.size) {
				t.Fatalf("pulled %d, want %d", n, f.size)
			}
			if n := reqs[0].DataBytes(); n != 11*4096 {
				t.Fatalf("a request of %d bytes, want %d", n, 11*4096)
			}
			if n := reqs[1].DiscardBytes(); n != 512<<20 {
				t.Fatalf("a discard of %d bytes, want %d", n, 512<<20)
			}
		})
		if allocs != 0 {
			t.Errorf("%v: %v allocations a batch, want 0", abi, allocs)
		}
	}
}

// TestRequestIsFlat holds what lets an array of requests live in memory that
// outlives the process: no pointers, and a size that both sides of such a
// handover know.
func TestRequestIsFlat(t *testing.T) {
	if got := sizeOf(ring.Request{}); got != 120 {
		t.Errorf("a Request is %d bytes, want 120", got)
	}
	if got := sizeOf(ring.Segment{}); got != 8 {
		t.Errorf("a Segment is %d bytes, want 8", got)
	}
	wantFlat(t, "Request", reflect.TypeFor[ring.Request]())
}

func wantFlat(t *testing.T, path string, typ reflect.Type) {
	switch k := typ.Kind(); k {
	case reflect.Struct:
		for i := range typ.NumField() {
			f := typ.Field(i)
			wantFlat(t, path+"."+f.Name, f.Type)
		}
	case reflect.Array:
		wantFlat(t, path+"[]", typ.Elem())
	case reflect.Bool, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
	default:
		t.Errorf("%s is a %v: not flat", path, k)
	}
}

// BenchmarkTurn is a batch of 32 on a ring of one page; an op is one request.
func BenchmarkTurn(b *testing.B) {
	for _, abi := range abis {
		for _, segs := range []uint8{1, 11} {
			name := map[uint8]string{1: "/4KiB", 11: "/44KiB"}[segs]
			b.Run(abi.String()+name, func(b *testing.B) { benchmarkTurn(b, abi, segs) })
		}
	}
}

func benchmarkTurn(b *testing.B, abi ring.ABI, segs uint8) {
	f, back := pair(b, 1, abi, 0)
	reqs := make([]ring.Request, back.Size())
	w := elevenSegments(1)
	w.b1, w.segs = segs, w.segs[:segs]
	b.ReportAllocs()
	for done := 0; done < b.N; done += int(f.size) {
		// The responses overwrote the heads of the requests; a guest
		// would write all of each, so this costs less than a guest does.
		for i := range f.size {
			f.encodeHead(f.slot(i), w)
		}
		if done < int(f.size) {
			for i := range f.size {
				f.encode(f.slot(i), w)
			}
		}
		f.reqPvt += f.size
		f.push()
		batch(b, back, reqs)
	}
	if reqs[0].DataBytes() != int(segs)*4096 {
		b.Fatalf("pulled %d bytes, want %d", reqs[0].DataBytes(), int(segs)*4096)
	}
}
