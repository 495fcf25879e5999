package vhd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
)

// ResizeOptions say how Resize treats an image.
type ResizeOptions struct {
	// Open says how the image is opened, and the parents of a differencing
	// one; ReadOnly means nothing here.
	Open Options
	// Force cuts off data that are not zeros.
	Force bool
	// AllowLarge permits more than MaxSizeBytes.
	AllowLarge bool
}

var (
	// ErrDataLoss: a smaller disk would not have room for its data.
	ErrDataLoss = errors.New("data would be lost")
	// ErrParentShows: a parent has data beyond the end of its child, which
	// would come to be seen.
	ErrParentShows = errors.New("parent has data beyond the end of its child")
)

// Resize changes the virtual size of an image that nobody has open, in place.
// New bytes read as zeros. A child need not be as large as its parent, so the
// size of an image may change when it has children.
//
// A fixed or dynamic image shrinks if all that is cut off is zeros: otherwise
// Resize fails with ErrDataLoss, unless forced. A differencing image only
// grows, and only where its parent has zeros: otherwise Resize fails with
// ErrParentShows.
//
// After a crash, or when ctx ends, the image is whole and has its old size or
// the new one. This takes 512 bytes that are written entirely or not at all;
// and, for a fixed image, which has one footer, a file system that does not
// make the new length of a file durable before the bytes at its end (ext4 with
// data=ordered, XFS and Btrfs do not).
func Resize(ctx context.Context, path string, sizeBytes int64, o ResizeOptions) error {
	if err := resize(ctx, path, sizeBytes, &o); err != nil {
		return fmt.Errorf("resize %s: %w", path, err)
	}
	return nil
}

func resize(ctx context.Context, path string, sizeBytes int64, o *ResizeOptions) error {
	e, err := openEditor(path, &o.Open)
	if err != nil {
		return err
	}
	return e.close(e.resize(ctx, sizeBytes, o))
}

func (e *editor) resize(ctx context.Context, sizeBytes int64, o *ResizeOptions) error {
	f := e.footer
	f.CurrentSize, f.Geometry = uint64(sizeBytes), geometryOf(uint64(sizeBytes))
	if err := ctx.Err(); err != nil || sizeBytes == e.sizeBytes {
		return err
	}
	wanted := blueprint{footer: f, header: e.header}
	if err := wanted.check(o.AllowLarge); err != nil {
		return err
	}
	if sizeBytes < e.sizeBytes {
		if err := e.checkCut(ctx, sizeBytes, o); err != nil {
			return err
		}
		return e.shrink(f)
	}
	if f.Type == TypeFixed {
		return e.growFixed(f)
	}
	if err := e.checkParents(ctx, sizeBytes, &o.Open); err != nil {
		return err
	}
	return e.grow(f)
}

// setSize gives the image a footer with another size, at once.
func (e *editor) setSize(f Footer) error {
	e.sizeBytes = int64(f.CurrentSize)
	return e.switchFooter(f)
}

// growFixed moves the footer to the new end before it says so, since the guest
// must read zeros where it was.
func (e *editor) growFixed(f Footer) error {
	size := int64(f.CurrentSize)
	if err := e.extend(size); err != nil {
		return err
	}
	if err := zeroRange(e.file, e.sizeBytes, size-e.sizeBytes); err != nil {
		return err
	}
	if err := e.file.Sync(); err != nil {
		return err
	}
	return e.setSize(f)
}

// grow makes a disk of blocks larger.
func (e *editor) grow(f Footer) error {
	if err := e.zeroTail(); err != nil {
		return err
	}
	size, old := int64(f.CurrentSize), e.blocks()
	sameMap := e.batmapAt < 0 || batmapSectors(size) == batmapSectors(e.sizeBytes)
	e.growBAT((size-1)/e.blockBytes() + 1)
	if e.blocks() > int64(e.header.MaxTableEntries) || !sameMap {
		return e.moveBAT(f)
	}
	// Entries that were beyond the end of the disk may be anything.
	if err := e.writeBAT(int64(e.header.TableOffset), old); err != nil {
		return err
	}
	if err := e.file.Sync(); err != nil {
		return err
	}
	return e.setSize(f)
}

// zeroTail makes zeros of what the last block has beyond the end of the disk.
func (e *editor) zeroTail() error {
	n := e.sizeBytes % e.blockBytes()
	entry := e.bat[e.blocks()-1].Load()
	if n == 0 || entry == unallocated {
		return nil
	}
	return zeroRange(e.file, e.dataAt(entry)+n, e.blockBytes()-n)
}

// growBAT gives the BAT n entries, in memory.
func (e *editor) growBAT(n int64) {
	bat := make([]atomic.Uint32, n)
	for i := range bat {
		entry := uint32(unallocated)
		if i < len(e.bat) {
			entry = e.bat[i].Load()
		}
		bat[i].Store(entry)
	}
	e.bat = bat
}

// writeBAT writes the entries from one on of a BAT that lies at a place, and
// fills its last sector.
func (e *editor) writeBAT(at, from int64) error {
	for from < e.blocks() {
		start, b := at+4*from, e.buf[:0]
		for ; from < e.blocks() && len(b) < cap(b); from++ {
			b = binary.BigEndian.AppendUint32(b, e.bat[from].Load())
		}
		for from == e.blocks() && (start+int64(len(b)))%SectorBytes != 0 {
			b = append(b, 0xFF)
		}
		if _, err := e.file.WriteAt(b, start); err != nil {
			return err
		}
	}
	return nil
}

// moveBAT writes the BAT, and the batmap behind it, where there is room. The
// header points there from the instant on in which the size changes.
func (e *editor) moveBAT(f Footer) error {
	h := e.header
	h.MaxTableEntries = uint32(e.blocks())
	n := h.tableBytes()
	batmapBytes := batmapSectors(int64(f.CurrentSize)) * SectorBytes
	if f.hasBatmap() {
		n += batmapHeaderBytes + batmapBytes
	}
	at, err := e.inFront(n)
	if err != nil {
		return err
	}
	h.TableOffset = uint64(at)
	if err := e.writeBAT(at, 0); err != nil {
		return err
	}
	if f.hasBatmap() {
		if err := e.copyBatmap(at+h.tableBytes(), batmapBytes); err != nil {
			return err
		}
	}
	if err := e.switchHeader(h, f); err != nil {
		return err
	}
	e.sizeBytes = int64(f.CurrentSize)
	if f.hasBatmap() {
		e.batmapAt = at + h.tableBytes()
	}
	return nil
}

// copyBatmap writes a batmap of another length, with the bits that there are.
func (e *editor) copyBatmap(to, n int64) error {
	h := make([]byte, batmapHeaderBytes)
	if e.batmapAt >= 0 {
		if err := e.readInto(h, e.batmapAt); err != nil {
			return err
		}
	}
	b := make([]byte, n)
	copy(b, e.batmap)
	putBatmapHeader(h, to, b)
	_, err := e.file.WriteAt(append(h, b...), to)
	return err
}

// shrink changes the size first, and gives the blocks back then.
func (e *editor) shrink(f Footer) error {
	if f.Type == TypeFixed {
		return e.setSize(f)
	}
	keep := (int64(f.CurrentSize)-1)/e.blockBytes() + 1
	var gone []int64
	for b := keep; b < e.blocks(); b++ {
		if e.bat[b].Load() != unallocated {
			gone = append(gone, b)
		}
	}
	// A smaller disk has a shorter batmap, whose sum is the same without them.
	if err := e.forget(gone); err != nil {
		return err
	}
	if err := e.setSize(f); err != nil {
		return err
	}
	// Nobody looks at these entries now, but who makes the disk larger might.
	for _, b := range gone {
		if err := e.point(b, unallocated); err != nil {
			return err
		}
	}
	e.bat = e.bat[:keep]
	return e.zeroTail()
}

// checkCut says why a disk should not become smaller.
func (e *editor) checkCut(ctx context.Context, sizeBytes int64, o *ResizeOptions) error {
	if e.footer.Type == TypeDifferencing {
		return fmt.Errorf("%w: a differencing image does not shrink", ErrUnsupported)
	}
	if o.Force {
		return nil
	}
	zeros, err := readsZeros(ctx, []*layer{e.layer}, sizeBytes, e.sizeBytes, e.buf)
	if err == nil && !zeros {
		err = fmt.Errorf("%w: there are some between %d and %d", ErrDataLoss, sizeBytes, e.sizeBytes)
	}
	return err
}

// checkParents says why a disk should not become larger.
func (e *editor) checkParents(ctx context.Context, sizeBytes int64, o *Options) error {
	if e.footer.Type != TypeDifferencing {
		return nil
	}
	parents, err := openParents(e.image, o)
	if err != nil {
		return err
	}
	return errors.Join(checkParentEnd(ctx, parents, e.sizeBytes, sizeBytes), closeLayers(parents))
}
