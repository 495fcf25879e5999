package disk

import (
	"fmt"
	"io/fs"
	"math/bits"

	"golang.org/x/sys/unix"
)

// maxFileSectorBytes caps the physical sector that a file announces: the page
// size of the page cache and the largest sector that guests know.
const maxFileSectorBytes = 4096

// flat is what raw and mmap have in common: a file whose bytes are the disk's
// bytes, one to one.
type flat struct {
	file  *imageFile
	info  Info
	grain grain
}

// openFlat opens, locks and measures the image at path.
func openFlat(path string, f Format, a access) (*flat, error) {
	file, err := openFile(path, a)
	if err != nil {
		return nil, err
	}
	d, err := newFlat(file, f)
	if err != nil {
		file.Close()
		return nil, err
	}
	return d, nil
}

// newFlat measures an open file.
func newFlat(file *imageFile, f Format) (*flat, error) {
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	if size < sectorBytes {
		return nil, fmt.Errorf("open %s: %w: %d bytes", file.path, ErrTooSmall, size)
	}
	physical := fileSectorBytes(int64(file.stat.Blksize))
	g := grain{sizeBytes: int64(physical)}
	if file.block {
		n, err := unix.IoctlGetUint32(file.fd, unix.BLKPBSZGET)
		if err != nil {
			return nil, &fs.PathError{Op: "measure", Path: file.path, Err: err}
		}
		physical = max(int(n), sectorBytes)
		g = deviceGrain(sysfsDevice(uint64(file.stat.Rdev)))
	}
	return &flat{file: file, grain: g, info: Info{
		SizeBytes:           size - size%sectorBytes,
		TailBytes:           size % sectorBytes,
		ReadOnly:            file.readOnly,
		PhysicalSectorBytes: physical,
		Format:              f,
		Path:                file.path,
	}}, nil
}

// fileSectorBytes turns st_blksize into a physical sector size. A file in the
// page cache is written back by whole blocks, so that a guest which knows the
// block size avoids a read before each small write; 512 would be true and
// slow. Filesystems report anything from 512 (ZFS) to 1 MiB (NFS), and not
// always a power of two.
func fileSectorBytes(blksize int64) int {
	if blksize < sectorBytes {
		return sectorBytes
	}
	return 1 << (bits.Len64(uint64(min(blksize, maxFileSectorBytes))) - 1)
}

// Info returns what was found out at Open.
func (d *flat) Info() Info { return d.info }

// check says whether n bytes at off lie on the disk.
func (d *flat) check(n, off int64) error { return checkRange(n, off, d.info.SizeBytes) }

// Granularity makes raw and mmap Discarders. For a file it is the block of the
// filesystem as far as stat knows, at most 4 KiB: where blocks are larger a
// discard of less frees nothing and harms nothing.
func (d *flat) Granularity() (granularity, alignment int64) {
	return d.grain.sizeBytes, d.grain.firstByte
}

// Discard gives back the whole grains of the range and leaves its edges alone:
// to clear a part of a block takes a write and frees nothing.
func (d *flat) Discard(off, n int64) error {
	if err := d.check(n, off); err != nil {
		return fmt.Errorf("discard %s: %w", d.info.Path, err)
	}
	off, n = d.grain.inside(off, n)
	return d.file.discard(off, n)
}

// WriteZeroes makes raw and mmap Zeroers.
func (d *flat) WriteZeroes(off, n int64, mayFree bool) error {
	if err := d.check(n, off); err != nil {
		return fmt.Errorf("write zeros to %s: %w", d.info.Path, err)
	}
	return d.file.zero(off, n, mayFree)
}

// NextExtent makes raw and mmap Mappers. What lseek(2) calls a hole reads as
// zeros; space that was reserved there by fallocate(2) and never written is
// not told apart and counts as not allocated. A block device is all data.
//
// What lies past the end of a file that was truncated is called data, so that
// who reads it meets the error, and so is all the rest where the filesystem's
// answers do not go forward.
func (d *flat) NextExtent(off int64) (Extent, error) {
	size := d.info.SizeBytes
	if err := d.check(sectorBytes, off); err != nil {
		return Extent{}, fmt.Errorf("map %s: %w", d.info.Path, err)
	}
	start, end, err := d.file.NextData(off)
	if err != nil {
		return Extent{}, err
	}
	if hole := min(start, size) &^ (sectorBytes - 1); hole > off {
		return Extent{Off: off, Len: hole - off, Zero: true}, nil
	}
	end = (min(end, size) + sectorBytes - 1) &^ (sectorBytes - 1)
	if end <= off {
		end = size
	}
	return Extent{Off: off, Len: end - off, Allocated: true}, nil
}
