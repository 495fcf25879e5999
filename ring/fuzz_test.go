package ring_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"xen-disk/ring"
)

func abiOf(b uint8) ring.ABI { return ring.ABI(b % 3) }

// FuzzPage gives the backend a page that holds anything, and drives it the way
// blkback does: nothing panics or runs on, what passes Check is in bounds, and
// there is always a record for a request (the arena never runs dry).
func FuzzPage(f *testing.F) {
	f.Add([]byte{}, uint8(1), uint8(0))
	f.Add([]byte{32, 0, 0, 0}, uint8(2), uint8(3))
	f.Add([]byte{33, 0, 0, 0}, uint8(1), uint8(0))
	f.Add([]byte{255, 255, 255, 255}, uint8(0), uint8(7))
	f.Add(bytes.Repeat([]byte{0xff}, 4096), uint8(1), uint8(1))
	for _, abi := range abis {
		f.Add(discardPage(f, abi), uint8(abi), uint8(2))
	}
	f.Fuzz(func(t *testing.T, page []byte, abi, hold uint8) {
		mem := mapRing(t, 1)
		copy(mem, page)
		b, err := ring.New(mem, abiOf(abi))
		if err != nil {
			if !errors.Is(err, ring.ErrBroken) {
				t.Fatalf("New of a whole page: %v", err)
			}
			return
		}
		drivePage(t, mem, b, int(hold))
	})
}

// discardPage is a ring full of discards, of lengths that wrap and that do not.
func discardPage(tb testing.TB, abi ring.ABI) []byte {
	f := newFront(mapRing(tb, 1), abi, 0)
	for i := range uint64(f.size) {
		f.put(wire{op: 5, b1: uint8(i), id: i, sector: i << (i * 2), nrSectors: math.MaxUint64 << (i * 2)})
	}
	f.push()
	return bytes.Clone(f.mem)
}

// drivePage serves what a page asks for. Up to hold requests stay unanswered
// each turn; req_prod moves on by what the requests' ids say, at times too far.
func drivePage(t *testing.T, mem []byte, b *ring.Back, hold int) {
	limits := ring.Limits{Sectors: 1 << 40, Flush: true, Barrier: true, Discard: true}
	arena := make([]ring.Request, b.Size())
	var free, busy []int
	for i := range arena {
		free = append(free, i)
	}
	for range 16 {
		n, err := b.Pending()
		if err != nil {
			if !errors.Is(err, ring.ErrBroken) {
				t.Fatalf("Pending: %v", err)
			}
			return
		}
		if n > len(free) || b.Outstanding() != len(busy) {
			t.Fatalf("%d pending, %d outstanding, %d free, %d busy", n, b.Outstanding(), len(free), len(busy))
		}
		step := uint32(n)
		for range n {
			i := free[0]
			free, busy = free[1:], append(busy, i)
			b.Pull(&arena[i])
			if ring.Check(&arena[i], &limits) == ring.StatusOK {
				wantInBounds(t, &arena[i], &limits)
			}
			step += uint32(arena[i].ID)
		}
		for len(busy) > hold%b.Size() {
			r := &arena[busy[0]]
			free, busy = append(free, busy[0]), busy[1:]
			b.Put(r.ID, r.AnswerOp(), ring.StatusError)
		}
		before := word(mem, 8).Load()
		notify := b.Publish()
		if notify && before == word(mem, 8).Load() {
			t.Fatal("notified without a response")
		}
		b.Rearm()
		word(mem, 0).Add(step % uint32(b.Size()+8))
	}
}

// decodeByHand reads a slot byte by byte from the table in blkif.h, in another
// way than the package does.
func decodeByHand(slot []byte, narrow bool) (r ring.Request, segs int) {
	le := func(at, n int) (v uint64) {
		for i := n - 1; i >= 0; i-- {
			v = v*256 + uint64(slot[at+i])
		}
		return v
	}
	pad := 4
	if narrow {
		pad = 0
	}
	r.Op = ring.Op(slot[0])
	r.ID, r.Sector = le(4+pad, 8), le(12+pad, 8)
	switch slot[0] {
	case 5:
		r.Flag, r.NrSectors = slot[1], le(20+pad, 8)
		return r, 0
	case 6:
		r.Inner, r.NrSegs = ring.Op(slot[1]), uint16(le(2, 2))
		return r, 0
	}
	r.NrSegs = uint16(slot[1])
	for segs < int(slot[1]) && segs < 11 {
		at := 20 + pad + 8*segs
		r.Segs[segs] = ring.Segment{Ref: uint32(le(at, 4)), First: slot[at+4], Last: slot[at+5]}
		segs++
	}
	return r, segs
}

// FuzzDecode compares each slot with an independent decoder, wherever on the
// ring it lies.
func FuzzDecode(f *testing.F) {
	for i, g := range goldenRequests {
		f.Add(unhex(f, g.slot), uint8(g.abi), uint32(i))
	}
	f.Add([]byte{0, 12}, uint8(1), uint32(31))
	f.Add([]byte{3, 255}, uint8(2), uint32(math.MaxUint32))
	f.Add([]byte{255, 1}, uint8(0), uint32(math.MaxUint32-1))
	f.Add(append([]byte{5}, bytes.Repeat([]byte{0xff}, 31)...), uint8(2), uint32(7))
	f.Add(append([]byte{5}, bytes.Repeat([]byte{0xff}, 31)...), uint8(1), uint32(31))
	f.Fuzz(func(t *testing.T, data []byte, abiByte uint8, index uint32) {
		abi := abiOf(abiByte)
		front, b := pair(t, 1, abi, index)
		slot := front.slot(index)
		copy(slot, data)
		front.reqPvt++
		front.push()
		if n := pending(t, b); n != 1 {
			t.Fatalf("Pending: got %d, want 1", n)
		}
		before := bytes.Clone(front.mem)
		var got ring.Request
		b.Pull(&got)
		if !bytes.Equal(front.mem, before) {
			t.Fatal("Pull wrote to the ring")
		}
		want, segs := decodeByHand(slot, is32(abi))
		if got != want {
			t.Fatalf("\ngot  %+v\nwant %+v (%d segments)", got, want, segs)
		}
		status := ring.Check(&got, &discards)
		if status == ring.StatusOK {
			wantInBounds(t, &got, &discards)
		}
		wantAnswer(t, front, b, &got, status, before)
	})
}

// wantAnswer answers a request and holds that eleven bytes of its slot and the
// index changed, nothing else.
func wantAnswer(t *testing.T, f *front, b *ring.Back, r *ring.Request, s ring.Status, before []byte) {
	t.Helper()
	at := f.rspCons
	b.Put(r.ID, r.AnswerOp(), s)
	b.Publish()
	rs, err := f.take()
	want := response{r.ID, uint8(r.AnswerOp()), int16(s)}
	if err != nil || len(rs) != 1 || rs[0] != want {
		t.Fatalf("response: got %v, %v, want %v", rs, err, want)
	}
	off := 64 + int(at%f.size)*f.slotBytes
	for i := range before {
		rsp := i >= off && i < off+12 && i != off+9
		if !rsp && (i < 8 || i >= 12) && f.mem[i] != before[i] {
			t.Fatalf("byte %d was written", i)
		}
	}
}
