package blkback

import (
	"fmt"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// lieSectors is how long the disk is that is lied to.
const lieSectors = 1000

// A lie is a malformed request, or one that merely looks so. One with the
// wrong grants is answered OKAY by a disk that looks at none.
type lie struct {
	name   string
	req    func(l *liar) fakexen.RawReq
	want   int16
	op     int  // of the response; -1: the request's
	grants bool // what is wrong is in the grants
	rest   bool // one of many alike, which one kind of disk is enough for
}

// A liar is a guest with pages for every kind of lie.
type liar struct {
	s       *served
	raw     *fakexen.Raw
	other   *served
	page    int
	good    uint32 // read-write
	ro      uint32 // the backend may only read it
	revoked uint32
	foreign uint32 // granted to domain 9
	id      uint64
}

func newLiar(s, other *served) *liar {
	l := &liar{s: s, raw: s.raw(), other: other, id: 0xfedc_ba98_7654_3210}
	l.page, l.good = l.raw.Page(false)
	l.ro = s.guest.Grant(l.page, 0, true)
	l.revoked = s.guest.Grant(l.page, 0, false)
	s.guest.Revoke(l.revoked)
	l.foreign = s.guest.Grant(l.page, 9, false)
	return l
}

func (l *liar) seg(ref uint32, first, last uint8) fakexen.Seg {
	return fakexen.Seg{Ref: ref, First: first, Last: last}
}

// rw is a request with segments, and as many as it says.
func rw(op uint8, sector uint64, segs ...fakexen.Seg) fakexen.RawReq {
	return fakexen.RawReq{Op: op, Flag: uint8(len(segs)), Sector: sector, Segs: segs}
}

func (l *liar) full(n int) []fakexen.Seg {
	segs := make([]fakexen.Seg, n)
	for i := range segs {
		segs[i] = l.seg(l.good, 0, 7)
	}
	return segs
}

// counts, shapes, ranges and grefs make the cases of the corpus.
func lies() []lie {
	var all []lie
	add := func(want int16, name string, req func(l *liar) fakexen.RawReq) {
		all = append(all, lie{name: name, req: req, want: want, op: -1})
	}
	for op := range 256 {
		if op != 0 && op != 1 && op != 3 && op != 6 {
			add(-2, fmt.Sprintf("op %d", op), func(l *liar) fakexen.RawReq {
				return rw(uint8(op), 0, l.full(1)...)
			})
			all[len(all)-1].rest = op > 8 && op < 255 && op&(op-1) != 0
		}
	}
	for _, op := range []uint8{0, 1, 3} {
		for _, n := range []uint8{0, 12, 255} {
			want := int16(-1)
			if op == 3 && n == 0 {
				want = 0 // an empty flush is the usual one
			}
			add(want, fmt.Sprintf("op %d of %d segments", op, n), func(l *liar) fakexen.RawReq {
				r := rw(op, 0, l.full(11)...)
				r.Flag = n
				return r
			})
		}
		for _, c := range [][2]uint8{{1, 0}, {7, 6}, {0, 8}, {8, 8}, {0, 255}, {255, 255}, {255, 0}, {8, 7}} {
			add(-1, fmt.Sprintf("op %d of sectors %d to %d of a page", op, c[0], c[1]), func(l *liar) fakexen.RawReq {
				return rw(op, 0, append(l.full(2), l.seg(l.good, c[0], c[1]))...)
			})
		}
		for _, c := range []struct {
			sector uint64
			n      uint8
		}{
			{lieSectors - 1, 2}, {lieSectors, 1}, {1 << 55, 1}, {1<<55 - 1, 2}, {1 << 54, 1},
			{1 << 63, 8}, {1<<64 - 1, 1}, {1<<64 - 1, 2}, {1<<64 - 8, 8},
		} {
			add(-1, fmt.Sprintf("op %d of %d sectors at %#x", op, c.n, c.sector), func(l *liar) fakexen.RawReq {
				return rw(op, c.sector, l.seg(l.good, 0, c.n-1))
			})
		}
	}
	return append(append(all, indirectLies()...), grantLies()...)
}

// indirectLies ask for what is not offered. The answer names the operation
// inside.
func indirectLies() []lie {
	var all []lie
	for _, inner := range []int{0, 1, 2, 3, 5, 6, 255} {
		for _, n := range []uint16{0, 1, 12, 257, 4097, 65535} {
			all = append(all, lie{name: fmt.Sprintf("indirect op %d of %d segments", inner, n), want: -2, op: inner,
				req: func(l *liar) fakexen.RawReq {
					return fakexen.RawReq{Op: fakexen.OpIndirect, Flag: uint8(inner), NrSegs: n,
						Refs: []uint32{l.good, l.good, 0, 0xffffffff}} // also as its data
				}})
		}
	}
	for _, c := range []struct{ sector, nr uint64 }{{0, 0}, {3, 1}, {lieSectors, 1}, {1<<64 - 1, 2}, {0, 1<<64 - 1}} {
		all = append(all, discardLie(-2, 0xff, c.sector, c.nr))
	}
	return all
}

func discardLie(want int16, flag uint8, sector, nr uint64) lie {
	return lie{name: fmt.Sprintf("discard of %d at %#x, flag %#x", nr, sector, flag), want: want, op: -1,
		req: func(*liar) fakexen.RawReq {
			return fakexen.RawReq{Op: fakexen.OpDiscard, Flag: flag, Handle: 0xffff, Sector: sector, NrSectors: nr}
		}}
}

func grantLies() []lie {
	var all []lie
	refs := map[string]func(l *liar) uint32{
		"gref 0":                func(*liar) uint32 { return 0 },
		"gref 0xffffffff":       func(*liar) uint32 { return 0xffffffff },
		"a revoked gref":        func(l *liar) uint32 { return l.revoked },
		"another domain's gref": func(l *liar) uint32 { return l.foreign },
	}
	for name, ref := range refs {
		for _, op := range []uint8{0, 1, 3} {
			for at := range 11 {
				all = append(all, lie{name: fmt.Sprintf("%s in segment %d of op %d", name, at, op), want: -1, op: -1, grants: true,
					req: func(l *liar) fakexen.RawReq {
						segs := l.full(11)
						segs[at].Ref = ref(l)
						return rw(op, 88, segs...)
					}})
			}
		}
	}
	ok := func(name string, req func(l *liar) fakexen.RawReq) {
		all = append(all, lie{name: name, req: req, op: -1})
	}
	all = append(all, lie{name: "a read into a read-only grant", want: -1, op: -1, grants: true,
		req: func(l *liar) fakexen.RawReq { return rw(0, 0, l.seg(l.ro, 0, 7)) }})
	ok("a write from a read-only grant", func(l *liar) fakexen.RawReq { return rw(1, 0, l.seg(l.ro, 0, 7)) })
	ok("the same gref in all segments", func(l *liar) fakexen.RawReq { return rw(0, 0, l.full(11)...) })
	ok("a write from the ring itself", func(l *liar) fakexen.RawReq { return rw(1, 0, l.seg(l.raw.Refs()[0], 0, 7)) })
	ok("another vbd's handle", func(l *liar) fakexen.RawReq {
		r := rw(0, 0, l.full(1)...)
		r.Handle = 0xffff
		return r
	})
	return all
}

// TestMalformedRequests tells every lie alone and between two good requests,
// and has another disk served after each.
func TestMalformedRequests(t *testing.T) {
	for _, f := range formats {
		for _, abi := range abis {
			t.Run(fmt.Sprintf("%v/%s", f, abi), func(t *testing.T) {
				p := newPlane(t)
				d, _, _ := openDisk(t, f, lieSectors, disk.Options{})
				s := p.serve(d, attached{front: fakexen.Options{ABI: abi}})
				s.limits.Sectors = lieSectors // discard's is more
				s.limits.Discard = false      // TestMalformedDiscards has those
				o, _, _ := openDisk(t, disk.Mmap, 64, disk.Options{})
				l := newLiar(s, p.serve(o, attached{domid: 6}))
				for _, c := range lies() {
					if c.rest && f != disk.Discard {
						continue
					}
					if f == disk.Discard && c.grants {
						c.want = 0
					}
					l.tell(t, &c)
				}
				if got := p.m.Mapped(); got != 2 {
					t.Errorf("%d pages are mapped, want the 2 rings", got)
				}
				for _, ref := range []uint32{l.good, l.ro, l.foreign} {
					if s.guest.Revoke(ref) {
						t.Errorf("grant %d is in use", ref)
					}
				}
			})
		}
	}
}

// tell sends a lie, and again with good neighbours, and looks at the answers.
func (l *liar) tell(t *testing.T, c *lie) {
	t.Helper()
	good := rw(0, 8, l.seg(l.good, 0, 7))
	for _, reqs := range [][]fakexen.RawReq{{c.req(l)}, {good, c.req(l), good}} {
		want := map[uint64]fakexen.Response{}
		before := map[uint32][]byte{}
		at := l.raw.ReqProd()
		for i := range reqs {
			l.id += 0x0123_4567_89ab_cdef
			reqs[i].ID = l.id
			r := fakexen.Response{ID: l.id, Op: reqs[i].Op}
			if i == len(reqs)/2 {
				r.Status = c.want
				if c.op >= 0 {
					r.Op = uint8(c.op)
				}
			}
			want[l.id] = r
			l.raw.Write(at+uint32(i), reqs[i])
			before[at+uint32(i)] = append([]byte(nil), l.raw.Slot(at+uint32(i))...)
		}
		l.raw.Push(reqs...)
		got, err := l.raw.Responses(deadlineData(t), len(reqs))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for _, r := range got {
			if r != want[r.ID] {
				t.Errorf("%s: answered %+v, want %+v", c.name, r, want[r.ID])
			}
			delete(want, r.ID) // a second answer finds nothing
		}
		for i, slot := range before {
			for n, b := range l.raw.Slot(i) {
				if (n == 9 || n >= 12) && b != slot[n] { // XSA-216
					t.Errorf("%s: byte %d of the slot was written", c.name, n)
				}
			}
		}
	}
	l.other.unharmed()
}
