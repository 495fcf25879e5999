package disk

import (
	"fmt"
	"io/fs"
	"sync/atomic"
)

// discardSizeBytes is the size of the original's DISCARD module, 1 GiB
// (mirage/xen-disk): room for any dd run, small enough for every guest.
const discardSizeBytes = 1 << 30

// discard acknowledges everything and does nothing. It is the format without
// an image, which measures the block protocol itself.
type discard struct {
	readOnly bool
	closed   atomic.Bool
}

func newDiscard(o Options) *discard { return &discard{readOnly: o.ReadOnly} }

// AcknowledgesEverything makes discard a Sink.
func (d *discard) AcknowledgesEverything() {}

func (d *discard) Info() Info {
	return Info{
		SizeBytes:           discardSizeBytes,
		ReadOnly:            d.readOnly,
		PhysicalSectorBytes: sectorBytes, // nothing below to be aligned to
		Format:              Discard,
	}
}

// ReadAt fills p with zeros, so that a caller that does not know Sink gets
// defined data and never what was in its buffer before.
func (d *discard) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(int64(len(p)), off); err != nil {
		return 0, fmt.Errorf("read discard: %w", err)
	}
	clear(p)
	return len(p), nil
}

func (d *discard) WriteAt(p []byte, off int64) (int, error) {
	if d.readOnly {
		return 0, fmt.Errorf("write discard: %w", ErrReadOnly)
	}
	if err := d.check(int64(len(p)), off); err != nil {
		return 0, fmt.Errorf("write discard: %w", err)
	}
	return len(p), nil
}

func (d *discard) Flush() error {
	if d.closed.Load() {
		return fmt.Errorf("flush discard: %w", fs.ErrClosed)
	}
	return nil
}

func (d *discard) Close() error {
	d.closed.Store(true)
	return nil
}

func (d *discard) check(n, off int64) error {
	if d.closed.Load() {
		return fs.ErrClosed
	}
	return checkRange(n, off, discardSizeBytes)
}
