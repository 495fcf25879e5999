package vhd

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
)

// writer is what the leaf of a chain has besides its layer: the space after
// its blocks, and what the next commit has to write.
//
// The rules that keep an image whole when the power fails, for data D of a
// sector, its bit M in the bitmap, and the entry B of its block in the BAT:
//
//   - D is durable before M is written, where B may be durable already;
//   - the length of the file, the footer at its end, D and M are durable
//     before B is written;
//   - space is handed out again only after a B that freed it is durable, so
//     never while the image is open.
//
// Memory runs ahead of the file: M and B are set there when D is written, and
// only commit writes them.
type writer struct {
	*layer
	space
	wake  chan<- struct{} // tells commitLater
	dirty atomic.Bool     // wake was told since the last commit
	group commitGroup
	steps []commitStep
	// changed says that a commit has changed metadata. Runs of commits follow
	// each other, and close follows them.
	changed bool

	// unpublished has the blocks that are allocated in memory and whose entry
	// has never been written, so that nothing of theirs can be seen in the
	// file. Only a commit removes them.
	unpublished bitset
	failed      atomic.Pointer[error]
}

// newWriter prepares the leaf for writing, which may change its file.
func newWriter(l *layer, wake chan<- struct{}) (*writer, error) {
	w := &writer{layer: l, wake: wake, steps: commitSteps()}
	w.group.ended = sync.NewCond(&w.group.mu)
	if err := recoverFooter(l.image); err != nil {
		return nil, err
	}
	if l.fixed() {
		return w, nil
	}
	w.unpublished = newBitset(l.blocks())
	if err := w.openSpace(); err != nil {
		return nil, err
	}
	return w, nil
}

// failure is why nothing can be written any more.
func (w *writer) failure() error {
	if err := w.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// sync makes the file durable, or never again.
func (w *writer) sync() error {
	if err := w.failure(); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		err = fmt.Errorf("%w: %s: %w", ErrFailed, w.path, err)
		w.failed.Store(&err)
		return err
	}
	return nil
}

// touched tells that there is something to commit.
func (w *writer) touched() {
	if !w.dirty.Swap(true) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// write writes p at off of the disk that the layers show.
func (w *writer) write(layers []*layer, p []byte, off int64) error {
	for len(p) > 0 {
		n := w.pieceBytes(off, int64(len(p)))
		if err := w.writePiece(layers, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return w.settle()
}

// pieceBytes is how many of n bytes at off lie in one block.
func (w *writer) pieceBytes(off, n int64) int64 {
	if w.fixed() {
		return n
	}
	return min(n, w.blockBytes()-off%w.blockBytes())
}

// writePiece writes bytes of one block.
func (w *writer) writePiece(layers []*layer, p []byte, off int64) error {
	n := int64(len(p))
	if w.unneeded(layers, off, n, p) {
		return nil
	}
	at, err := w.home(off)
	if err != nil {
		return err
	}
	if _, err := w.file.WriteAt(p, at); err != nil {
		return fmt.Errorf("%s: write %d bytes at %d: %w", w.path, n, at, err)
	}
	return w.present(off, n)
}

// unneeded says that zeros need not be written, since no image has the place
// where they would hide something. No p is zeros.
func (w *writer) unneeded(layers []*layer, off, n int64, p []byte) bool {
	return !w.fixed() && w.bat[off/w.blockBytes()].Load() == unallocated &&
		isZero(p) && unheld(layers[1:], off, n)
}

// home returns where in the file the byte at off goes, and allocates its block
// if need be.
func (w *writer) home(off int64) (at int64, err error) {
	if w.fixed() {
		return off, nil
	}
	block, within := off/w.blockBytes(), off%w.blockBytes()
	entry := w.bat[block].Load()
	if entry == unallocated {
		if entry, err = w.allocate(block); err != nil {
			return 0, fmt.Errorf("%s: allocate block %d: %w", w.path, block, err)
		}
	}
	return w.dataAt(entry) + within, nil
}

// present notes that n bytes of one block have been written at off.
func (w *writer) present(off, n int64) error {
	if w.fixed() {
		return nil
	}
	block, within := off/w.blockBytes(), off%w.blockBytes()
	changed, err := w.bitmaps.mark(w.layer, block, within/SectorBytes, n/SectorBytes)
	if err != nil {
		return fmt.Errorf("%s: %w", w.path, err)
	}
	if changed {
		w.touched()
	}
	return nil
}

// settle holds up who writes while too many bitmaps wait for a commit.
func (w *writer) settle() error {
	if w.bitmaps.dirtyBytes.Load() <= maxDirtyBytes {
		return nil
	}
	return w.commit()
}

// rest leaves the file as if it was closed: all is committed, and what was
// never used is cut off. Writing may go on.
func (w *writer) rest() error {
	if err := w.commit(); err != nil || w.fixed() {
		return err
	}
	if w.changed {
		if err := w.writeBatmap(w.full.has); err != nil {
			return fmt.Errorf("%s: %w", w.path, err)
		}
		if err := w.sync(); err != nil {
			return err
		}
	}
	return w.trim()
}

const zeroesBytes = 64 << 10

// zeroes is compared with and written, never changed.
var zeroes [zeroesBytes]byte

func isZero(p []byte) bool {
	for len(p) > zeroesBytes {
		if !bytes.Equal(p[:zeroesBytes], zeroes[:]) {
			return false
		}
		p = p[zeroesBytes:]
	}
	return bytes.Equal(p, zeroes[:len(p)])
}
