package vhd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

// compactCase is an image, or a chain, that Compact makes smaller.
type compactCase struct {
	name       string
	kind       uint32
	blockBytes int64
	ones       bool // bitmaps say that all is present
	likeParent bool
}

func compactCases() []compactCase {
	return []compactCase{
		{name: "dynamic", kind: 3, blockBytes: 4096},
		{name: "dynamic, as QEMU writes", kind: 3, blockBytes: 8192, ones: true},
		{name: "dynamic, small blocks", kind: 3, blockBytes: 512},
		{name: "dynamic, large blocks", kind: 3, blockBytes: 16 << 10, ones: true},
		{name: "differencing", kind: 4, blockBytes: 4096},
		{name: "differencing, like the parent", kind: 4, blockBytes: 4096, likeParent: true},
		{name: "differencing, small blocks", kind: 4, blockBytes: 1024, likeParent: true},
	}
}

// files makes the image, of whose blocks some hold nothing, and its parent.
func (c *compactCase) files(t *testing.T, r *rand.Rand, l layout) (files map[string][]byte, want []byte) {
	t.Helper()
	size := 40*c.blockBytes - 512
	parent, below := scattered(r, l, 3, size, 4096)
	f, _ := scattered(r, l, c.kind, size, c.blockBytes)
	f.ones, f.parent = c.ones, parent.uuid
	for range 15 {
		s := r.Int64N(size / 512)
		f.held[s] = make([]byte, 512)
		if c.kind == 4 {
			copy(f.held[s], below[s*512:])
		}
	}
	b := f.bytes()
	if c.kind == 4 {
		nameParent(b, "parent.vhd")
		m, err := readLast(b)
		if err != nil {
			t.Fatal(err)
		}
		block := r.Int64N(40)
		for !m.has(block) {
			block = (block + 1) % 40
		}
		clear(m.bitmapOf(block))
	}
	files = map[string][]byte{"a.vhd": b, "parent.vhd": parent.bytes()}
	want, err := c.disk(files)
	if err != nil {
		t.Fatal(err)
	}
	return files, want
}

// disk is what the image shows.
func (c *compactCase) disk(files map[string][]byte) ([]byte, error) {
	m, err := readLast(files["a.vhd"])
	if err != nil || c.kind == 3 {
		return specDisk(m), err
	}
	p, err := readLast(files["parent.vhd"])
	if err != nil {
		return nil, err
	}
	return specDisk(m, p), nil
}

// nameParent writes the parent's name into the header of an image.
func nameParent(b []byte, name string) {
	copy(b[512+64:], utf16BE(name))
	resum(b[512:1536], 36)
}

func (c *compactCase) run(s *shelf) error {
	_, err := Compact(context.Background(), "a.vhd", CompactOptions{Open: s.options(), LikeParent: c.likeParent})
	return err
}

// check holds an image against what its disk was, whatever happened to it.
func (c *compactCase) check(files map[string][]byte, want []byte) error {
	got, err := c.disk(files)
	if err != nil {
		return err
	}
	return checkDisk(got, want)
}

// checkEnd says whether there is anything left to do.
func (c *compactCase) checkEnd(files map[string][]byte, want []byte) error {
	if faults := audit(files["a.vhd"]); len(faults) > 0 {
		return fmt.Errorf("%q", faults)
	}
	if err := c.check(files, want); err != nil {
		return err
	}
	s := newShelf(files)
	stats, err := Compact(context.Background(), "a.vhd", CompactOptions{Open: s.options(), LikeParent: c.likeParent})
	if err == nil && (stats.Dropped > 0 || stats.Moved > 0 || stats.AfterBytes != stats.BeforeBytes) {
		err = fmt.Errorf("a second time did something: %+v", stats)
	}
	return err
}

// TestCompactSurvivesCrashes: whatever instant the process or the machine
// stops at, the disk reads the same, and doing it again ends it.
func TestCompactSurvivesCrashes(t *testing.T) {
	for _, l := range layouts() {
		for _, c := range compactCases() {
			t.Run(l.name+"/"+c.name, func(t *testing.T) {
				r := seeded(t)
				before, want := c.files(t, r, l)
				ops, after := record(t, before, c.run)
				if err := c.checkEnd(after, want); err != nil {
					t.Fatal(err)
				}
				if len(after["a.vhd"]) >= len(before["a.vhd"]) {
					t.Errorf("the file has %d bytes, had %d", len(after["a.vhd"]), len(before["a.vhd"]))
				}
				err := crashes(&luck{r, 64}, before, ops, 3, func(left leftover) error { return c.checkCrash(left, want) })
				if err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func (c *compactCase) checkCrash(left leftover, want []byte) error {
	if left.killed {
		b := left.files["a.vhd"]
		if _, err := readSpec(b, int64(len(b))-512); err != nil {
			return err
		}
	}
	if err := c.check(left.files, want); err != nil {
		return err
	}
	s := newShelf(left.files)
	if err := c.run(s); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	if err := c.checkEnd(s.contents(), want); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	return nil
}

// TestCompactStops: a context that ends at any time leaves the disk as it was.
func TestCompactStops(t *testing.T) {
	for _, c := range compactCases() {
		t.Run(c.name, func(t *testing.T) {
			r := seeded(t)
			before, want := c.files(t, r, layouts()[r.IntN(len(layouts()))])
			run := func(ctx context.Context, s *shelf) error {
				_, err := Compact(ctx, "a.vhd", CompactOptions{Open: s.options(), LikeParent: c.likeParent})
				return err
			}
			stops(t, before, run, func(files map[string][]byte) error { return c.check(files, want) })
		})
	}
}
