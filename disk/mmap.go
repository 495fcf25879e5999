package disk

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// mmap is the bytes of a file or block device mapped into memory: a request is
// one memcpy, or none when a grant copy works on the mapping itself. Faults are
// errors of one request: see mapping.
//
// Two costs are known. A page fault is not a system call to the Go scheduler,
// so a fault that waits for the device holds its P, and a garbage collection
// that starts meanwhile waits too. And a write past the end of a truncated
// file, but inside its last page, is lost without a fault; Flush looks at
// the size for that reason.
//
// Holes and zeros are made through the fd. Linux takes the range out of the
// page cache and hence out of the mapping, under the lock that page faults take
// (Documentation/filesystems/locking.rst, invalidate_lock), so that the next
// access sees them. A store into a hole that finds no space is a fault.
type mmap struct {
	*flat
	mem mapping // the whole sectors of the image
}

func openMmap(path string, o Options) (Disk, error) {
	d, err := openFlat(path, Mmap, o.access())
	if err != nil {
		return nil, err
	}
	mem, err := mapFile(d.file, d.info.SizeBytes)
	if err != nil {
		return nil, errors.Join(err, d.file.Close())
	}
	return &mmap{flat: d, mem: mem}, nil
}

// Bytes makes mmap a Memory.
func (d *mmap) Bytes(off int64, n int) []byte {
	d.file.mu.RLock()
	defer d.file.mu.RUnlock()
	if d.file.closed || n < 0 || d.check(int64(n), off) != nil {
		return nil
	}
	return d.mem[off : off+int64(n) : off+int64(n)]
}

func (d *mmap) ReadAt(p []byte, off int64) (int, error) {
	d.file.mu.RLock()
	defer d.file.mu.RUnlock()
	err := d.check(int64(len(p)), off)
	switch {
	case d.file.closed:
		err = fs.ErrClosed
	case err == nil:
		err = d.mem.copy(p, d.mem[off:])
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", d.info.Path, err)
	}
	return len(p), nil
}

func (d *mmap) WriteAt(p []byte, off int64) (int, error) {
	d.file.mu.RLock()
	defer d.file.mu.RUnlock()
	err := d.file.writable()
	if err == nil {
		err = d.check(int64(len(p)), off)
	}
	if err == nil {
		err = d.mem.copy(d.mem[off:], p)
	}
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", d.info.Path, err)
	}
	return len(p), nil
}

// Flush is msync(2) with MS_SYNC over the whole mapping, and no fdatasync.
//
// For a shared mapping of a file Linux does the same for both, namely
// vfs_fsync_range with datasync set, on the very same open file, hence with
// the same error report (mm/msync.c, fs/sync.c). The page cache knows which
// mapped pages are dirty since the first store into a clean page faults. So
// one of them is enough, and msync is the one whose contract speaks of
// mappings. Both together cost a second cache flush of the device: 200 rounds
// of 16 dirty pages made 200 flushes with msync, 200 with fdatasync, 400 with
// both (/sys/block/loop0/stat; ext4 and bare loop device, Linux 6.18, x86-64
// VM, 2026-11; the first rounds into holes of an ext4 file make 400, 600).
//
// When the file has become shorter than the disk, Flush fails with ErrFault
// until it has grown again, for writes may have gone nowhere.
func (d *mmap) Flush() error {
	d.file.mu.RLock()
	defer d.file.mu.RUnlock()
	return d.flush()
}

// flush is Flush with mu held.
func (d *mmap) flush() error {
	err := d.file.flush(func() error { return d.file.sys.msync(d.mem, unix.MS_SYNC) })
	if err != nil || d.info.ReadOnly {
		return err
	}
	size, err := d.file.size()
	if err != nil {
		return fmt.Errorf("flush %s: %w", d.info.Path, err)
	}
	if size < d.info.SizeBytes {
		return fmt.Errorf("flush %s: %w: truncated to %d bytes", d.info.Path, ErrFault, size)
	}
	return nil
}

// Close is documented at Disk.
func (d *mmap) Close() error {
	return d.file.finish(func() error {
		return errors.Join(d.flush(), d.mem.unmap(d.info.Path))
	})
}
