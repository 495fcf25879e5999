package ring_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"xen-disk/ring"
)

func TestSlots(t *testing.T) {
	for _, abi := range append([]ring.ABI{ring.Native}, abis...) {
		for pages, want := range ringSlots {
			if got := ring.Slots(pages, abi); got != want {
				t.Errorf("Slots(%d, %v): got %d, want %d", pages, abi, got, want)
			}
			b, err := ring.New(mapRing(t, pages), abi)
			if err != nil {
				t.Fatalf("New of %d pages: %v", pages, err)
			}
			if got := b.Size(); got != int(want) {
				t.Errorf("Size of %d pages, %v: got %d, want %d", pages, abi, got, want)
			}
		}
		for _, pages := range []int{0, -1, -100_000} {
			if got := ring.Slots(pages, abi); got != 0 {
				t.Errorf("Slots(%d, %v): got %d, want 0", pages, abi, got)
			}
		}
	}
	if got := 1 << ring.MaxOrder; got != 16 {
		t.Errorf("largest ring: got %d pages, want 16", got)
	}
}

func TestNewRefusesSizes(t *testing.T) {
	mem := mapRing(t, 33)
	for _, size := range []int{
		0, 1, 64, 4095, 4097, 3 * 4096, 5 * 4096, 6 * 4096, 7 * 4096,
		8*4096 - 1, 12 * 4096, 15 * 4096, 16*4096 + 1, 17 * 4096, 32 * 4096, 33 * 4096,
	} {
		if b, err := ring.New(mem[:size], ring.X86_64); err == nil || b != nil {
			t.Errorf("New of %d bytes: got %v, %v, want an error", size, b, err)
		} else if errors.Is(err, ring.ErrBroken) {
			t.Errorf("New of %d bytes: a wrong size is not a broken ring", size)
		}
	}
}

func TestNewPanicsOnUnalignedMemory(t *testing.T) {
	mem := mapRing(t, 2)
	for off := 1; off < 4; off++ {
		wantPanic(t, fmt.Sprintf("memory at %d", off), func() {
			_, _ = ring.New(mem[off:off+4096], ring.X86_64)
		})
	}
}

func wantPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	f()
}

// TestNewAttaches: the frontend and an earlier backend have used the ring.
func TestNewAttaches(t *testing.T) {
	cases := []struct {
		name             string
		reqProd, rspProd uint32
		want             int
	}{
		{"a fresh ring", 0, 0, 0},
		{"a fresh ring with requests", 5, 0, 5},
		{"a drained ring", 1000, 1000, 0},
		{"a ring with requests waiting", 1007, 1000, 7},
		{"a full ring", 1032, 1000, 32},
		{"before 2^32", math.MaxUint32, math.MaxUint32 - 3, 3},
		{"across 2^32", 4, math.MaxUint32 - 3, 8},
		{"a full ring across 2^32", 16, 1<<32 - 16, 32},
	}
	for _, abi := range abis {
		for _, c := range cases {
			t.Run(abi.String()+"/"+c.name, func(t *testing.T) {
				f := newFront(mapRing(t, 1), abi, c.rspProd)
				for f.reqPvt != c.reqProd {
					f.put(readWire(uint64(f.reqPvt)))
				}
				f.push()
				b, err := ring.New(f.mem, abi)
				if err != nil {
					t.Fatal(err)
				}
				if got := b.Outstanding(); got != 0 {
					t.Errorf("Outstanding: got %d, want 0", got)
				}
				if got := pending(t, b); got != c.want {
					t.Fatalf("Pending: got %d, want %d", got, c.want)
				}
				var r ring.Request
				for i := range uint32(c.want) {
					b.Pull(&r)
					if want := uint64(c.rspProd + i); r.ID != want {
						t.Errorf("request %d: got id %d, want %d", i, r.ID, want)
					}
					b.Put(r.ID, r.Op, ring.StatusOK)
				}
				if notify := b.Publish(); notify != (c.want > 0) {
					t.Errorf("Publish: got %v", notify)
				}
				if got := word(f.mem, 8).Load(); got != c.reqProd {
					t.Errorf("rsp_prod: got %d, want %d", got, c.reqProd)
				}
			})
		}
	}
}

// lies are values of req_prod that no honest frontend can produce on a ring
// where nothing is outstanding and rsp_prod is the base.
var lies = []struct {
	name string
	off  uint32 // req_prod - rsp_prod
}{
	{"one more than the ring holds", 33},
	{"twice the ring", 64},
	{"half the number space", 1 << 31},
	{"just past half", 1<<31 + 1},
	{"backwards by one", math.MaxUint32},
	{"backwards by the ring", 1<<32 - 32},
}

// TestNewRefusesAnOverflowedRing is CVE-2010-4247 on a ring that was used.
func TestNewRefusesAnOverflowedRing(t *testing.T) {
	for _, c := range lies {
		for _, base := range []uint32{0, 1000, math.MaxUint32 - 5} {
			mem := mapRing(t, 1)
			word(mem, 8).Store(base)
			word(mem, 0).Store(base + c.off)
			if _, err := ring.New(mem, ring.X86_32); !errors.Is(err, ring.ErrBroken) {
				t.Errorf("%s, rsp_prod %d: got %v, want ErrBroken", c.name, base, err)
			}
		}
	}
}
