package vhd

import (
	"fmt"
	"sync"
	"syscall"
)

const (
	// dataAlign is where the data of new blocks begin, so that no sector of
	// 4 KiB holds metadata and data. blktap and Windows do the same: the
	// bitmap is sector 8n+7.
	dataAlign = 4096
	// growBytes is how far a file grows at once, at most: large enough that
	// its length seldom changes, small enough to lose without regret.
	growBytes = 64 << 20
)

// space is what follows the blocks of an image that grows. Between its end and
// the end of the file or device there is nothing but the footer:
//
//	... data | gap | bitmap | data | gap | zeros ...             | footer |
//	               ^ region        ^ used                        ^ ready
//
// The gap has room for a footer, so a file can be cut off after each block,
// and no footer ever lies where a bitmap or data will be. All that lies
// between used and ready is known to be zeros: it has been past the end of a
// file, or has been zeroed on a device.
type space struct {
	mu sync.Mutex
	// used is where the last block ends, and ready how far new ones may reach
	// without more ado. A file has its footer at ready.
	used, ready int64
	chunk       int64 // regions by which the file grows next
	left        int64 // blocks that can be allocated yet
	// fresh are blocks that were allocated since the last commit took them.
	fresh []uint32
}

// regionAfter is where a block begins, with its bitmap, if the one before it
// ends at used. It leaves a sector for a footer.
func (w *writer) regionAfter(used int64) int64 { return w.place(used + footerBytes) }

// openSpace finds the space of an image, and makes it zeros.
func (w *writer) openSpace() error {
	w.used, w.chunk = roundUp(w.dataEnd, SectorBytes), 1
	w.ready = w.used
	for i := range w.bat {
		if w.bat[i].Load() == unallocated {
			w.left++
		}
	}
	if w.device() || w.footerAt == w.used && w.fileBytes == w.used+footerBytes {
		return nil
	}
	return w.cut()
}

func (w *writer) device() bool { return w.file.Identity().Block }

// trim gives the space that no block uses back.
func (w *writer) trim() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.device() || w.ready == w.used {
		return nil
	}
	return w.cut()
}

// cut makes a file end with a footer right after its last block. There is one
// at the end of the file at every moment.
func (w *writer) cut() error {
	if _, err := w.file.WriteAt(w.footer.bytes(), w.used); err != nil {
		return fmt.Errorf("%s: write the footer at %d: %w", w.path, w.used, err)
	}
	if err := w.sync(); err != nil {
		return err
	}
	if err := w.file.Truncate(w.used + footerBytes); err != nil {
		return fmt.Errorf("%s: truncate to %d: %w", w.path, w.used+footerBytes, err)
	}
	w.ready = w.used
	return w.sync()
}

// allocate gives a block its region, and says so in memory alone. Of several
// callers one allocates.
func (w *writer) allocate(block int64) (entry uint32, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if entry := w.bat[block].Load(); entry != unallocated {
		return entry, nil
	}
	at := w.regionAfter(w.used)
	end := at + w.stride()
	if end/SectorBytes >= unallocated {
		return 0, fmt.Errorf("a BAT entry cannot say %d: %w", at/SectorBytes, syscall.ENOSPC)
	}
	if end > w.ready {
		if err := w.grow(at); err != nil {
			return 0, err
		}
	}
	w.used = end
	w.left--
	w.unpublished.set(block)
	w.fresh = append(w.fresh, uint32(block))
	if w.footer.Type == TypeDifferencing {
		w.bitmaps.add(newBitmap(w.layer, block, at, nil))
	} else {
		// Over zeros all sectors may be called present at once.
		w.full.set(block)
	}
	entry = uint32(at / SectorBytes)
	w.bat[block].Store(entry)
	w.touched()
	return entry, nil
}

// grow makes the region at a place ready, and some more after it. A file grows
// by its footer at the new end, in one step.
func (w *writer) grow(at int64) error {
	end := at + w.stride()
	if w.device() {
		if limit := w.fileBytes - footerBytes; end > limit {
			return fmt.Errorf("the device ends at %d: %w", w.fileBytes, syscall.ENOSPC)
		}
		if err := zeroRange(w.file, at, end-at); err != nil {
			return fmt.Errorf("zero %d bytes at %d: %w", end-at, at, err)
		}
		w.ready = end
		return nil
	}
	pitch := w.regionAfter(end) - at
	end += (min(w.chunk, w.left) - 1) * pitch
	if _, err := w.file.WriteAt(w.footer.bytes(), end); err != nil {
		return fmt.Errorf("grow to %d: %w", end+footerBytes, err)
	}
	w.ready = end
	if w.chunk*2*pitch <= growBytes {
		w.chunk *= 2
	}
	return nil
}
