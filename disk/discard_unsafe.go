package disk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// blkDiscard is ioctl(BLKDISCARD): a struct of two uint64, where to begin and
// how many bytes (linux/fs.h; block/ioctl.c, blk_ioctl_discard).
//
// SAFETY: the kernel reads the 16 bytes of what and keeps no pointer. what is
// an array of two aligned uint64 and lives until the call returns, since its
// address is taken in the call's argument list (unsafe.Pointer, rule 4).
func blkDiscard(fd int, off, n int64) error {
	what := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&what)))
	if errno != 0 {
		return errno
	}
	return nil
}
