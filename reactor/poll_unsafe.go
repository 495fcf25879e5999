package reactor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// pollNow is epoll_wait with a timeout of zero. It cannot block, so it does
// not tell the scheduler (RawSyscall). events must not be empty.
func pollNow(epfd int, events []unix.EpollEvent) (int, unix.Errno) {
	// SAFETY: the kernel writes at most len(events) elements of type
	// unix.EpollEvent, which is struct epoll_event with this architecture's
	// packing. The conversion stands in the call, so the memory stays alive and
	// in place until the call returns; the kernel keeps no pointer. The signal
	// mask is NULL, so its size is not looked at.
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	return int(n), errno
}

// signalEventfd adds one to an eventfd. The eventfd is nonblocking and its
// counter never comes near its end (posts coalesce), so errors cannot occur.
func signalEventfd(fd int) {
	one := uint64(1)
	// SAFETY: an eventfd takes exactly 8 bytes in host order, which is what one
	// has; it lives on this stack until the call returns.
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd),
		uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
}

// drainCounter reads a nonblocking eventfd or timerfd, so that it is no longer
// readable. Errors are no matter: after EAGAIN it was not readable to begin
// with, after any other it still is and the next turn comes here again.
func drainCounter(fd int) {
	var count uint64
	// SAFETY: both kinds of descriptor give exactly 8 bytes to a read of 8;
	// count has that size and lives on this stack until the call returns.
	_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(fd),
		uintptr(unsafe.Pointer(&count)), unsafe.Sizeof(count))
}
