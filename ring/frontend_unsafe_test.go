package ring_test

import (
	"sync/atomic"
	"unsafe"
)

// word is a shared index as the test's frontend sees it.
//
// SAFETY: off is 0, 4, 8 or 12 and mem a whole page that mmap returned, so the
// four bytes lie in mem and are aligned. The mapping lives until the test's
// cleanup.
func word(mem []byte, off int) *atomic.Uint32 {
	_ = mem[off+3]
	return (*atomic.Uint32)(unsafe.Pointer(&mem[off]))
}

// sizeOf is the size of a value's type in bytes.
//
// SAFETY: Sizeof is a constant of the compiler; no memory is touched.
func sizeOf[T any](v T) int { return int(unsafe.Sizeof(v)) }
