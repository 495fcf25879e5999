package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// CompactOptions say what Compact takes out of an image.
type CompactOptions struct {
	// Open says how the image is opened, and its parents for LikeParent;
	// ReadOnly means nothing here.
	Open Options
	// LikeParent also drops blocks of a differencing image that say nothing
	// but what its parent says there.
	LikeParent bool
	// Progress, if not nil, is told of the blocks that are done; total is how
	// many the image has when it is asked first.
	Progress func(done, total int64)
}

// CompactStats say what Compact did.
type CompactStats struct {
	Dropped, Moved int64 // blocks
	// PunchedBytes had zeros, and are holes of the file now if they were not
	// before.
	PunchedBytes int64
	// BeforeBytes and AfterBytes are the length of the file.
	BeforeBytes, AfterBytes int64
}

// Compact makes the file of a dynamic or differencing image smaller that
// nobody has open, in place: it drops blocks that hold nothing, moves blocks
// from the end of the file to where there is room, cuts the file off behind
// the last one, and makes holes of pages of zeros. What a guest reads stays
// the same.
//
// A block of a dynamic image holds nothing when it is zeros, and one of a
// differencing image when it has no sector.
//
// After a crash, or when ctx ends, the image is whole and some of the work is
// done.
func Compact(ctx context.Context, path string, o CompactOptions) (stats CompactStats, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("compact %s: %w", path, err)
		}
	}()
	e, err := openEditor(path, &o.Open)
	if err != nil {
		return stats, err
	}
	c := compaction{editor: e, o: &o, stats: &stats}
	stats.BeforeBytes = e.fileBytes
	err = e.close(c.run(ctx))
	stats.AfterBytes = e.fileBytes
	return stats, err
}

// compaction is one run of Compact.
type compaction struct {
	*editor
	o       *CompactOptions
	stats   *CompactStats
	parents []*layer // with LikeParent
	other   []byte   // what they have
}

func (c *compaction) run(ctx context.Context) (err error) {
	if c.fixed() {
		return fmt.Errorf("%w: a fixed image has no blocks", ErrUnsupported)
	}
	if c.o.LikeParent && c.footer.Type == TypeDifferencing {
		if c.parents, err = openParents(c.image, &c.o.Open); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeLayers(c.parents)) }()
		c.other = make([]byte, len(c.buf))
	}
	if err := c.dropIdle(ctx); err != nil {
		return err
	}
	return c.fillHoles(ctx)
}

// dropIdle drops the blocks that hold nothing, and makes holes in the others.
func (c *compaction) dropIdle(ctx context.Context) error {
	blocks := c.inFileOrder()
	var idle []int64
	for i, b := range blocks {
		block := int64(b)
		holds, err := c.holds(ctx, block)
		if err != nil {
			return err
		}
		if !holds {
			idle = append(idle, block)
		} else if err := c.punch(c.region(block)); err != nil {
			return err
		}
		if c.o.Progress != nil {
			c.o.Progress(int64(i)+1, int64(len(blocks)))
		}
	}
	c.stats.Dropped = int64(len(idle))
	return c.drop(idle)
}

// holds says whether the disk would read otherwise without a block.
func (c *compaction) holds(ctx context.Context, block int64) (bool, error) {
	off := block * c.blockBytes()
	end := min(off+c.blockBytes(), c.sizeBytes)
	if c.footer.Type != TypeDifferencing {
		zeros, err := readsZeros(ctx, []*layer{c.layer}, off, end, c.buf)
		return !zeros, err
	}
	for off < end {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		at, n, err := c.locate(off, min(int64(len(c.buf)), end-off))
		if err != nil {
			return false, err
		}
		if at != elsewhere {
			if like, err := c.likeParent(off, at, n); err != nil || !like {
				return true, err
			}
		}
		off += n
	}
	return false, nil
}

// likeParent says whether n bytes at a place of the file are what the parents
// have at off. Without parents it does not know.
func (c *compaction) likeParent(off, at, n int64) (bool, error) {
	if c.parents == nil {
		return false, nil
	}
	if err := readFull(c.file, c.buf[:n], at); err != nil {
		return false, err
	}
	if err := readChain(c.parents, c.other[:n], off); err != nil {
		return false, err
	}
	return bytes.Equal(c.buf[:n], c.other[:n]), nil
}

// punch makes holes of the pages of a block's data that are zeros.
func (c *compaction) punch(region extent) error {
	for at := region.start + c.header.bitmapBytes(); at < region.end; {
		hole, n, err := holeAt(c.file, at, min(int64(len(c.buf)), region.end-at))
		if err != nil {
			return err
		}
		if !hole {
			if err := c.punchPages(at, c.buf[:n]); err != nil {
				return err
			}
		}
		at += n
	}
	return nil
}

func (c *compaction) punchPages(at int64, buf []byte) error {
	if err := readFull(c.file, buf, at); err != nil {
		return err
	}
	for len(buf) > 0 {
		n, zeros := alike(buf, at)
		if zeros && n >= punchAlign {
			switch err := c.file.PunchHole(at, n); {
			case errors.Is(err, errors.ErrUnsupported):
				return nil
			case err != nil:
				return err
			}
			c.stats.PunchedBytes += n
		}
		buf, at = buf[n:], at+n
	}
	return nil
}

// moveBatchBytes is how much is moved under one pair of barriers.
const moveBatchBytes = 64 << 20

// fillHoles moves blocks from the end of the file into gaps that one fits in.
// Where a block was nothing is written in this run: the gaps lie before.
func (c *compaction) fillHoles(ctx context.Context) error {
	blocks := c.inFileOrder()
	var moves []move
	for _, gap := range gaps(c.taken()) {
		for len(blocks) > 0 {
			last := int64(blocks[len(blocks)-1])
			from := c.region(last)
			to, fits := c.fit(gap)
			if !fits || to > from.start {
				break
			}
			moves = append(moves, move{last, from, to})
			blocks = blocks[:len(blocks)-1]
			gap.start = to + c.stride()
			if int64(len(moves))*c.stride() >= moveBatchBytes {
				if err := c.moveBatch(ctx, moves); err != nil {
					return err
				}
				moves = moves[:0]
			}
		}
	}
	return c.moveBatch(ctx, moves)
}

func (c *compaction) moveBatch(ctx context.Context, moves []move) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.moveBlocks(moves); err != nil {
		return err
	}
	c.stats.Moved += int64(len(moves))
	return nil
}

// fit is where in a gap a block goes: well placed, if that fits.
func (c *compaction) fit(gap extent) (to int64, fits bool) {
	for _, to := range []int64{c.place(gap.start), gap.start} {
		if to+c.stride() <= gap.end {
			return to, true
		}
	}
	return 0, false
}
