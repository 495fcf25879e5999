package disk

import (
	"bytes"
	"context"
	"sync"
)

// CompareOptions say how Compare compares. The zero value counts all sectors
// that differ.
type CompareOptions struct {
	// FirstOnly ends at the first difference.
	FirstOnly bool
	// Progress is as in CopyOptions.
	Progress func(doneBytes, totalBytes int64)
}

// Diff is how two disks differ.
type Diff struct {
	// ASizeBytes and BSizeBytes need not be equal for the contents to be.
	ASizeBytes, BSizeBytes int64
	// FirstByte is where the first byte is that differs, -1 if none does.
	FirstByte int64
	// Sectors counts the sectors of 512 bytes that differ; with FirstOnly some
	// of them.
	Sectors int64
}

// SameContent says that no byte differs; the longer of two disks of different
// size has zeros at its end then.
func (d Diff) SameContent() bool { return d.FirstByte < 0 }

// Compare finds out where a and b differ. What one disk has more counts as
// different where it is not zeros. Ranges that are holes in both are not read,
// if both are Mappers. ctx is obeyed as in Copy.
func Compare(ctx context.Context, a, b Disk, o CompareOptions) (Diff, error) {
	c := comparer{firstOnly: o.FirstOnly, diff: Diff{
		ASizeBytes: a.Info().SizeBytes,
		BSizeBytes: b.Info().SizeBytes,
		FirstByte:  -1,
	}}
	c.walk = newWalk(max(c.diff.ASizeBytes, c.diff.BSizeBytes), o.Progress, a, b)
	err := c.walk.run(ctx, c.piece)
	return c.diff, err
}

// comparer is a comparison under way.
type comparer struct {
	walk      *walk
	firstOnly bool

	mu   sync.Mutex
	diff Diff
}

func (c *comparer) piece(p piece, buf []byte) error {
	if p.hole {
		return nil
	}
	a, b := buf[:p.n], buf[chunkBytes:][:p.n]
	if err := c.walk.sides[0].read(a, p.off); err != nil {
		return err
	}
	if err := c.walk.sides[1].read(b, p.off); err != nil {
		return err
	}
	if bytes.Equal(a, b) {
		return nil
	}
	c.found(p.off, a, b)
	if c.firstOnly {
		// Pieces are taken in order, so that all before this one are done or
		// under way, and run waits for them.
		c.walk.stop()
	}
	return nil
}

// found takes note of two chunks at off that differ.
func (c *comparer) found(off int64, a, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := 0; i < len(a); i += sectorBytes {
		x, y := a[i:][:sectorBytes], b[i:][:sectorBytes]
		if bytes.Equal(x, y) {
			continue
		}
		c.diff.Sectors++
		first := off + int64(i+firstDifference(x, y))
		if c.diff.FirstByte < 0 || first < c.diff.FirstByte {
			c.diff.FirstByte = first
		}
	}
}

// firstDifference is where two slices of one length that differ first do.
func firstDifference(a, b []byte) int {
	i := 0
	for a[i] == b[i] {
		i++
	}
	return i
}
