package vhd

import (
	"context"
	"errors"
	"fmt"
)

// CoalesceOptions say how Coalesce finds the parent.
type CoalesceOptions struct {
	// Open says how the child and its parents are opened; ReadOnly means
	// nothing here.
	Open Options
	// Progress, if not nil, is told how many bytes of the disk are done.
	Progress func(done, total int64)
}

// CoalesceStats say what Coalesce did.
type CoalesceStats struct {
	// Parent is the file that has the data of the child now.
	Parent string
	// CopiedBytes were written, ZeroedBytes made zeros.
	CopiedBytes, ZeroedBytes int64
}

// Coalesce writes all that a differencing image has into its parent, which
// must be at hand for writing and grows if it is too small. When it has
// returned nil the parent alone is what the child was, durably: the child can
// be removed, after its own children have been given the parent ([Reparent]).
// Coalesce leaves the child as it is. A parent that has data beyond the end of
// the child is refused with ErrParentShows.
//
// The parent must have no other child: what that shows would change with it.
// An image does not know its children, so this is for the caller to know.
//
// The child stays right whatever happens on the way, since each sector that is
// written is one that the child has too. After a crash, or when ctx ends, it
// is called again and does all of it again.
func Coalesce(ctx context.Context, child string, o CoalesceOptions) (stats CoalesceStats, err error) {
	err = coalesce(ctx, child, &o, &stats)
	if err != nil {
		err = fmt.Errorf("coalesce %s: %w", child, err)
	}
	return stats, err
}

func coalesce(ctx context.Context, path string, o *CoalesceOptions, stats *CoalesceStats) (err error) {
	child, err := openImage(path, false, &o.Open)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, child.file.Close()) }()
	if err := checkChild(child); err != nil {
		return err
	}
	parents, err := openParents(child, &o.Open)
	if err != nil {
		return err
	}
	found := parents[0].image
	stats.Parent = found.path
	err = checkParentEnd(ctx, parents, child.sizeBytes, found.sizeBytes)
	// Their locks are in the way of the one for writing.
	if err := errors.Join(err, closeLayers(parents)); err != nil {
		return err
	}
	if found.sizeBytes < child.sizeBytes {
		if err := growParent(ctx, found, child.sizeBytes, &o.Open); err != nil {
			return err
		}
	}
	parent, err := openTarget(found, &o.Open)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	if err := copyDown(ctx, parent, newLayer(child, newBitmaps()), o, stats); err != nil {
		return err
	}
	return parent.Flush()
}

// checkChild says why the data of an image cannot be given to its parent.
func checkChild(m *image) error {
	if m.footer.Type != TypeDifferencing {
		return fmt.Errorf("%w: a %s image has no parent", ErrUnsupported, m.footer.Type)
	}
	if m.encrypted {
		return ErrEncrypted
	}
	// What is damaged may not be all.
	return m.writable()
}

// target is what a parent is for who writes it.
type target interface {
	WriteAt(p []byte, off int64) (int, error)
	WriteZeroes(off, n int64, mayFree bool) error
	Flush() error
	Close() error
}

// rawTarget is a parent that is no VHD.
type rawTarget struct{ File }

func (r rawTarget) WriteZeroes(off, n int64, _ bool) error { return zeroRange(r.File, off, n) }
func (r rawTarget) Flush() error                           { return r.Sync() }

// growParent makes a parent at least so large.
func growParent(ctx context.Context, m *image, sizeBytes int64, o *Options) error {
	if !m.raw {
		return Resize(ctx, m.path, sizeBytes, ResizeOptions{Open: *o, AllowLarge: true})
	}
	file, err := o.open(m.path, true)
	if err == nil {
		err = errors.Join(file.Truncate(sizeBytes), file.Close())
	}
	if err != nil {
		return fmt.Errorf("grow %s: %w", m.path, err)
	}
	return nil
}

// openTarget opens a parent that has been looked at for writing.
func openTarget(m *image, o *Options) (target, error) {
	if m.raw {
		file, err := o.open(m.path, true)
		return rawTarget{file}, err
	}
	write := *o
	write.ReadOnly = false
	d, err := Open(m.path, write)
	if err != nil {
		return nil, err
	}
	if got := d.layers[0].footer.UUID; got != m.footer.UUID {
		return nil, errors.Join(fmt.Errorf("%s %w: its UUID is %s", m.path, errOtherUUID, got), d.Close())
	}
	return d, nil
}

// copyDown writes what a layer has.
func copyDown(ctx context.Context, to target, from *layer, o *CoalesceOptions, stats *CoalesceStats) error {
	buf := copyBuffer(from.image)
	for off := int64(0); off < from.sizeBytes; {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, n, err := from.locate(off, from.sizeBytes-off)
		if err == nil && at != elsewhere {
			n, err = copyPiece(to, from.file, off, at, buf[:min(n, int64(len(buf)))], stats)
		}
		if err != nil {
			return err
		}
		off += n
		if o.Progress != nil {
			o.Progress(off, from.sizeBytes)
		}
	}
	return nil
}

// copyPiece writes what lies at a place of a file, as much of it as is alike.
func copyPiece(to target, from File, off, at int64, buf []byte, stats *CoalesceStats) (n int64, err error) {
	hole, n, err := holeAt(from, at, int64(len(buf)))
	if err != nil {
		return 0, err
	}
	if !hole {
		if err := readFull(from, buf[:n], at); err != nil {
			return 0, err
		}
	}
	if hole || isZero(buf[:n]) {
		stats.ZeroedBytes += n
		return n, to.WriteZeroes(off, n, true)
	}
	stats.CopiedBytes += n
	_, err = to.WriteAt(buf[:n], off)
	return n, err
}
