package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"
)

// maxFileSectorBytes caps the physical sector that a file announces: the page
// size of the page cache and the largest sector that guests know.
const maxFileSectorBytes = 4096

// file is the open, locked image that raw and mmap share: it owns the fd.
type file struct {
	// mu is held shared during a call and exclusively by Close, so that no
	// call ever meets an fd number or an address that the kernel has given to
	// someone else meanwhile.
	mu     sync.RWMutex
	closed bool
	fd     int
	block  bool
	info   Info
	sys    syscalls

	flushMu  sync.Mutex
	flushErr error // the first failure of a flush; never cleared
}

// syscalls are the kernel's doors that tests replace to inject failures.
type syscalls struct {
	pread     func(fd int, p []byte, off int64) (int, error)
	pwrite    func(fd int, p []byte, off int64) (int, error)
	fdatasync func(fd int) error
	msync     func(b []byte, flags int) error
}

// openFile opens and locks the image at path. Nothing is opened that could
// hang or have an effect by being opened (a fifo, a tape): the path is looked
// at before, and what was opened is looked at again.
func openFile(path string, f Format, o Options) (*file, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	block, err := imageKind(st.Mode)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	fd, err := openFD(path, block, o)
	if err != nil {
		return nil, err
	}
	d := &file{fd: fd, block: block, sys: syscalls{
		pread: unix.Pread, pwrite: unix.Pwrite, fdatasync: unix.Fdatasync, msync: unix.Msync,
	}}
	if err := d.adopt(path, f, o); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

// openFD opens path. O_NONBLOCK keeps a fifo that took the file's place since
// the stat, or a lease that someone holds, from blocking us; it is taken off
// again since FUSE servers get to see it.
//
// O_DIRECT would go here, together with aligned buffers and the device's
// BLKSSZGET; for now everything is buffered.
func openFD(path string, block bool, o Options) (int, error) {
	flags := unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_LARGEFILE
	switch {
	case o.ReadOnly:
		flags |= unix.O_RDONLY
	case block:
		flags |= unix.O_RDWR | unix.O_EXCL // claims the device: open(2), O_EXCL
	default:
		flags |= unix.O_RDWR
	}
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags, 0)
		return err
	})
	switch {
	case err == nil:
		return fd, nil
	case block && err == unix.EBUSY:
		return -1, &InUseError{Path: path, Claimed: true, MountPoint: mountPoint(path)}
	case err == unix.EWOULDBLOCK: // a lease (fcntl F_SETLEASE) is being broken
		return -1, &InUseError{Path: path}
	case err == unix.EISDIR:
		return -1, fmt.Errorf("open %s: %w", path, ErrDirectory)
	}
	return -1, &fs.PathError{Op: "open", Path: path, Err: err}
}

// adopt checks and locks what d.fd is, and fills in d.info. The lock comes
// before the size, since whoever held the lock may have been resizing.
func (d *file) adopt(path string, f Format, o Options) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	block, err := imageKind(st.Mode)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if block != d.block {
		return fmt.Errorf("open %s: was replaced while it was opened", path)
	}
	if err := unix.SetNonblock(d.fd, false); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if err := lock(d.fd, o.ReadOnly); err != nil {
		if errors.Is(err, ErrInUse) {
			pid, command := lockHolder(d.fd, &st)
			return &InUseError{Path: path, PID: pid, Command: command}
		}
		return &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	size, err := imageSize(d.fd, d.block)
	if err != nil {
		return &fs.PathError{Op: "measure", Path: path, Err: err}
	}
	if size < sectorBytes {
		return fmt.Errorf("open %s: %w: %d bytes", path, ErrTooSmall, size)
	}
	physical := fileSectorBytes(int64(st.Blksize))
	if d.block {
		n, err := unix.IoctlGetUint32(d.fd, unix.BLKPBSZGET)
		if err != nil {
			return &fs.PathError{Op: "measure", Path: path, Err: err}
		}
		physical = max(int(n), sectorBytes)
	}
	d.info = Info{
		SizeBytes:           size - size%sectorBytes,
		TailBytes:           size % sectorBytes,
		ReadOnly:            o.ReadOnly,
		PhysicalSectorBytes: physical,
		Format:              f,
		Path:                path,
	}
	return nil
}

// imageKind refuses what cannot be an image and tells a block device.
func imageKind(mode uint32) (block bool, err error) {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return false, nil
	case unix.S_IFBLK:
		return true, nil
	case unix.S_IFDIR:
		return false, ErrDirectory
	}
	return false, ErrNotRegular
}

// imageSize returns the size in bytes. The end of a block device is what
// BLKGETSIZE64 reports, and lseek says it without a pointer into unsafe.
func imageSize(fd int, block bool) (int64, error) {
	if block {
		return unix.Seek(fd, 0, io.SeekEnd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Size, nil
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
func (d *file) Info() Info { return d.info }

// check is called with mu held.
func (d *file) check(n int, off int64) error {
	if d.closed {
		return fs.ErrClosed
	}
	return checkRange(n, off, d.info.SizeBytes)
}

// flush calls sync where there may be something to flush, one at a time, and
// never forgets a failure.
//
// When writeback fails, Linux marks the pages clean and tells each open file
// of the error once: the next fdatasync returns 0 although the data are gone
// ("fsyncgate", https://lwn.net/Articles/752063/). A guest whose flush failed
// and is then retried with success would believe that its journal is on disk.
// So the first failure is final: every later flush fails with it until the
// disk is closed and opened again. Flushes wait for each other because of
// two that are under way together the kernel tells only one.
func (d *file) flush(sync func() error) error {
	if err := d.check(0, 0); err != nil {
		return fmt.Errorf("flush %s: %w", d.info.Path, err)
	}
	if d.info.ReadOnly {
		return nil
	}
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	if d.flushErr == nil {
		d.flushErr = retry(sync)
	}
	if d.flushErr != nil {
		return fmt.Errorf("flush %s: %w", d.info.Path, d.flushErr)
	}
	return nil
}

// release unlocks and closes the fd, with mu held exclusively. The lock is
// taken off by hand because it belongs to the open file description: a child
// that is between fork and exec at this moment has a copy of the fd, and would
// keep the image locked.
func (d *file) release() error {
	unlock(d.fd)
	d.closed = true
	fd := d.fd
	d.fd = -1
	if err := unix.Close(fd); err != nil && err != unix.EINTR {
		// EINTR: Linux has closed it all the same (close(2), NOTES).
		return fmt.Errorf("close %s: %w", d.info.Path, err)
	}
	return nil
}

// retry calls f until it is not interrupted by a signal; Go's preemption
// signals do interrupt calls on FUSE and NFS.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
