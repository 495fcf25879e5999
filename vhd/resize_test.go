package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"
)

// seeded makes a source of luck, and says how to get the same again.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// scattered is a foreign image with some sectors, and what its disk has.
func scattered(r *rand.Rand, l layout, kind uint32, sizeBytes, blockBytes int64) (f *foreign, want []byte) {
	f = &foreign{
		layout: l, sizeBytes: sizeBytes, blockBytes: blockBytes, diskType: kind,
		uuid: UUID{byte(kind)}, held: map[int64][]byte{}, garbage: r,
	}
	want = make([]byte, sizeBytes)
	for i := range 2 + r.Int64N(12) {
		s := r.Int64N(sizeBytes/512) * min(1, i)
		for range 1 + r.IntN(6) {
			if s < sizeBytes/512 {
				f.held[s] = noise(r, 1)
				copy(want[s*512:], f.held[s])
				s++
			}
		}
	}
	if kind != 2 && r.IntN(2) == 0 {
		// What lies in the last block beyond the end of the disk.
		f.held[sizeBytes/512] = noise(r, 1)
	}
	return f, want
}

// resized is what a disk has after a change of its size.
func resized(want []byte, size int64) []byte {
	out := make([]byte, size)
	copy(out, want)
	return out
}

// checkDisk compares a disk with one of several contents.
func checkDisk(got []byte, want ...[]byte) error {
	for _, w := range want {
		if bytes.Equal(got, w) {
			return nil
		}
	}
	for i, w := range want {
		if len(got) != len(w) {
			continue
		}
		for s := 0; s < len(got); s += 512 {
			if !bytes.Equal(got[s:s+512], w[s:s+512]) {
				return fmt.Errorf("sector %d of %d has %x..., want %x... (content %d)", s/512, len(got)/512, got[s:s+16], w[s:s+16], i)
			}
		}
	}
	return fmt.Errorf("disk has %d bytes", len(got))
}

type resizeCase struct {
	name       string
	kind       uint32
	size, to   int64
	block      int64
	force      bool
	clearAbove int64 // sectors from this byte on are not held
	room       bool  // the BAT has more entries than the disk needs
}

func resizeCases() []resizeCase {
	const k = 1 << 10
	return []resizeCase{
		{name: "fixed, by a sector", kind: 2, size: 20 * k, to: 20*k + 512},
		{name: "fixed, by much", kind: 2, size: 20 * k, to: 47 * k},
		{name: "fixed, to less", kind: 2, size: 20 * k, to: 11 * k, clearAbove: 11 * k},
		{name: "fixed, to less by a sector", kind: 2, size: 20 * k, to: 20*k - 512, clearAbove: 20*k - 512},
		{name: "fixed, to less with data", kind: 2, size: 20 * k, to: 11 * k, force: true},
		{name: "in the last block", kind: 3, size: 21*k + 512, to: 23 * k, block: 4 * k},
		{name: "in the BAT's sector", kind: 3, size: 20 * k, to: 40*k + 512, block: 4 * k},
		{name: "in a BAT with room", kind: 3, size: 20 * k, to: 40*k + 512, block: 4 * k, room: true},
		{name: "to a longer BAT", kind: 3, size: 20 * k, to: 600 * k, block: 4 * k},
		{name: "to a BAT over blocks", kind: 3, size: 64 * k, to: 400 * k, block: 512},
		{name: "large blocks", kind: 3, size: 100 * k, to: 2200 * k, block: 16 * k},
		{name: "to less", kind: 3, size: 64 * k, to: 21*k + 512, block: 4 * k, clearAbove: 21*k + 512},
		{name: "to less in a block", kind: 3, size: 23 * k, to: 21*k + 512, block: 4 * k, clearAbove: 21*k + 512},
		{name: "to less with data", kind: 3, size: 64 * k, to: 21*k + 512, block: 4 * k, force: true},
		{name: "to a sector", kind: 3, size: 64 * k, to: 512, block: 4 * k, force: true},
	}
}

func (c *resizeCase) image(r *rand.Rand, l layout) ([]byte, []byte) {
	f, want := scattered(r, l, c.kind, c.size, c.block)
	if c.clearAbove > 0 {
		for s := range f.held {
			if s*512 >= c.clearAbove {
				delete(f.held, s)
			}
		}
		clear(want[c.clearAbove:])
	}
	b := f.bytes()
	if c.room {
		const entries = 128
		for i := f.blocks(); i < entries; i++ {
			copy(b[l.tableAt+4*i:], b[l.tableAt:][:4]) // anything
		}
		binary.BigEndian.PutUint32(b[512+28:], entries)
		resum(b[512:1536], 36)
	}
	return b, want
}

func (c *resizeCase) run(s *shelf) error {
	return Resize(context.Background(), "a.vhd", c.to, ResizeOptions{Open: s.options(), Force: c.force})
}

// TestResizeSurvivesCrashes: whatever instant the process or the machine stops
// at, the disk has its old size or the new one and its data, and doing it
// again ends it.
func TestResizeSurvivesCrashes(t *testing.T) {
	for _, l := range layouts() {
		for _, c := range resizeCases() {
			t.Run(l.name+"/"+c.name, func(t *testing.T) {
				r := seeded(t)
				b, want := c.image(r, l)
				before := map[string][]byte{"a.vhd": b}
				ops, after := record(t, before, c.run)
				grown := resized(want, c.to)
				if err := c.checkEnd(after["a.vhd"], grown); err != nil {
					t.Fatal(err)
				}
				err := crashes(c.luck(r), before, ops, 4, func(left leftover) error { return c.checkCrash(left, want, grown) })
				if err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// checkEnd holds a file against what Resize promises.
func (c *resizeCase) checkEnd(b, want []byte) error {
	if faults := audit(b); len(faults) > 0 {
		return fmt.Errorf("%q", faults)
	}
	m, err := readLast(b)
	if err != nil {
		return err
	}
	return checkDisk(specDisk(m), want)
}

func (c *resizeCase) checkCrash(left leftover, old, grown []byte) error {
	b := left.files["a.vhd"]
	if left.killed {
		if _, err := readSpec(b, int64(len(b))-512); err != nil {
			return err
		}
	}
	if left.done {
		old = grown
	}
	m, err := readLast(b)
	if err != nil {
		return err
	}
	if err := checkDisk(specDisk(m), old, grown); err != nil {
		return err
	}
	// What our own programs make of it, and what the tool does then.
	s := newShelf(left.files)
	d, err := Open("a.vhd", s.options())
	if err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	if faults := audit(s.files["a.vhd"].content()); len(faults) > 0 {
		return fmt.Errorf("opened and closed: %q", faults)
	}
	s = newShelf(left.files)
	if err := c.run(s); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	if err := c.checkEnd(s.files["a.vhd"].content(), grown); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	return nil
}

// TestResizeStops: a context that ends at any time leaves the old size or the
// new one.
func TestResizeStops(t *testing.T) {
	for _, c := range resizeCases() {
		t.Run(c.name, func(t *testing.T) {
			r := seeded(t)
			b, want := c.image(r, layouts()[r.IntN(len(layouts()))])
			run := func(ctx context.Context, s *shelf) error {
				return Resize(ctx, "a.vhd", c.to, ResizeOptions{Open: s.options(), Force: c.force})
			}
			stops(t, map[string][]byte{"a.vhd": b}, run, func(files map[string][]byte) error {
				m, err := readLast(files["a.vhd"])
				if err != nil {
					return err
				}
				return checkDisk(specDisk(m), want, resized(want, c.to))
			})
		})
	}
}

// TestResizeRefuses: a change that loses data, or is none, leaves the file as
// it was.
func TestResizeRefuses(t *testing.T) {
	r := seeded(t)
	full := func(kind uint32) []byte {
		f, _ := scattered(r, layouts()[0], kind, 64<<10, 4096)
		f.held[127] = noise(r, 1)
		return f.bytes()
	}
	for _, c := range []struct {
		name string
		kind uint32
		to   int64
		want error
	}{
		{"fixed, data", 2, 63 << 10, ErrDataLoss},
		{"dynamic, data", 3, 63 << 10, ErrDataLoss},
		{"dynamic, data in a sector", 3, 64<<10 - 512, ErrDataLoss},
		{"differencing", 4, 63 << 10, ErrUnsupported},
		{"no sectors", 3, 64<<10 + 100, fs.ErrInvalid},
		{"nothing", 3, 0, fs.ErrInvalid},
		{"less than nothing", 3, -512, fs.ErrInvalid},
		{"beyond the format", 3, 2040<<30 + 512, fs.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := full(c.kind)
			s := newShelf(map[string][]byte{"a.vhd": b})
			err := Resize(context.Background(), "a.vhd", c.to, ResizeOptions{Open: s.options()})
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if !bytes.Equal(s.files["a.vhd"].content(), b) {
				t.Error("the file has changed")
			}
		})
	}
}

// luck is what Resize is to survive: only a fixed image, which has one footer,
// needs sectors that are not torn.
func (c *resizeCase) luck(r *rand.Rand) *luck {
	if c.kind == 2 {
		return &luck{r, SectorBytes}
	}
	return &luck{r, 64}
}

// TestResizeAlignsFooter: a footer that crosses a sector could be torn, so it
// moves before it is changed.
func TestResizeAlignsFooter(t *testing.T) {
	r := seeded(t)
	for _, kind := range []uint32{2, 3} {
		f, want := scattered(r, layouts()[0], kind, 20<<10, 4096)
		b := f.bytes()
		b = slices.Concat(b[:len(b)-512], make([]byte, 100), b[len(b)-512:])
		before := map[string][]byte{"a.vhd": b}
		c := resizeCase{kind: kind, to: 60 << 10}
		ops, after := record(t, before, c.run)
		for _, o := range ops {
			if o.kind == opWrite && o.n == 512 && o.off%512 != 0 {
				t.Errorf("a footer is written at %d", o.off)
			}
		}
		if err := c.checkEnd(after["a.vhd"], resized(want, c.to)); err != nil {
			t.Error(err)
		}
	}
}

// TestMovedBlocksAreAligned: blocks that make room for the BAT are placed as
// new ones are.
func TestMovedBlocksAreAligned(t *testing.T) {
	r := seeded(t)
	f, _ := scattered(r, layouts()[2], 3, 100<<10, 16<<10)
	f.held[0] = noise(r, 1)
	b := f.bytes()
	s := newShelf(map[string][]byte{"a.vhd": b})
	if err := Resize(context.Background(), "a.vhd", 200<<20, ResizeOptions{Open: s.options()}); err != nil {
		t.Fatal(err)
	}
	before, err := readLast(b)
	if err != nil {
		t.Fatal(err)
	}
	after, err := readLast(s.files["a.vhd"].content())
	if err != nil {
		t.Fatal(err)
	}
	moved := 0
	for i := range f.blocks() {
		if before.entry(i) == after.entry(i) {
			continue
		}
		moved++
		if data := after.entry(i)*512 + after.bitmap; data%4096 != 0 {
			t.Errorf("data of block %d begin at %d", i, data)
		}
	}
	if moved == 0 {
		t.Error("no block was moved")
	}
}
