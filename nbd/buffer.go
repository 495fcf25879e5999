package nbd

import (
	"math/bits"
	"sync"
)

// minBufferBytes is the least that is kept as a buffer: what most requests
// are.
const minBufferBytes = 4096

// bufferClasses is how many powers of two there are from minBufferBytes to
// maxPayloadBytes.
const bufferClasses = 14

// buffer is memory for the data of a request. Its size is a power of two, so
// that its address is a multiple of the page or of its size, as Go allocates.
type buffer struct {
	mem   []byte
	class int
}

// buffers keeps those that nobody uses, until the garbage collector wants
// them. How many are in use is bounded by the connections' limits.
type buffers struct {
	classes [bufferClasses]sync.Pool
}

// classOf is the class that has room for n bytes.
func classOf(n int) int {
	return bits.Len(uint(max(n, minBufferBytes)-1)) - bits.Len(minBufferBytes-1)
}

// bufferBytes is the size of the buffer that get returns for n bytes.
func bufferBytes(n int) int { return minBufferBytes << classOf(n) }

// get returns a buffer of n bytes or more, at most maxPayloadBytes.
func (p *buffers) get(n int) *buffer {
	class := classOf(n)
	if b, ok := p.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{mem: make([]byte, bufferBytes(n)), class: class}
}

// put takes back what get returned.
func (p *buffers) put(b *buffer) { p.classes[b.class].Put(b) }
