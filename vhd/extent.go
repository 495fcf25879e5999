package vhd

import "fmt"

// Extent is a run of bytes of a disk that are alike.
type Extent struct {
	Off, Len int64 // multiples of 512; Len is more than 0
	// Zero says that all of it reads as zeros. False says nothing: zeros may
	// be stored as data.
	Zero bool
	// Allocated says that an image holds it, and not as a hole of its file.
	Allocated bool
	// Layer is the image of the chain that holds it, even as a hole: 0 for the
	// leaf, 1 for its parent. It is -1 when none does.
	Layer int
}

// NextExtent returns the extent that begins at off, a multiple of 512 below
// SizeBytes. Extents of the same kind that touch need not be joined. Beside
// writes it tells of before or after, sector by sector.
func (d *Disk) NextExtent(off int64) (Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	err := d.check(SectorBytes, off)
	var e Extent
	if err == nil {
		e, err = nextExtent(d.layers, off)
	}
	if err != nil {
		return Extent{}, fmt.Errorf("find the extent at %d: %w", off, err)
	}
	return e, nil
}

func nextExtent(layers []*layer, off int64) (Extent, error) {
	most := layers[0].sizeBytes - off
	for i, l := range layers {
		if off >= l.sizeBytes {
			break
		}
		at, n, err := l.locate(off, min(most, l.sizeBytes-off))
		if err != nil {
			return Extent{}, err
		}
		most = n
		if at != elsewhere {
			hole, n, err := holeAt(l.file, at, n)
			if err != nil {
				return Extent{}, fmt.Errorf("%s: %w", l.path, err)
			}
			return Extent{Off: off, Len: n, Zero: hole, Allocated: !hole, Layer: i}, nil
		}
	}
	return Extent{Off: off, Len: most, Zero: true, Layer: -1}, nil
}

// holeAt says whether a file has a hole at a place, and how many whole
// sectors, of n bytes, are like the first.
func holeAt(f File, at, n int64) (hole bool, alike int64, err error) {
	start, end, err := f.NextData(at)
	if err != nil {
		return false, 0, fmt.Errorf("seek data at %d: %w", at, err)
	}
	if start > at {
		alike = (min(start, at+n) - at) / SectorBytes * SectorBytes
	}
	if alike > 0 {
		return true, alike, nil
	}
	return false, min(n, max(SectorBytes, roundUp(end-at, SectorBytes))), nil
}
