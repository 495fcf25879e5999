package fakexen

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapPages makes one contiguous mapping of single pages of guest memory, which
// is what one mmap of N grants is on Xen.
func mapPages(grants []*grantEntry, writable bool) ([]byte, error) {
	size := uintptr(len(grants)) * PageSize
	// SAFETY: a reservation at an address that the kernel chooses; nothing can
	// be read or written through it.
	base, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	for i, g := range grants {
		// SAFETY: i*PageSize is inside the reservation, which is ours alone;
		// MAP_FIXED replaces a page of it and nothing else.
		at := unsafe.Add(base, i*PageSize)
		_, err := unix.MmapPtr(g.dom.fd, int64(g.page)*PageSize, at, PageSize,
			prot, unix.MAP_SHARED|unix.MAP_FIXED)
		if err != nil {
			_ = unix.MunmapPtr(base, size)
			return nil, fmt.Errorf("map page %d: %w", i, err)
		}
	}
	// SAFETY: size bytes from base are mapped until unmapPages; it is not Go
	// memory, so the collector does not look at it.
	return unsafe.Slice((*byte)(base), size), nil
}

// unmapPages drops a mapping of mapPages: an access to it is a SIGSEGV then.
func unmapPages(mem []byte) error {
	// SAFETY: mem is exactly what mapPages returned; the door has checked it.
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}

// addressOf is the address of a mapping's first byte, to find it by.
func addressOf(mem []byte) uintptr {
	// SAFETY: only the number is used.
	return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
}

// index returns the shared ring index at byte offset off.
func index(mem []byte, off int) *atomic.Uint32 {
	_ = mem[off+3]
	// SAFETY: four bytes at off are in mem, as just checked; mem begins on a
	// page and callers pass multiples of 4, so it is aligned. The result lives
	// as long as the mapping, which the caller's ring owns.
	return (*atomic.Uint32)(unsafe.Pointer(&mem[off]))
}
