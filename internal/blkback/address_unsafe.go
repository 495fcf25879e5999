package blkback

import "unsafe"

// address is where mem lies, as the kernel wants to be told.
//
// SAFETY: mem is memory from mmap (a worker's buffer or a disk's mapping), so
// the garbage collector neither moves nor frees it. A worker's buffer lives
// as long as the Backend; a disk's mapping until Disk.Close, which comes after
// every link to it was drained and closed.
func address(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }
