package disk

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
)

// Zeros among data are looked for in units. To leave them out pays from a block
// of a filesystem on. To make them is a request of its own to the store, for
// which a block device makes us wait (block/fops.c, blkdev_fallocate), and less
// than 64 KiB of them is sooner written together with the data around.
const (
	leaveOutBytes = 4 << 10
	makeZeroBytes = len(zeros)
)

// CopyOptions say how Copy copies. The zero value takes nothing for granted.
type CopyOptions struct {
	// DstZero says that all of dst reads as zeros, as a new image does. Then
	// zeros are left out; otherwise they are written, by WriteZeroes where dst
	// is a Zeroer.
	DstZero bool
	// Progress, if not nil, is called after each piece of at most 64 MiB with
	// the bytes that are done and those that there are, never with less than
	// before and by one goroutine at a time. The copy waits for it.
	Progress func(doneBytes, totalBytes int64)
}

// CopyStats say what Copy did.
type CopyStats struct {
	DataBytes int64 // written
	ZeroBytes int64 // found to be zeros: left out, or made zeros
}

// Copy makes dst read as src, and what dst has more as zeros, so that Compare
// finds no difference; then it flushes dst. Holes of src are not read if it is
// a Mapper. Zeros are found in its data too, in units of 4 KiB, or of 64 KiB
// without DstZero, and made holes where dst can have them.
//
// Nobody else may write to either. dst must be as large as src at least
// (ErrRange). When Copy fails, dst holds any part of the copy, flushed or not.
// When ctx ends, it returns the cause once the up to 4 requests of 1 MiB that
// are under way have ended.
func Copy(ctx context.Context, dst, src Disk, o CopyOptions) (CopyStats, error) {
	from, to := src.Info(), dst.Info()
	if to.ReadOnly {
		return CopyStats{}, fmt.Errorf("copy to %s: %w", to.Path, ErrReadOnly)
	}
	if err := checkRange(from.SizeBytes, 0, to.SizeBytes); err != nil {
		return CopyStats{}, fmt.Errorf("copy to %s: %w", to.Path, err)
	}
	c := copier{dst: dst, dstZero: o.DstZero, unitBytes: makeZeroBytes}
	if o.DstZero {
		c.unitBytes = leaveOutBytes
	}
	w := newWalk(to.SizeBytes, o.Progress, src)
	c.src = w.sides[0]
	err := w.run(ctx, c.piece)
	if err == nil {
		err = dst.Flush()
	}
	return CopyStats{DataBytes: c.data.Load(), ZeroBytes: c.zero.Load()}, err
}

// copier is a copy under way. Its pieces do not overlap and need no order.
type copier struct {
	dst        Disk
	src        *side
	dstZero    bool
	unitBytes  int
	data, zero atomic.Int64
}

func (c *copier) piece(p piece, buf []byte) error {
	if p.hole {
		return c.writeZeroes(p.off, p.n)
	}
	buf = buf[:p.n]
	if err := c.src.read(buf, p.off); err != nil {
		return err
	}
	for off := p.off; len(buf) > 0; {
		n, zero := zeroRun(buf, c.unitBytes)
		var err error
		if zero {
			err = c.writeZeroes(off, int64(n))
		} else {
			_, err = c.dst.WriteAt(buf[:n], off)
			c.data.Add(int64(n))
		}
		if err != nil {
			return err
		}
		off += int64(n)
		buf = buf[n:]
	}
	return nil
}

func (c *copier) writeZeroes(off, n int64) error {
	c.zero.Add(n)
	if c.dstZero {
		return nil
	}
	if z, ok := c.dst.(Zeroer); ok {
		return z.WriteZeroes(off, n, true)
	}
	for end := off + n; off < end; off += int64(len(zeros)) {
		if _, err := c.dst.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off); err != nil {
			return err
		}
	}
	return nil
}

// zeroRun returns how many bytes at the start of b are zeros, or else data, as
// seen in units of that many bytes. b is not empty; its last unit may be short.
func zeroRun(b []byte, unitBytes int) (n int, zero bool) {
	for n < len(b) {
		unit := b[n:min(n+unitBytes, len(b))]
		isZero := bytes.Equal(unit, zeros[:len(unit)])
		if n > 0 && isZero != zero {
			break
		}
		zero = isZero
		n += len(unit)
	}
	return n, zero
}
