package ring

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// index returns the shared index at an offset of the ring's header.
//
// SAFETY: the word lies in mem: the slice expression is bounds-checked. It is
// aligned to four bytes, which is checked too, since neither the race detector
// nor checkptr does for a type without pointers, and an unaligned atomic is
// no atomic. The result is valid as long as the mapping: the owner of mem
// drops the Back before it unmaps.
func index(mem []byte, off int) *atomic.Uint32 {
	p := unsafe.Pointer(&mem[off : off+4][0])
	if uintptr(p)%4 != 0 {
		panic(fmt.Sprintf("ring: index at %p, want it aligned to 4 bytes", p))
	}
	return (*atomic.Uint32)(p)
}
