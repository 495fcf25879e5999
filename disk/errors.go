package disk

import (
	"errors"
	"fmt"
)

// What can be wrong with an image or a request, for errors.Is. The error that
// wraps one of these carries the path or the range.
var (
	// ErrInUse: another user holds the image; always in an [InUseError].
	ErrInUse = errors.New("in use")
	// ErrReadOnly: a write to a disk that was opened read-only.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrRange: a range that is not whole sectors inside the disk.
	ErrRange = errors.New("range is not inside the disk")
	// ErrDirectory: the path names a directory.
	ErrDirectory = errors.New("is a directory")
	// ErrNotRegular: the path names a fifo, a character device or a socket.
	ErrNotRegular = errors.New("is neither a regular file nor a block device")
	// ErrTooSmall: the image has not even one sector of 512 bytes.
	ErrTooSmall = errors.New("is smaller than one sector of 512 bytes")
	// ErrFault: the mapped image cannot be reached, since it was truncated,
	// the device failed, or a hole could not be filled for want of space.
	ErrFault = errors.New("fault in the mapped image")
	// ErrUnsupportedFormat: a format that is named but not built yet.
	ErrUnsupportedFormat = errors.New("format is not supported by this version")
)

// InUseError says that an image is held by another user, and by whom as far
// as the kernel tells. errors.Is finds ErrInUse in it.
type InUseError struct {
	Path string
	// PID is a process that holds a lock on the image, 0 when it is not known:
	// the kernel reports no owner for open file description locks, and
	// /proc/PID/fdinfo of others can be read by root only. It may be this
	// process itself.
	PID int
	// Command is that process's /proc/PID/comm.
	Command string
	// Claimed says that the image is a block device that the kernel refuses to
	// open exclusively: it is mounted, swap, part of a RAID or a volume group,
	// or held by another program that claimed it.
	Claimed bool
	// MountPoint is where a claimed block device is mounted, empty when it is
	// not, or not in this mount namespace.
	MountPoint string
}

// Error names the holder when it is known.
func (e *InUseError) Error() string {
	switch {
	case e.MountPoint != "":
		return fmt.Sprintf("open %s: %v: mounted on %s", e.Path, ErrInUse, e.MountPoint)
	case e.Claimed:
		return fmt.Sprintf("open %s: %v: claimed by the kernel or another program", e.Path, ErrInUse)
	case e.PID != 0:
		return fmt.Sprintf("open %s: %v: locked by process %d (%q)", e.Path, ErrInUse, e.PID, e.Command)
	}
	return fmt.Sprintf("open %s: %v: locked by a process that the kernel does not name", e.Path, ErrInUse)
}

// Unwrap makes errors.Is(err, ErrInUse) true.
func (e *InUseError) Unwrap() error { return ErrInUse }
