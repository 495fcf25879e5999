package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"testing"
)

// coalesceCase is a child, its parent and what that stands on.
type coalesceCase struct {
	name        string
	parent      uint32 // disk type; 0 is a raw disk
	childBytes  int64
	parentBytes int64
	childBlock  int64
	parentBlock int64
}

func coalesceCases() []coalesceCase {
	const k = 1 << 10
	return []coalesceCase{
		{"dynamic", 3, 40 * k, 40 * k, 4 * k, 4 * k},
		{"fixed", 2, 40*k + 512, 40*k + 512, 2 * k, 0},
		{"differencing", 4, 40 * k, 40 * k, 8 * k, 2 * k},
		{"raw", 0, 40 * k, 40 * k, 4 * k, 0},
		{"larger child of dynamic", 3, 57*k + 512, 21 * k, 512, 4 * k},
		{"larger child of fixed", 2, 57 * k, 21 * k, 16 * k, 0},
		{"larger child of differencing", 4, 57 * k, 21*k + 512, 2 * k, 1 * k},
		{"larger child of raw", 0, 57 * k, 21 * k, 4 * k, 0},
		{"smaller child", 3, 21 * k, 57 * k, 4 * k, 2 * k},
	}
}

func (c *coalesceCase) files(r *rand.Rand, l layout) map[string][]byte {
	base, _ := scattered(r, l, 3, c.parentBytes, 4096)
	base.uuid = UUID{1}
	files := map[string][]byte{"base.vhd": base.bytes()}

	parent, below := scattered(r, l, max(2, c.parent), c.parentBytes, c.parentBlock)
	parent.uuid, parent.parent = UUID{2}, UUID{1}
	for sector := range parent.held {
		if sector*512 >= min(c.parentBytes, c.childBytes) {
			delete(parent.held, sector)
		}
	}
	clear(below[min(c.parentBytes, c.childBytes):])
	files["parent.vhd"] = parent.bytes()
	switch c.parent {
	case 0:
		parent.uuid = UUID{}
		files["parent.vhd"] = below
	case 4:
		nameParent(files["parent.vhd"], "base.vhd")
	}

	child, _ := scattered(r, l, 4, c.childBytes, c.childBlock)
	child.uuid, child.parent = UUID{3}, parent.uuid
	for s := range parent.held {
		if s*512 < c.childBytes && r.IntN(3) == 0 {
			child.held[s] = make([]byte, 512) // zeros over data
		}
	}
	files["child.vhd"] = child.bytes()
	nameParent(files["child.vhd"], "parent.vhd")
	return files
}

func (c *coalesceCase) options(s *shelf) Options {
	o := s.options()
	o.RawParent = c.parent == 0
	return o
}

func (c *coalesceCase) run(s *shelf) error {
	_, err := Coalesce(context.Background(), "child.vhd", CoalesceOptions{Open: c.options(s)})
	return err
}

// disks returns what the parent shows, and what the child does over it.
func (c *coalesceCase) disks(files map[string][]byte) (parent, child []byte, err error) {
	top, err := readLast(files["child.vhd"])
	if err != nil {
		return nil, nil, err
	}
	base, err := readLast(files["base.vhd"])
	if err != nil {
		return nil, nil, err
	}
	b := files["parent.vhd"]
	m := &specImage{b: b, size: int64(len(b)) / 512 * 512, kind: 2}
	if c.parent != 0 {
		if m, err = readLast(b); err != nil {
			return nil, nil, err
		}
	}
	if c.parent != 4 {
		return specDisk(m), specDisk(top, m), nil
	}
	return specDisk(m, base), specDisk(top, m, base), nil
}

// checkEnd says whether the parent is what the child was.
func (c *coalesceCase) checkEnd(files map[string][]byte, want []byte) error {
	if faults := audit(files["parent.vhd"]); c.parent != 0 && len(faults) > 0 {
		return fmt.Errorf("%q", faults)
	}
	parent, child, err := c.disks(files)
	if err != nil {
		return err
	}
	if int64(len(parent)) != max(c.childBytes, c.parentBytes) {
		return fmt.Errorf("parent has %d bytes", len(parent))
	}
	return errors.Join(checkDisk(parent[:len(want)], want), checkDisk(child, want))
}

// TestCoalesceSurvivesCrashes: whatever instant the process or the machine
// stops at, the child reads the same; in the end so does its parent.
func TestCoalesceSurvivesCrashes(t *testing.T) {
	for i, c := range coalesceCases() {
		l := layouts()[i%len(layouts())]
		t.Run(c.name+"/"+l.name, func(t *testing.T) {
			r := seeded(t)
			before := c.files(r, l)
			_, want, err := c.disks(before)
			if err != nil {
				t.Fatal(err)
			}
			ops, after := record(t, before, c.run)
			if err := c.checkEnd(after, want); err != nil {
				t.Fatal(err)
			}
			for name, b := range after {
				if name != "parent.vhd" && !bytes.Equal(b, before[name]) {
					t.Errorf("%s has changed", name)
				}
			}
			err = crashes(&luck{r, SectorBytes}, before, ops, 4, func(left leftover) error { return c.checkCrash(left, want) })
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func (c *coalesceCase) checkCrash(left leftover, want []byte) error {
	if b := left.files["parent.vhd"]; left.killed && c.parent != 0 {
		if _, err := readSpec(b, int64(len(b))-512); err != nil {
			return err
		}
	}
	parent, child, err := c.disks(left.files)
	if err == nil {
		err = checkDisk(child, want)
	}
	if err == nil && left.done {
		err = checkDisk(parent[:len(want)], want)
	}
	if err != nil {
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

// TestCoalesceStops: a context that ends at any time leaves the child as it
// was.
func TestCoalesceStops(t *testing.T) {
	for _, c := range coalesceCases() {
		t.Run(c.name, func(t *testing.T) {
			r := seeded(t)
			before := c.files(r, layouts()[r.IntN(len(layouts()))])
			_, want, err := c.disks(before)
			if err != nil {
				t.Fatal(err)
			}
			run := func(ctx context.Context, s *shelf) error {
				_, err := Coalesce(ctx, "child.vhd", CoalesceOptions{Open: c.options(s)})
				return err
			}
			stops(t, before, run, func(files map[string][]byte) error {
				_, child, err := c.disks(files)
				return errors.Join(err, checkDisk(child, want))
			})
		})
	}
}

// TestCoalesceCounts: the statistics are those of what was written, and the
// progress ends at the end.
func TestCoalesceCounts(t *testing.T) {
	f := foreign{layout: layouts()[0], sizeBytes: 64 << 10, blockBytes: 4096, diskType: 3, uuid: UUID{1}, held: map[int64][]byte{}}
	files := map[string][]byte{"parent.vhd": f.bytes()}
	f.diskType, f.uuid, f.parent = 4, UUID{2}, UUID{1}
	for s := range int64(8) {
		f.held[s] = bytes.Repeat([]byte{1}, 512)
		f.held[32+s] = make([]byte, 512)
	}
	files["child.vhd"] = f.bytes()
	nameParent(files["child.vhd"], "parent.vhd")
	s := newShelf(files)
	var done, total int64
	stats, err := Coalesce(context.Background(), "child.vhd", CoalesceOptions{
		Open: s.options(), Progress: func(d, t int64) { done, total = d, t },
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := (CoalesceStats{"parent.vhd", 4096, 4096}); stats != want {
		t.Errorf("got %+v, want %+v", stats, want)
	}
	if done != 64<<10 || total != 64<<10 {
		t.Errorf("progress is %d of %d", done, total)
	}
	m, err := readLast(s.files["parent.vhd"].content())
	if err != nil {
		t.Fatal(err)
	}
	if m.has(4) {
		t.Error("zeros over nothing took a block")
	}
}

// TestCoalesceRefuses: nothing is written where something is not as it must
// be.
func TestCoalesceRefuses(t *testing.T) {
	r := seeded(t)
	cases := coalesceCases()
	for _, c := range []struct {
		name  string
		of    coalesceCase
		spoil func(files map[string][]byte)
		want  error
	}{
		{"no parent", cases[0], func(f map[string][]byte) { f["child.vhd"] = f["base.vhd"] }, ErrUnsupported},
		{"parent is another", cases[0], func(f map[string][]byte) { f["parent.vhd"] = f["base.vhd"] }, errOtherUUID},
		{"parent is gone", cases[0], func(f map[string][]byte) { delete(f, "parent.vhd") }, fs.ErrNotExist},
		{"child is damaged", cases[0], cutFile, ErrDamaged},
		{"larger child, data below", cases[6], wideBase, ErrParentShows},
		{"smaller child, data below", cases[8], func(f map[string][]byte) {
			wideBase(f)
			f["parent.vhd"] = f["base.vhd"]
			copy(f["child.vhd"][512+40:], f["base.vhd"][len(f["base.vhd"])-512+68:][:16])
			resum(f["child.vhd"][512:1536], 36)
		}, ErrParentShows},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := c.of.files(r, layouts()[0])
			c.spoil(files)
			s := newShelf(files)
			err := c.of.run(s)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			for name, b := range s.contents() {
				if !bytes.Equal(b, files[name]) {
					t.Errorf("%s has changed", name)
				}
			}
		})
	}
}

// wideBase has data in its sector 100.
func wideBase(files map[string][]byte) {
	f := foreign{layout: layouts()[0], sizeBytes: 80 << 10, blockBytes: 4096, diskType: 3, uuid: UUID{1}}
	f.held = map[int64][]byte{100: bytes.Repeat([]byte{1}, 512)}
	files["base.vhd"] = f.bytes()
}

// cutFile cuts the child off in the middle of its last block.
func cutFile(files map[string][]byte) {
	b := files["child.vhd"]
	files["child.vhd"] = append(bytes.Clone(b[:len(b)-1536]), b[len(b)-512:]...)
}
