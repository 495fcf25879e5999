package vhd

import (
	"errors"
	"fmt"
)

// punchAlign is the unit in which file systems give space back.
const punchAlign = 4096

// Discard gives the space of n bytes at off back, as far as the leaf holds it
// and the store below can: a read of them returns the old bytes or zeros
// afterwards. Blocks stay allocated, and nothing of a parent is touched.
func (d *Disk) Discard(off, n int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	err := d.checkWrite(n, off)
	if err == nil {
		err = d.w.discard(off, n)
	}
	if err != nil {
		return fmt.Errorf("discard %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// WriteZeroes makes n bytes at off read as zeros. With mayFree their space is
// given back; without, it is kept where there is any. It is a write in all
// else.
func (d *Disk) WriteZeroes(off, n int64, mayFree bool) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	err := d.checkWrite(n, off)
	if err == nil {
		err = d.w.writeZeroes(d.layers, off, n, mayFree)
	}
	if err != nil {
		return fmt.Errorf("write %d zeros at %d: %w", n, off, err)
	}
	return nil
}

// discard punches what is present in the leaf. Only whole pages of the range
// itself are touched, and a block keeps its region as long as the image is
// open, so that no order against writes of other sectors is needed.
func (w *writer) discard(off, n int64) error {
	for n > 0 {
		at, k, err := w.locate(off, n)
		if err != nil {
			return err
		}
		if at != elsewhere {
			err := w.punch(at, k)
			if errors.Is(err, errors.ErrUnsupported) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		off, n = off+k, n-k
	}
	return nil
}

// punch makes a hole of the whole pages of a range of the file.
func (w *writer) punch(at, n int64) error {
	first, end := roundUp(at, punchAlign), (at+n)/punchAlign*punchAlign
	if first >= end {
		return nil
	}
	if err := w.file.PunchHole(first, end-first); err != nil {
		return fmt.Errorf("%s: punch %d bytes at %d: %w", w.path, end-first, first, err)
	}
	return nil
}

// writeZeroes is write of n zeros.
func (w *writer) writeZeroes(layers []*layer, off, n int64, mayFree bool) error {
	for n > 0 {
		k := w.pieceBytes(off, n)
		if !w.unneeded(layers, off, k, nil) {
			at, err := w.home(off)
			if err != nil {
				return err
			}
			if err := w.zeroData(at, k, mayFree); err != nil {
				return err
			}
			if err := w.present(off, k); err != nil {
				return err
			}
		}
		off, n = off+k, n-k
	}
	return w.settle()
}

// zeroData makes a range of the file zeros. What whole pages of it may be free
// become a hole, the rest is written.
func (w *writer) zeroData(at, n int64, mayFree bool) error {
	head, body := n, int64(0)
	if mayFree {
		head = min(n, roundUp(at, punchAlign)-at)
		body = (n - head) / punchAlign * punchAlign
	}
	err := w.fill(at, head)
	if err == nil && body > 0 {
		err = zeroRange(w.file, at+head, body)
	}
	if err == nil {
		err = w.fill(at+head+body, n-head-body)
	}
	if err != nil {
		return fmt.Errorf("%s: zero %d bytes at %d: %w", w.path, n, at, err)
	}
	return nil
}

// fill writes n zeros at a place of the file.
func (w *writer) fill(at, n int64) error {
	for n > 0 {
		k, err := w.file.WriteAt(zeroes[:min(n, zeroesBytes)], at)
		if err != nil {
			return err
		}
		at, n = at+int64(k), n-int64(k)
	}
	return nil
}
