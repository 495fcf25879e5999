package vhd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// File is where one image is stored: a regular file or a block device.
// [OpenFile] opens one; tests and other stores bring their own. All methods
// may be called from many goroutines at once.
type File interface {
	// ReadAt fills p or fails; past the end of the file it returns io.EOF.
	io.ReaderAt
	// WriteAt writes all of p or fails. A write past the end makes a regular
	// file grow, in one step: whoever reads its length sees either length.
	io.WriterAt
	// Size is the length now, in bytes.
	Size() (int64, error)
	// Truncate sets the length; what is added reads as zeros.
	Truncate(sizeBytes int64) error
	// Sync makes all completed writes and the length durable (fdatasync(2)).
	Sync() error
	// PunchHole makes n bytes at off read as zeros and gives their space back.
	// Where the store cannot it fails with errors.ErrUnsupported and has
	// changed nothing. It never changes the length.
	PunchHole(off, n int64) error
	// NextData returns the first run of bytes at or after off that may be
	// other than zero; start is the length of the file when there is none.
	NextData(off int64) (start, end int64, err error)
	// Identity tells two opens of the same file from two files.
	Identity() Identity
	// Close releases the file and its locks. Later calls return nil.
	Close() error
}

// Identity names a file on this host.
type Identity struct {
	Device, Inode uint64
	// Block says that it is a block device: its length is fixed, and bytes
	// that were never written are not known to be zeros.
	Block bool
}

// OpenFunc opens the file of an image. With write it must be the only user.
type OpenFunc func(path string, write bool) (File, error)

// ErrNotRegular: the path names neither a regular file nor a block device.
var ErrNotRegular = errors.New("is neither a regular file nor a block device")

// osFile is a file of the operating system, without locks.
type osFile struct {
	*os.File
	identity Identity
}

// OpenFile opens a regular file or block device. It takes no locks: programs
// that share images with others bring an [OpenFunc] that does.
func OpenFile(path string, write bool) (File, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	// Opening a fifo would wait and opening a tape would move it.
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !isImage(st) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	o, err := newOSFile(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return o, nil
}

func isImage(st fs.FileInfo) bool {
	return st.Mode().IsRegular() || st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

func newOSFile(f *os.File) (*osFile, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !isImage(st) {
		return nil, &fs.PathError{Op: "open", Path: f.Name(), Err: ErrNotRegular}
	}
	id := Identity{Device: uint64(sys.Dev), Inode: sys.Ino, Block: !st.Mode().IsRegular()}
	if id.Block {
		// Two nodes of one device are one image.
		id.Device, id.Inode = uint64(sys.Rdev), 0
	}
	return &osFile{File: f, identity: id}, nil
}

func (f *osFile) Size() (int64, error) {
	if f.identity.Block {
		return f.Seek(0, io.SeekEnd)
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f *osFile) Sync() error {
	return f.control("fdatasync", syscall.Fdatasync)
}

const (
	fallocKeepSize  = 0x1 // linux/falloc.h
	fallocPunchHole = 0x2

	seekData = 3 // linux/fs.h
	seekHole = 4
)

func (f *osFile) PunchHole(off, n int64) error {
	err := f.control("fallocate", func(fd int) error {
		return syscall.Fallocate(fd, fallocPunchHole|fallocKeepSize, off, n)
	})
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}

func (f *osFile) NextData(off int64) (start, end int64, err error) {
	size, err := f.Size()
	if err != nil || off >= size {
		return size, size, err
	}
	err = f.control("lseek", func(fd int) (err error) {
		if start, err = syscall.Seek(fd, off, seekData); err == nil {
			end, err = syscall.Seek(fd, start, seekHole)
		}
		return err
	})
	switch {
	case errors.Is(err, syscall.ENXIO): // no data from here on
		return size, size, nil
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EOPNOTSUPP):
		return off, size, nil // the file system does not tell: it may all be data
	}
	return start, max(end, start), err
}

func (f *osFile) Identity() Identity { return f.identity }

func (f *osFile) Close() error {
	err := f.File.Close()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}

// control calls do with the descriptor, again while a signal interrupts it.
func (f *osFile) control(op string, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			if failed = do(int(fd)); failed != syscall.EINTR {
				return
			}
		}
	})
	if err == nil && failed != nil {
		err = &fs.PathError{Op: op, Path: f.Name(), Err: failed}
	}
	return err
}
