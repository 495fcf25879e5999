package vhd

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"
)

// handmade describes an image that bytes encodes by the offsets of the
// specification, with nothing of this package: what both sides have wrong
// would cancel out. Its layout is: footer copy, header, BAT at 1536, batmap,
// locators, blocks, footer.
type handmade struct {
	kind    uint32
	size    uint64
	block   uint32
	entries uint32 // in the BAT; 0: as many as the size needs
	creator string
	version uint32
	uuid    byte // all sixteen bytes
	parent  byte
	name    []byte // of the parent, in bytes of UTF-16
	// locators are laid out one behind the other, in 512 bytes each.
	locators []handLocator
	// blocks are the numbers of those that are there, in the file's order.
	blocks []int
	// bitmap is what the bitmaps are filled with; 0 is 0xFF.
	bitmap byte
	batmap bool
}

type handLocator struct {
	code string
	text []byte
}

const (
	handBATAt     = 1536
	handBlock     = 64 << 10
	handBitmap    = 512
	handFooter    = 512
	handAllocated = 3
)

// aDynamic is 1 MiB with blocks 0, 5 and 2, in this order.
func aDynamic() handmade {
	return handmade{kind: 3, size: 1 << 20, block: handBlock, uuid: 0xD1, blocks: []int{0, 5, 2}}
}

// aChild is an empty differencing image.
func aChild(uuid, parent byte, locators ...handLocator) handmade {
	return handmade{kind: 4, size: 1 << 20, block: handBlock, uuid: uuid, parent: parent, locators: locators}
}

func aFixed() handmade { return handmade{kind: 2, size: 1 << 20, uuid: 0xF1} }

func locW2ru(path string) handLocator { return handLocator{"W2ru", utf16LE(path)} }
func locW2ku(path string) handLocator { return handLocator{"W2ku", utf16LE(path)} }
func locMacX(url string) handLocator  { return handLocator{"MacX", []byte(url)} }

func utf16LE(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return b
}

func utf16BE(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u>>8), byte(u))
	}
	return b
}

func (h *handmade) needed() int {
	if h.block == 0 {
		return 0
	}
	return int((h.size + uint64(h.block) - 1) / uint64(h.block))
}

// batBytes is what the BAT takes, in whole sectors.
func (h *handmade) batBytes() int {
	n := int(h.entries)
	if n == 0 {
		n = h.needed()
	}
	return (4*n + 511) / 512 * 512
}

func (h *handmade) batmapAt() int { return handBATAt + h.batBytes() }

func (h *handmade) locatorAt(i int) int {
	at := h.batmapAt() + 512*i
	if h.batmap {
		at += 1024
	}
	return at
}

// blockAt is where the bitmap of the i-th block of the file lies.
func (h *handmade) blockAt(i int) int {
	return h.locatorAt(len(h.locators)) + i*h.stride()
}

func (h *handmade) stride() int { return handBitmap + int(h.block) }

// bytes encodes the image.
func (h handmade) bytes() []byte {
	if h.kind == 2 {
		b := make([]byte, h.size)
		fillPattern(b, 0)
		return append(b, h.footer()...)
	}
	b := make([]byte, h.blockAt(len(h.blocks)))
	copy(b, h.footer())
	h.putHeader(b)
	for i := handBATAt; i < h.batmapAt(); i++ {
		b[i] = 0xFF
	}
	for i, l := range h.locators {
		copy(b[h.locatorAt(i):], l.text)
	}
	if h.bitmap == 0 {
		h.bitmap = 0xFF
	}
	for i, n := range h.blocks {
		at := h.blockAt(i)
		binary.BigEndian.PutUint32(b[handBATAt+4*n:], uint32(at/512))
		copy(b[at:at+handBitmap], bytes.Repeat([]byte{h.bitmap}, handBitmap))
		fillPattern(b[at+handBitmap:at+h.stride()], int64(n)*int64(h.block))
	}
	if h.batmap {
		h.putBatmap(b)
	}
	return append(b, h.footer()...)
}

func (h handmade) footer() []byte {
	b := make([]byte, 512)
	be := binary.BigEndian
	copy(b, "conectix")
	be.PutUint32(b[8:], 2)
	be.PutUint32(b[12:], 0x00010000)
	be.PutUint64(b[16:], 0xFFFFFFFFFFFFFFFF)
	if h.kind != 2 {
		be.PutUint64(b[16:], 512)
	}
	be.PutUint32(b[24:], 0x1D000000)
	copy(b[28:], "win ")
	copy(b[28:], h.creator)
	be.PutUint32(b[32:], h.version)
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], h.size)
	be.PutUint64(b[48:], h.size)
	be.PutUint32(b[60:], h.kind)
	copy(b[68:84], bytes.Repeat([]byte{h.uuid}, 16))
	resum(b, 64)
	return b
}

func (h *handmade) putHeader(b []byte) {
	be := binary.BigEndian
	head := b[512:1536]
	copy(head, "cxsparse")
	be.PutUint64(head[8:], 0xFFFFFFFFFFFFFFFF)
	be.PutUint64(head[16:], handBATAt)
	be.PutUint32(head[24:], 0x00010000)
	be.PutUint32(head[28:], uint32(h.needed()))
	if h.entries != 0 {
		be.PutUint32(head[28:], h.entries)
	}
	be.PutUint32(head[32:], h.block)
	copy(head[40:56], bytes.Repeat([]byte{h.parent}, 16))
	copy(head[64:576], h.name)
	for i, l := range h.locators {
		e := head[576+24*i:]
		copy(e, l.code)
		be.PutUint32(e[4:], 512)
		be.PutUint32(e[8:], uint32(len(l.text)))
		be.PutUint64(e[16:], uint64(h.locatorAt(i)))
	}
	resum(head, 36)
}

// putBatmap says that the blocks that are there are complete.
func (h *handmade) putBatmap(b []byte) {
	be := binary.BigEndian
	head, m := b[h.batmapAt():][:512], b[h.batmapAt()+512:][:512]
	copy(head, "tdbatmap")
	be.PutUint64(head[8:], uint64(h.batmapAt()+512))
	be.PutUint32(head[16:], 1)
	be.PutUint32(head[20:], 0x00010002)
	for _, n := range h.blocks {
		m[n/8] |= 0x80 >> (n % 8)
	}
	be.PutUint32(head[24:], onesSum(m))
}

// resum stores the sum of a structure's bytes where it belongs.
func resum(b []byte, at int) {
	copy(b[at:at+4], []byte{0, 0, 0, 0})
	binary.BigEndian.PutUint32(b[at:], onesSum(b))
}

func onesSum(b []byte) uint32 {
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	return ^sum
}

// fillPattern makes bytes that tell the place on the disk that they are of,
// and are never zero.
func fillPattern(b []byte, at int64) {
	for i := range b {
		b[i] = byte((at+int64(i))/512*7%251) + 1
	}
}

// save writes a file into a directory and returns its path.
func save(t testing.TB, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}
