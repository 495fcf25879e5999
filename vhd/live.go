package vhd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// sharer is a File that can turn the lock of its only user into that of a
// reader.
type sharer interface{ Share() error }

// Snapshot makes child, which must not exist, a differencing image of the leaf
// and goes on in it: what has been written until now stays in the old leaf,
// which is not written any more. Calls beside it wait as long as a Flush and a
// bit more; what they change is on one side or the other as a whole.
//
// The file of the old leaf stays open. If it has a method Share() error, that
// is called when nothing is written to it any more, so that others may read it.
//
// When it fails the disk goes on as it was, and there is no child.
func (d *Disk) Snapshot(child string) error {
	d.snapshots.Lock()
	defer d.snapshots.Unlock()
	if err := d.snapshot(child); err != nil {
		return fmt.Errorf("snapshot to %s: %w", child, err)
	}
	return nil
}

// snapshot does what takes time beside other calls: the child is made, and
// what is not durable yet is flushed. Only snapshot changes the layers.
func (d *Disk) snapshot(child string) error {
	d.mu.RLock()
	closed := d.closed
	parent, depth := d.layers[0], len(d.layers)
	d.mu.RUnlock()
	switch {
	case closed:
		return fs.ErrClosed
	case d.options.ReadOnly:
		return ErrReadOnly
	case depth >= d.options.depth():
		return fmt.Errorf("%w: %d images", ErrTooDeep, depth)
	}
	if err := createChild(child, parent.image, SnapshotOptions{}); err != nil {
		return err
	}
	leaf, err := d.openChild(child, parent.image)
	if err != nil {
		return errors.Join(err, os.Remove(child))
	}
	if err = d.Flush(); err == nil {
		err = d.shift(leaf)
	}
	if err != nil {
		return errors.Join(err, leaf.file.Close(), os.Remove(child))
	}
	return nil
}

// openChild opens the child, and makes sure that it finds its parent.
func (d *Disk) openChild(path string, parent *image) (*writer, error) {
	m, err := openImage(path, true, &d.options)
	if err != nil {
		return nil, err
	}
	// The lock on the parent is ours, and stays.
	found, err := openParent([]*image{m}, &Options{RawParent: true})
	if err == nil {
		if found.file.Identity() != parent.file.Identity() {
			err = fmt.Errorf("%s: %w as parent of the snapshot", found.path, errOtherUUID)
		}
		err = errors.Join(err, found.file.Close())
	}
	var leaf *writer
	if err == nil {
		leaf, err = newWriter(newLayer(m, d.bitmaps), d.wake)
	}
	if err != nil {
		return nil, errors.Join(err, m.file.Close())
	}
	return leaf, nil
}

// shift puts a leaf over the present one.
func (d *Disk) shift(leaf *writer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fs.ErrClosed
	}
	if err := d.w.rest(); err != nil {
		return err
	}
	if s, ok := d.w.file.(sharer); ok {
		if err := s.Share(); err != nil {
			return fmt.Errorf("%s: share: %w", d.w.path, err)
		}
	}
	d.layers = slices.Insert(slices.Clone(d.layers), 0, leaf.layer)
	d.w = leaf
	return nil
}
