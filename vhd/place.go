package vhd

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// inUse lists all that is of use in the file but for the footer at its end, in
// its order.
func (m *image) inUse() []extent {
	used := m.metadata()
	for _, b := range m.inFileOrder() {
		used = append(used, m.region(int64(b)))
	}
	slices.SortFunc(used, byStart)
	return used
}

func byStart(a, b extent) int { return cmp.Compare(a.start, b.start) }

// region is where an allocated block lies, with its bitmap.
func (m *image) region(block int64) extent {
	entry := m.bat[block].Load()
	return extent{int64(entry) * SectorBytes, m.blockEnd(entry)}
}

// isFree says that nothing of use lies there.
func (m *image) isFree(x extent) bool { return !slices.ContainsFunc(m.inUse(), x.overlaps) }

// usedEnd is where the last byte of use ends, in whole sectors.
func (m *image) usedEnd() int64 {
	if m.footer.Type == TypeFixed {
		return m.sizeBytes
	}
	var end int64
	for _, x := range m.inUse() {
		end = max(end, x.end)
	}
	return roundUp(end, SectorBytes)
}

// gaps lists what lies between extents that are in order, in whole sectors.
// Behind the last is the end of the file and all that it can grow to.
func gaps(used []extent) []extent {
	var between []extent
	var end int64
	for _, x := range used {
		if x.start > end {
			between = append(between, extent{end, x.start})
		}
		end = max(end, roundUp(x.end, SectorBytes))
	}
	return append(between, extent{end, maxFileBytes})
}

// firstGap is the first gap that has n bytes.
func firstGap(used []extent, n int64) extent {
	all := gaps(used)
	i := slices.IndexFunc(all, func(g extent) bool { return g.end-g.start >= n })
	return extent{all[i].start, all[i].start + n}
}

// taken is inUse and what is kept.
func (e *editor) taken() []extent {
	all := append(e.inUse(), e.kept...)
	slices.SortFunc(all, byStart)
	return all
}

// beside finds n bytes that nothing uses.
func (e *editor) beside(n int64) (at int64, err error) {
	x := firstGap(e.taken(), n)
	return x.start, e.extend(x.end)
}

// inFront finds n bytes in front of the blocks, where blktap wants all
// metadata ("clobbers headers", vhd-util-check.c), and keeps them for the next
// header. Blocks that lie there go to the end of the file.
func (e *editor) inFront(n int64) (at int64, err error) {
	meta := append(e.metadata(), e.kept...)
	slices.SortFunc(meta, byStart)
	x := firstGap(meta, n)
	end := max(x.end, e.usedEnd())
	var moves []move
	for _, b := range e.inFileOrder() {
		if from := e.region(int64(b)); from.overlaps(x) {
			// A footer must find room behind each block: see space.
			to := e.place(end + footerBytes)
			moves = append(moves, move{int64(b), from, to})
			end = to + e.stride()
		}
	}
	if err := e.extend(end); err != nil {
		return 0, err
	}
	e.kept = append(e.kept, x)
	return x.start, e.moveBlocks(moves)
}

// place is the first place from an offset on where a block is well placed: see
// dataAlign.
func (m *image) place(off int64) int64 {
	if m.blockBytes() < dataAlign {
		return roundUp(off, SectorBytes)
	}
	bitmap := m.header.bitmapBytes()
	return roundUp(off+bitmap, dataAlign) - bitmap
}

// move is a block that goes to another place.
type move struct {
	block int64
	from  extent
	to    int64
}

// moveBlocks copies blocks to places that nothing uses, and has the BAT point
// there. When it returns nothing uses the old places.
func (e *editor) moveBlocks(moves []move) error {
	if len(moves) == 0 {
		return nil
	}
	for _, v := range moves {
		if v.to/SectorBytes >= unallocated {
			return fmt.Errorf("a BAT entry cannot say %d: %w", v.to/SectorBytes, syscall.ENOSPC)
		}
		if err := e.copy(v.to, v.from); err != nil {
			return err
		}
	}
	if err := e.file.Sync(); err != nil {
		return err
	}
	for _, v := range moves {
		if err := e.point(v.block, uint32(v.to/SectorBytes)); err != nil {
			return err
		}
	}
	return e.file.Sync()
}

// copy copies a part of the file. Pages of zeros become holes.
func (e *editor) copy(to int64, from extent) error {
	for from.start < from.end {
		p := e.buf[:min(int64(len(e.buf)), from.end-from.start)]
		if err := readFull(e.file, p, from.start); err != nil {
			return err
		}
		from.start += int64(len(p))
		for len(p) > 0 {
			n, zeros := alike(p, to)
			var err error
			if zeros {
				err = zeroRange(e.file, to, n)
			} else {
				_, err = e.file.WriteAt(p[:n], to)
			}
			if err != nil {
				return err
			}
			p, to = p[n:], to+n
		}
	}
	return nil
}

// alike returns how much of p, which is to lie at an offset, are pages of
// zeros, or pages of something else.
func alike(p []byte, at int64) (n int64, zeros bool) {
	for n < int64(len(p)) {
		page := min(punchAlign-(at+n)%punchAlign, int64(len(p))-n)
		z := isZero(p[n : n+page])
		if n > 0 && z != zeros {
			break
		}
		n, zeros = n+page, z
	}
	return n, zeros
}

// zeroRange makes bytes of a file zeros.
func zeroRange(f File, at, n int64) error {
	if err := f.PunchHole(at, n); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	for n > 0 {
		k, err := f.WriteAt(zeroes[:min(n, zeroesBytes)], at)
		if err != nil {
			return err
		}
		at, n = at+int64(k), n-int64(k)
	}
	return nil
}
