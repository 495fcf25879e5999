package disk

import (
	"fmt"

	"xen-disk/vhd"
)

// virtual is a chain of VHD images as a disk. Package vhd does the work; here
// are the locks, the words of this package for what went wrong, and the
// mapping of files that do not change.
type virtual struct {
	disk *vhd.Disk
	info Info
}

func openVHD(path string, o Options) (Disk, error) {
	open := OpenVHDFile
	if o.MapParents {
		open = openVHDMapped
	}
	d, err := vhd.Open(path, vhd.Options{
		ReadOnly: o.ReadOnly, RawParent: o.RawParent, SearchPath: o.SearchPath, OpenFile: open,
	})
	if err != nil {
		return nil, err
	}
	return &virtual{disk: d, info: Info{
		SizeBytes: d.SizeBytes(), ReadOnly: o.ReadOnly, PhysicalSectorBytes: maxFileSectorBytes,
		Format: VHD, Path: path,
	}}, nil
}

// OpenVHDFile opens one file of a chain with this package's checks and locks:
// it is the [vhd.OpenFunc] for all that xen-disk does with VHDs.
func OpenVHDFile(path string, write bool) (vhd.File, error) {
	a := forReading
	if write {
		a = forWriting
	}
	f, err := openFile(path, a)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openVHDMapped maps what is opened for reading: a parent, or the leaf of a
// read-only disk. Metadata are never written through a mapping.
func openVHDMapped(path string, write bool) (vhd.File, error) {
	if write {
		return OpenVHDFile(path, true)
	}
	f, err := openMapped(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *virtual) Info() Info { return d.info }

// Problems are what was found in the images when they were opened.
func (d *virtual) Problems() []vhd.Problem { return d.disk.Problems() }

func (d *virtual) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(int64(len(p)), off); err != nil {
		return 0, fmt.Errorf("read %s: %w", d.info.Path, err)
	}
	return d.disk.ReadAt(p, off)
}

func (d *virtual) WriteAt(p []byte, off int64) (int, error) {
	if err := d.checkWrite(int64(len(p)), off); err != nil {
		return 0, fmt.Errorf("write %s: %w", d.info.Path, err)
	}
	return d.disk.WriteAt(p, off)
}

func (d *virtual) Flush() error { return d.disk.Flush() }

func (d *virtual) Close() error { return d.disk.Close() }

// Granularity makes a chain a Discarder. Data of a block lie on whole pages of
// the file where xen-disk, blktap or Windows made it; of images by QEMU a
// discard frees a page less at each end.
func (d *virtual) Granularity() (granularity, alignment int64) { return maxFileSectorBytes, 0 }

func (d *virtual) Discard(off, n int64) error {
	if err := d.checkWrite(n, off); err != nil {
		return fmt.Errorf("discard %s: %w", d.info.Path, err)
	}
	return d.disk.Discard(off, n)
}

func (d *virtual) WriteZeroes(off, n int64, mayFree bool) error {
	if err := d.checkWrite(n, off); err != nil {
		return fmt.Errorf("write zeros to %s: %w", d.info.Path, err)
	}
	return d.disk.WriteZeroes(off, n, mayFree)
}

func (d *virtual) NextExtent(off int64) (Extent, error) {
	if err := d.check(sectorBytes, off); err != nil {
		return Extent{}, fmt.Errorf("map %s: %w", d.info.Path, err)
	}
	e, err := d.disk.NextExtent(off)
	return Extent{Off: e.Off, Len: e.Len, Zero: e.Zero, Allocated: e.Allocated}, err
}

func (d *virtual) check(n, off int64) error { return checkRange(n, off, d.info.SizeBytes) }

func (d *virtual) checkWrite(n, off int64) error {
	if d.info.ReadOnly {
		return ErrReadOnly
	}
	return d.check(n, off)
}
