package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"xen-disk/vhd"
)

// newFileMode is what qemu-img, cp and dd leave to the umask too, so that who
// converts an image finds it with the permissions that the other tools give it,
// and a umask of 077 keeps it private as everywhere.
const newFileMode = 0o644

// imageFile is an open, locked regular file or block device: it owns the fd and
// knows nothing of what the bytes mean. raw and mmap are built on it, and it is
// what package vhd asks for as a vhd.File.
type imageFile struct {
	// mu is held shared during a call and exclusively by Close, so that no
	// call ever meets an fd number or an address that the kernel has given to
	// someone else meanwhile.
	mu     sync.RWMutex
	closed bool
	fd     int
	sys    syscalls

	// Fixed from the open on.
	path     string
	readOnly bool
	block    bool
	stat     unix.Stat_t

	flushMu  sync.Mutex
	flushErr error // the first failure of a flush; never cleared
}

// syscalls are the kernel's doors that tests replace to inject failures.
type syscalls struct {
	pread     func(fd int, p []byte, off int64) (int, error)
	pwrite    func(fd int, p []byte, off int64) (int, error)
	fdatasync func(fd int) error
	msync     func(b []byte, flags int) error
	fallocate func(fd int, mode uint32, off, n int64) error
	discard   func(fd int, off, n int64) error
	seek      func(fd int, off int64, whence int) (int64, error)
}

// access is what an image is opened for.
type access uint8

const (
	forReading  access = iota // many readers, or
	forWriting                // one writer that reads too
	forCreation               // that writer, of a file that did not exist
)

func (o Options) access() access {
	if o.ReadOnly {
		return forReading
	}
	return forWriting
}

// openFile opens and locks the image at path, or makes a new one. Nothing is opened that could
// hang or have an effect by being opened (a fifo, a tape): the path is looked
// at before, and what was opened is looked at again.
func openFile(path string, a access) (*imageFile, error) {
	var block bool
	if a != forCreation {
		var st unix.Stat_t
		if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		var err error
		if block, err = imageKind(st.Mode); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
	fd, err := openFD(path, block, a)
	if err != nil {
		return nil, err
	}
	f := &imageFile{fd: fd, path: path, readOnly: a == forReading, block: block, sys: syscalls{
		pread: unix.Pread, pwrite: unix.Pwrite, fdatasync: unix.Fdatasync, msync: unix.Msync,
		fallocate: unix.Fallocate, discard: blkDiscard, seek: unix.Seek,
	}}
	if err := f.adopt(); err != nil {
		unix.Close(fd)
		if a == forCreation {
			err = errors.Join(err, os.Remove(path))
		}
		return nil, err
	}
	return f, nil
}

// openFD opens path. O_NONBLOCK keeps a fifo that took the file's place since
// the stat, or a lease that someone holds, from blocking us; it is taken off
// again since FUSE servers get to see it.
//
// O_DIRECT would go here, together with aligned buffers and the device's
// BLKSSZGET; for now everything is buffered.
func openFD(path string, block bool, a access) (int, error) {
	flags := unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_LARGEFILE
	switch {
	case a == forReading:
		flags |= unix.O_RDONLY
	case a == forCreation:
		flags |= unix.O_RDWR | unix.O_CREAT | unix.O_EXCL
	case block:
		flags |= unix.O_RDWR | unix.O_EXCL // claims the device: open(2), O_EXCL
	default:
		flags |= unix.O_RDWR
	}
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags, newFileMode)
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

// adopt checks and locks what f.fd is. Whoever measures the file does so after,
// since the one that held the lock may have been resizing.
func (f *imageFile) adopt() error {
	if err := unix.Fstat(f.fd, &f.stat); err != nil {
		return &fs.PathError{Op: "stat", Path: f.path, Err: err}
	}
	block, err := imageKind(f.stat.Mode)
	if err != nil {
		return fmt.Errorf("open %s: %w", f.path, err)
	}
	if block != f.block {
		return fmt.Errorf("open %s: was replaced while it was opened", f.path)
	}
	if err := unix.SetNonblock(f.fd, false); err != nil {
		return &fs.PathError{Op: "open", Path: f.path, Err: err}
	}
	if err := lock(f.fd, f.readOnly); err != nil {
		if errors.Is(err, ErrInUse) {
			pid, command := lockHolder(f.fd, &f.stat)
			return &InUseError{Path: f.path, PID: pid, Command: command}
		}
		return &fs.PathError{Op: "lock", Path: f.path, Err: err}
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

// Size returns the length now, in bytes.
func (f *imageFile) Size() (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	size, err := f.size()
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", f.path, err)
	}
	return size, nil
}

// size is Size with mu held. The end of a block device is what BLKGETSIZE64
// reports, and lseek says it without a pointer into unsafe.
func (f *imageFile) size() (int64, error) {
	if f.closed {
		return 0, fs.ErrClosed
	}
	if f.block {
		return unix.Seek(f.fd, 0, io.SeekEnd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return 0, err
	}
	return st.Size, nil
}

// Identity tells two opens of one image from two images. Two nodes of one
// block device are one image.
func (f *imageFile) Identity() vhd.Identity {
	if f.block {
		return vhd.Identity{Device: uint64(f.stat.Rdev), Block: true}
	}
	return vhd.Identity{Device: uint64(f.stat.Dev), Inode: f.stat.Ino}
}

// ReadAt fills p by pread(2). At the end of the file it returns io.EOF, bare.
func (f *imageFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, fmt.Errorf("read %s: %w", f.path, fs.ErrClosed)
	}
	for n := 0; n < len(p); {
		k, err := f.sys.pread(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && k <= 0:
			return n, io.EOF
		case err != nil:
			return n, fmt.Errorf("read %s at byte %d: %w", f.path, off+int64(n), err)
		}
		n += k
	}
	return len(p), nil
}

// WriteAt writes p by pwrite(2). Past its end a regular file grows.
func (f *imageFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.writable(); err != nil {
		return 0, fmt.Errorf("write %s: %w", f.path, err)
	}
	return f.write(p, off)
}

// write is WriteAt with mu held, on an open and writable file.
func (f *imageFile) write(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		k, err := f.sys.pwrite(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && k <= 0:
			err = io.ErrShortWrite
		}
		if err != nil {
			return n, fmt.Errorf("write %s at byte %d: %w", f.path, off+int64(n), err)
		}
		n += k
	}
	return len(p), nil
}

// Truncate sets the length of a regular file; what is added is a hole.
func (f *imageFile) Truncate(sizeBytes int64) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	err := f.writable()
	if err == nil {
		err = retry(func() error { return unix.Ftruncate(f.fd, sizeBytes) })
	}
	if err != nil {
		return fmt.Errorf("truncate %s to %d bytes: %w", f.path, sizeBytes, err)
	}
	return nil
}

// writable is called with mu held.
func (f *imageFile) writable() error {
	switch {
	case f.closed:
		return fs.ErrClosed
	case f.readOnly:
		return ErrReadOnly
	}
	return nil
}

// Sync is fdatasync(2): data, and what metadata it takes to read them back,
// through the device's write cache.
func (f *imageFile) Sync() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.flush(f.fdatasync)
}

func (f *imageFile) fdatasync() error { return f.sys.fdatasync(f.fd) }

// flush calls sync where there may be something to flush, one at a time, and
// never forgets a failure. It is called with mu held.
//
// When writeback fails, Linux marks the pages clean and tells each open file
// of the error once: the next fdatasync returns 0 although the data are gone
// ("fsyncgate", https://lwn.net/Articles/752063/). A guest whose flush failed
// and is then retried with success would believe that its journal is on disk.
// So the first failure is final: every later flush fails with it until the
// disk is closed and opened again. Flushes wait for each other because of
// two that are under way together the kernel tells only one.
func (f *imageFile) flush(sync func() error) error {
	if f.closed {
		return fmt.Errorf("flush %s: %w", f.path, fs.ErrClosed)
	}
	if f.readOnly {
		return nil
	}
	f.flushMu.Lock()
	defer f.flushMu.Unlock()
	if f.flushErr == nil {
		f.flushErr = retry(sync)
	}
	if f.flushErr != nil {
		return fmt.Errorf("flush %s: %w", f.path, f.flushErr)
	}
	return nil
}

// Close waits for the calls in flight and releases lock and fd. It flushes
// nothing. Later calls return nil.
func (f *imageFile) Close() error { return f.finish(func() error { return nil }) }

// finish is Close with one last thing to do, while no other call can come
// between that and the release.
func (f *imageFile) finish(last func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	return errors.Join(last(), f.release())
}

// release unlocks and closes the fd, with mu held exclusively. The lock is
// taken off by hand because it belongs to the open file description: a child
// that is between fork and exec at this moment has a copy of the fd, and would
// keep the image locked.
func (f *imageFile) release() error {
	unlock(f.fd)
	f.closed = true
	fd := f.fd
	f.fd = -1
	if err := unix.Close(fd); err != nil && err != unix.EINTR {
		// EINTR: Linux has closed it all the same (close(2), NOTES).
		return fmt.Errorf("close %s: %w", f.path, err)
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
