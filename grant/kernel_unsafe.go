package grant

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is the system calls of a Door. Tests substitute single ones; the
// arguments are typed so that no unsafe.Pointer leaves this file and nothing
// that Copy or Notify pass has to be allocated.
type kernel struct {
	open   func(path string, flags int) (fd int, err error)
	close  func(fd int) error
	mmap   func(fd int, offset int64, lengthBytes, prot, flags int) ([]byte, error)
	munmap func(mem []byte) error

	mapRefs   func(fd int, domid uint32, refs []uint32) (index uint64, errno unix.Errno)
	unmapRefs func(fd int, index uint64, count uint32) unix.Errno
	copy      func(fd int, segs []CopySegment) unix.Errno

	bind   func(fd int, domid, remotePort uint32) (port uint32, errno unix.Errno)
	unbind func(fd int, port uint32) unix.Errno
	notify func(fd int, port uint32) unix.Errno
	reset  func(fd int) unix.Errno
	read   func(fd int, ports []uint32) (nBytes int, errno unix.Errno)
	write  func(fd int, ports []uint32) (nBytes int, errno unix.Errno)
}

func linux() kernel {
	return kernel{
		open:      func(path string, flags int) (int, error) { return unix.Open(path, flags, 0) },
		close:     unix.Close,
		mmap:      unix.Mmap,
		munmap:    unix.Munmap,
		mapRefs:   sysMapRefs,
		unmapRefs: sysUnmapRefs,
		copy:      sysCopy,
		bind:      sysBind,
		unbind:    sysUnbind,
		notify:    sysNotify,
		reset:     sysReset,
		read:      sysRead,
		write:     sysWrite,
	}
}

// headWords is where refs begins in a mapGrantRef, in units of 8 bytes.
const headWords = unsafe.Offsetof(mapGrantRef{}.refs) / 8

// newMapArg lays out a mapGrantRef with len(refs) elements, at least one, and
// returns it with the words that hold it.
func newMapArg(domid uint32, refs []uint32) (*mapGrantRef, []uint64) {
	words := make([]uint64, int(headWords)+len(refs))
	// SAFETY: words has the 8-byte alignment of mapGrantRef's index. Its size is
	// the head's 16 bytes and 8 (one grantRef) for each of refs, so it covers
	// the struct and, from refs on, len(refs) grantRefs. Both pointers keep the
	// whole of words alive.
	arg := (*mapGrantRef)(unsafe.Pointer(&words[0]))
	list := unsafe.Slice((*grantRef)(unsafe.Pointer(&words[headWords])), len(refs))
	arg.count = uint32(len(refs))
	for i, ref := range refs {
		list[i] = grantRef{domid: domid, ref: ref}
	}
	return arg, words
}

func sysMapRefs(fd int, domid uint32, refs []uint32) (uint64, unix.Errno) {
	arg, words := newMapArg(domid, refs)
	// SAFETY: the kernel reads the head, then count grantRefs behind it, and
	// writes the head's index: all inside words, which lives until KeepAlive.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlMapGrantRef,
		uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(words)
	return arg.index, errno
}

func sysUnmapRefs(fd int, index uint64, count uint32) unix.Errno {
	arg := unmapGrantRef{index: index, count: count}
	// SAFETY: the kernel reads the 16 bytes of arg, which lives on this stack
	// until the call returns.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlUnmapGrantRef,
		uintptr(unsafe.Pointer(&arg)))
	return errno
}

func newCopyArg(segs []CopySegment) grantCopy {
	return grantCopy{count: uint32(len(segs)), segments: unsafe.SliceData(segs)}
}

// sysCopy may take long (Xen copies up to 4096 bytes a segment), so it tells
// the scheduler, other than the event channel's calls.
func sysCopy(fd int, segs []CopySegment) unix.Errno {
	arg := newCopyArg(segs)
	// SAFETY: the kernel reads the 16 bytes of arg, which lives on this stack
	// until the call returns; then count segments of 24 bytes, and writes their
	// status. That is segs, kept alive by KeepAlive; its elements are aligned to
	// 8. The addresses inside the segments are the caller's to keep.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlGrantCopy,
		uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(segs)
	return errno
}

func sysBind(fd int, domid, remotePort uint32) (uint32, unix.Errno) {
	arg := bindInterdomain{remoteDomain: domid, remotePort: remotePort}
	// SAFETY: the kernel reads the 8 bytes of arg, which lives on this stack
	// until the call returns.
	port, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlBindInterdomain,
		uintptr(unsafe.Pointer(&arg)))
	return uint32(port), errno
}

// sysUnbind may wait for an interrupt handler on another CPU: not raw.
func sysUnbind(fd int, port uint32) unix.Errno {
	arg := portArg{port: port}
	// SAFETY: the kernel reads the 4 bytes of arg, which lives on this stack
	// until the call returns.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlUnbind,
		uintptr(unsafe.Pointer(&arg)))
	return errno
}

// sysNotify is one hypercall that waits for nobody: raw.
func sysNotify(fd int, port uint32) unix.Errno {
	arg := portArg{port: port}
	// SAFETY: the kernel reads the 4 bytes of arg, which lives on this stack
	// until the call returns.
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), ioctlNotify,
		uintptr(unsafe.Pointer(&arg)))
	return errno
}

func sysReset(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlReset, 0)
	return errno
}

// sysRead and sysWrite move port numbers, 4 bytes each in host order. The
// descriptor is nonblocking: raw. ports must not be empty.
func sysRead(fd int, ports []uint32) (int, unix.Errno) {
	// SAFETY: the kernel writes at most 4*len(ports) bytes, the size of ports,
	// and any bytes are valid ones. The conversion in the call keeps the memory
	// alive until it returns.
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd),
		uintptr(unsafe.Pointer(&ports[0])), uintptr(len(ports))*portBytes)
	return int(n), errno
}

func sysWrite(fd int, ports []uint32) (int, unix.Errno) {
	// SAFETY: the kernel reads at most 4*len(ports) bytes, the size of ports.
	// The conversion in the call keeps the memory alive until it returns.
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd),
		uintptr(unsafe.Pointer(&ports[0])), uintptr(len(ports))*portBytes)
	return int(n), errno
}
