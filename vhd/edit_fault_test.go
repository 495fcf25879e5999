package vhd

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
)

var errInjected = errors.New("injected")

// TestEditsFail: an operation that fails ends the tool with that error, leaves
// what a crash would have left, and no file open.
func TestEditsFail(t *testing.T) {
	for _, e := range edits(t, seeded(t)) {
		t.Run(e.name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				s := newShelf(e.before)
				ops := 0
				var failed opKind
				s.tap = func(_ string, o op) error {
					if ops++; ops == failAt {
						failed = o.kind
						return errInjected
					}
					return nil
				}
				err := e.run(s)
				// A mirror that cannot be read is written again.
				if failed != opRead && (failed != "") != (err != nil) || err != nil && !errors.Is(err, errInjected) {
					t.Fatalf("operation %d, a %s: got %v", failAt, failed, err)
				}
				s.checkClosed(t)
				s.tap = nil
				if err := e.check(leftover{s.contents(), true, err == nil}); err != nil {
					t.Fatalf("operation %d failed: %v", failAt, err)
				}
				if ops < failAt {
					return
				}
			}
		})
	}
}

func (s *shelf) checkClosed(t *testing.T) {
	t.Helper()
	for path, f := range s.files {
		if !f.closed {
			t.Errorf("%s is left open", path)
		}
	}
}

// deviceShelf puts an image on a device that has room behind it.
func deviceShelf(r *rand.Rand, image []byte, spare int64) *shelf {
	s := newShelf(map[string][]byte{"a.vhd": asDevice(r, image, spare)})
	s.files["a.vhd"].identity.Block = true
	return s
}

// TestEditsOnDevice: a device keeps its length and has its footer at its end.
// What does not fit fails and changes nothing that anyone sees.
func TestEditsOnDevice(t *testing.T) {
	for _, c := range append(resizeCases(), resizeCase{name: "compact", kind: 3, size: 64 << 10, to: 64 << 10, block: 4096}) {
		for _, spare := range []int64{0, 64 << 10, 4 << 20} {
			t.Run(c.name, func(t *testing.T) {
				r := seeded(t)
				b, want := c.image(r, layouts()[r.IntN(len(layouts()))])
				s := deviceShelf(r, b, spare)
				length := len(s.files["a.vhd"].content())
				var err error
				if c.name == "compact" {
					_, err = Compact(context.Background(), "a.vhd", CompactOptions{Open: s.options()})
				} else if err = c.run(s); err == nil {
					want = resized(want, c.to)
				}
				if err != nil && (!errors.Is(err, syscall.ENOSPC) || spare > 1<<20) {
					t.Fatal(err)
				}
				got := s.files["a.vhd"].content()
				if len(got) != length {
					t.Errorf("device of %d bytes has %d", length, len(got))
				}
				if err := c.checkEnd(got, want); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// batmapImage is one of blktap's whose batmap calls its blocks complete. One of
// them is zeros.
func batmapImage(zeros int, blocks ...int) []byte {
	h := handmade{
		kind: 3, size: 9 << 20, block: 2 << 20, creator: "tap", version: 0x00010003,
		uuid: 7, blocks: blocks, batmap: true,
	}
	b := h.bytes()
	if zeros < len(blocks) {
		clear(b[h.blockAt(zeros)+handBitmap:][:h.block])
	}
	return b
}

// batmapOf returns the blocks that blktap takes for complete (libvhd.c), and
// whether it accepts the batmap at all.
func batmapOf(b []byte) (complete []int64, ok bool) {
	be := binary.BigEndian
	m, err := readLast(b)
	if err != nil {
		return nil, false
	}
	h := b[m.table+(4*m.entries+511)/512*512:][:512]
	at, n := int64(be.Uint64(h[8:])), max(1, (m.size>>24+511)/512)*512
	if string(h[:8]) != "tdbatmap" || at+n > int64(len(b)) || be.Uint32(h[24:]) != onesSum(b[at:at+n]) {
		return nil, false
	}
	bits := b[at : at+n]
	for i := range 8 * n {
		if bits[i/8]&(0x80>>(i%8)) != 0 {
			complete = append(complete, i)
		}
	}
	return complete, true
}

// TestEditsKeepBatmap: the batmap goes with the BAT, and never calls a block
// complete that is not allocated.
func TestEditsKeepBatmap(t *testing.T) {
	some := batmapImage(2, 4, 0, 2)
	for _, c := range []struct {
		name  string
		image []byte
		tool  func(*shelf) error
		want  []int64 // complete blocks
	}{
		{"grow", some, func(s *shelf) error {
			return Resize(context.Background(), "a.vhd", 700<<20, ResizeOptions{Open: s.options()})
		}, []int64{0, 2, 4}},
		{"grow nothing", batmapImage(0), func(s *shelf) error {
			return Resize(context.Background(), "a.vhd", 20<<30, ResizeOptions{Open: s.options()})
		}, nil},
		{"grow the batmap too", some, func(s *shelf) error {
			return Resize(context.Background(), "a.vhd", 40<<30, ResizeOptions{Open: s.options()})
		}, []int64{0, 2, 4}},
		{"shrink", some, func(s *shelf) error {
			return Resize(context.Background(), "a.vhd", 5<<20, ResizeOptions{Open: s.options(), Force: true})
		}, []int64{0, 2}},
		{"compact", some, func(s *shelf) error {
			_, err := Compact(context.Background(), "a.vhd", CompactOptions{Open: s.options()})
			return err
		}, []int64{0, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := map[string][]byte{"a.vhd": c.image}
			ops, after := record(t, before, c.tool)
			got, ok := batmapOf(after["a.vhd"])
			if !ok || !slices.Equal(got, c.want) {
				t.Errorf("got %v, accepted %v, want %v", got, ok, c.want)
			}
			r := seeded(t)
			for k := range len(ops) + 1 {
				for _, l := range []*luck{nil, {r, 64}} {
					checkBatmap(t, crash(before, ops[:k], l)["a.vhd"])
				}
			}
			s := newShelf(after)
			report, err := Check(context.Background(), "a.vhd", CheckOptions{Open: s.options()})
			if err != nil || report.Corrupt() {
				t.Errorf("check: %v, %+v", err, report)
			}
		})
	}
}

func checkBatmap(t *testing.T, b []byte) {
	t.Helper()
	m, err := readLast(b)
	if err != nil {
		t.Fatal(err)
	}
	complete, _ := batmapOf(b)
	for _, block := range complete {
		if block*m.block < m.size && !m.has(block) {
			t.Errorf("block %d is complete and not allocated", block)
		}
	}
}
