package disk

import "unsafe"

// offsetIn returns where in mem the address lies.
//
// SAFETY: the address of mem's first byte is only compared as a number and
// never turned back into a pointer. mem comes from mmap(2), which the garbage
// collector does not move, so the number stays true while the mapping lives;
// the caller holds the disk's lock against Close.
func offsetIn(mem []byte, addr uintptr) (uintptr, bool) {
	base := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	off := addr - base // wraps to a large number below base
	return off, off < uintptr(len(mem))
}
