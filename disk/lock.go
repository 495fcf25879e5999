package disk

import (
	"io"

	"golang.org/x/sys/unix"
)

// A writer holds a write lock on the whole file, also past its end. A reader
// holds read locks on a few bytes. All are open file description locks
// (fcntl(2), F_OFD_SETLK): they conflict with those of another open of the
// same inode, in this process too, and end with the last copy of the fd.
//
// QEMU (block/file-posix.c, "image locking") says with one byte each what it
// does to an image and what it lets others do, always with read locks, and
// looks for a conflict with F_OFD_GETLK:
//
//	byte 100+n  held: I use permission n
//	byte 200+n  held: I do not share permission n
//	n: 0 consistent read, 1 write, 2 write unchanged, 3 resize
//
// A reader here speaks that language: bytes 0..100 (consistent read; byte 0 is
// also what libvirt's virtlockd locks), 201 and 203 (nobody may write or
// resize). A writer's lock covers all these bytes. What follows:
//
//	                 here: reader   here: writer   QEMU reader   QEMU writer
//	here: reader     together       refused        together      refused
//	here: writer     refused        refused        refused       refused
//
// whoever comes first. QEMU with locking=off, or -U (--force-share), does not
// take part.
//
// What the locks do not see: programs that take none (dd, mkfs, a loop device
// over the file); other hosts, unless the network filesystem carries locks;
// and a block device by two different nodes (mknod), as the lock is the
// node's. There the claim by O_EXCL still keeps two writers, or a writer and a
// mount, apart; a reader claims nothing.
const (
	qemuUse     = 100 // first byte of QEMU's "I use"
	qemuUnshare = 200 // first byte of QEMU's "I do not share"

	qemuConsistentRead = 0
	qemuWrite          = 1
	qemuResize         = 3
)

// lock takes the lock of a reader or of the writer without waiting. It returns
// ErrInUse, bare, when someone else is in the way.
func lock(fd int, readOnly bool) error {
	if !readOnly {
		return setLock(fd, unix.F_WRLCK, 0, 0)
	}
	if err := setLock(fd, unix.F_RDLCK, 0, qemuUse+qemuConsistentRead+1); err != nil {
		return err
	}
	for _, b := range []int64{qemuUnshare + qemuWrite, qemuUnshare + qemuResize} {
		if err := setLock(fd, unix.F_RDLCK, b, 1); err != nil {
			return err
		}
	}
	// First lock, then look, as QEMU does: of two that come at the same time
	// at least one sees the other.
	for _, b := range []int64{qemuUse + qemuWrite, qemuUse + qemuResize, qemuUnshare + qemuConsistentRead} {
		held, err := isLocked(fd, b)
		if err != nil {
			return err
		}
		if held {
			return ErrInUse
		}
	}
	return nil
}

// unlock gives everything back; it cannot fail in a way that matters, since
// the close that follows does the same.
func unlock(fd int) { _ = setLock(fd, unix.F_UNLCK, 0, 0) }

// setLock locks length bytes at start; length 0 means all there can be.
func setLock(fd int, kind int16, start, length int64) error {
	l := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: start, Len: length}
	err := retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l) })
	if err == unix.EAGAIN || err == unix.EACCES {
		return ErrInUse
	}
	return err
}

// isLocked says whether anyone else holds any lock on the byte at off.
func isLocked(fd int, off int64) (bool, error) {
	var l unix.Flock_t
	err := retry(func() error {
		l = unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: off, Len: 1}
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l)
	})
	return l.Type != unix.F_UNLCK, err
}
