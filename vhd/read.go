package vhd

import (
	"errors"
	"fmt"
	"io"
)

// layer is one image of an open chain, with what it takes to find its data.
type layer struct {
	*image
	// full has the blocks that are known to be completely present, whose
	// bitmaps need not be looked at. A block that is not allocated may have
	// its bit already.
	full    bitset
	bitmaps *bitmaps
}

func newLayer(m *image, c *bitmaps) *layer {
	l := &layer{image: m, full: newBitset(m.blocks()), bitmaps: c}
	for i := range min(m.blocks(), 8*int64(len(m.batmap))) {
		// A bit of a block that is not there would hide its bitmap later.
		if m.batmapHas(i) && m.bat[i].Load() != unallocated {
			l.full.set(i)
		}
	}
	return l
}

func (l *layer) fixed() bool { return l.footer.Type == TypeFixed }

const (
	// elsewhere is the place of bytes that an image does not have.
	elsewhere = -1
	// maxRunBlocks bounds how many blocks locate looks at for one answer, which
	// may use no more than the first of them: a map of two layers would take
	// the square of their blocks.
	maxRunBlocks = 1024
)

// locate says where the bytes from off on are in the layer's file, or that
// they are elsewhere, and how many, up to most, have their place together. The
// range must lie inside the layer's disk.
func (l *layer) locate(off, most int64) (at, n int64, err error) {
	if l.fixed() {
		return off, most, nil
	}
	size := l.blockBytes()
	block, within := off/size, off%size
	entry := l.bat[block].Load()
	if entry == unallocated {
		most = min(most, maxRunBlocks*size-within)
		for n = size - within; n < most; n += size {
			if block++; l.bat[block].Load() != unallocated {
				break
			}
		}
		return elsewhere, min(n, most), nil
	}
	most = min(most, size-within)
	m, err := l.bitmaps.get(l, block)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", l.path, err)
	}
	present, sectors := true, most/SectorBytes
	if m != nil {
		present, sectors = m.run(within/SectorBytes, sectors)
	}
	if !present {
		return elsewhere, sectors * SectorBytes, nil
	}
	return l.dataAt(entry) + within, sectors * SectorBytes, nil
}

// readChain fills p with the bytes at off of the disk that the first layer
// shows. What no layer has is zeros, and so is all beyond the end of a layer
// that is smaller than the one above it.
func readChain(layers []*layer, p []byte, off int64) error {
	for len(p) > 0 {
		if len(layers) == 0 || off >= layers[0].sizeBytes {
			clear(p)
			return nil
		}
		l := layers[0]
		at, n, err := l.locate(off, min(int64(len(p)), l.sizeBytes-off))
		if err != nil {
			return err
		}
		if at == elsewhere {
			err = readChain(layers[1:], p[:n], off)
		} else if err = readFull(l.file, p[:n], at); err != nil {
			err = fmt.Errorf("%s: read %d bytes at %d: %w", l.path, n, at, err)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readFull is ReadAt for bytes that must be there.
func readFull(f File, p []byte, at int64) error {
	n, err := f.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// unheld says that no layer has a block of the range, so that it reads as
// zeros. It does no I/O, and so takes no notice of bitmaps.
func unheld(layers []*layer, off, n int64) bool {
	for _, l := range layers {
		if n = min(n, l.sizeBytes-off); n <= 0 {
			return true
		}
		if l.fixed() {
			return false
		}
		for b := off / l.blockBytes(); b*l.blockBytes() < off+n; b++ {
			if l.bat[b].Load() != unallocated {
				return false
			}
		}
	}
	return true
}
