package vhd

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sort"
)

// layout is where a program puts the parts of an image (docs: each is what the
// program was seen to write).
type layout struct {
	name    string
	tableAt int64
	// region is where a block begins, with its bitmap, after one that ends at
	// used.
	region func(used, bitmapBytes int64) int64
	// footer is where the footer goes after the last block.
	footer func(used int64) int64
}

func layouts() []layout {
	next := func(used, _ int64) int64 { return used }
	same := func(used int64) int64 { return used }
	aligned := func(used, bitmap int64) int64 { return roundUp(used+bitmap, 4096) - bitmap }
	return []layout{
		{"blktap", 1536, aligned, same},
		// The footer is the last sector of the page, where the next bitmap goes.
		{"windows", 1536, aligned, func(used int64) int64 { return roundUp(used+512, 4096) - 512 }},
		{"qemu", 1536, next, same},
		{"ocaml", 2048, next, same},
		{"slack", 8192, aligned, func(used int64) int64 { return used + 9*512 }},
	}
}

// foreign is an image made by another program, written down by the
// specification's offsets and not by the encoders that are under test.
type foreign struct {
	layout
	sizeBytes, blockBytes int64
	diskType              uint32
	uuid, parent          UUID
	// held are the sectors that the image has, 512 bytes each.
	held map[int64][]byte
	// ones says that each bitmap is all ones, as QEMU writes it.
	ones bool
	// garbage fills what nobody may look at; nil is zeros.
	garbage *rand.Rand
}

func (f *foreign) bytes() []byte {
	if f.diskType == 2 {
		out := make([]byte, f.sizeBytes)
		for s, b := range f.held {
			copy(out[s*512:], b)
		}
		return append(out, f.footerSector(^uint64(0))...)
	}
	blocks := f.blocks()
	table := bytes.Repeat([]byte{0xFF}, int(roundUp(4*blocks, 512)))
	out := make([]byte, f.tableAt)
	used := f.tableAt + int64(len(table))
	out = append(out, table...)
	bitmapBytes := f.bitmapBytes()
	for _, b := range f.order(blocks) {
		at := f.region(used, bitmapBytes)
		used = at + bitmapBytes + f.blockBytes
		out = append(out, f.filler(int(used)-len(out))...)
		binary.BigEndian.PutUint32(out[f.tableAt+4*b:], uint32(at/512))
		f.putBlock(out[at:used], b, bitmapBytes)
	}
	end := f.footer(used)
	out = append(out, f.filler(int(end)-len(out))...)
	copy(out, f.footerSector(512))
	copy(out[512:], f.headerSectors(uint32(blocks)))
	return append(out, f.footerSector(512)...)
}

func (f *foreign) blocks() int64 { return (f.sizeBytes + f.blockBytes - 1) / f.blockBytes }

func (f *foreign) bitmapBytes() int64 { return max(512, f.blockBytes/512/8) }

// order is the blocks that the image has, shuffled where there is garbage.
func (f *foreign) order(blocks int64) []int64 {
	var order []int64
	for s := range f.held {
		if b := s * 512 / f.blockBytes; b < blocks && !slices.Contains(order, b) {
			order = append(order, b)
		}
	}
	slices.Sort(order)
	if f.garbage != nil {
		f.garbage.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	return order
}

func (f *foreign) putBlock(region []byte, block, bitmapBytes int64) {
	bitmap, data := region[:bitmapBytes], region[bitmapBytes:]
	clear(bitmap)
	if f.ones {
		copy(bitmap, bytes.Repeat([]byte{0xFF}, len(bitmap)))
		clear(data)
	}
	sectors := f.blockBytes / 512
	for i := range sectors {
		if b, ok := f.held[block*sectors+i]; ok {
			bitmap[i/8] |= 0x80 >> (i % 8)
			copy(data[i*512:], b)
		}
	}
}

func (f *foreign) filler(n int) []byte {
	if f.garbage == nil || n == 0 {
		return make([]byte, n)
	}
	return noise(f.garbage, int64(n)/SectorBytes+1)[:n]
}

func (f *foreign) footerSector(dataOffset uint64) []byte {
	b := make([]byte, 512)
	copy(b, "conectix")
	be := binary.BigEndian
	be.PutUint32(b[8:], 2)
	be.PutUint32(b[12:], 0x10000)
	be.PutUint64(b[16:], dataOffset)
	copy(b[28:], "win ")
	be.PutUint32(b[32:], 0xA0000)
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], uint64(f.sizeBytes))
	be.PutUint64(b[48:], uint64(f.sizeBytes))
	be.PutUint32(b[60:], f.diskType)
	copy(b[68:], f.uuid[:])
	sumInto(b, 64)
	return b
}

func (f *foreign) headerSectors(blocks uint32) []byte {
	b := make([]byte, 1024)
	copy(b, "cxsparse")
	be := binary.BigEndian
	be.PutUint64(b[8:], ^uint64(0))
	be.PutUint64(b[16:], uint64(f.tableAt))
	be.PutUint32(b[24:], 0x10000)
	be.PutUint32(b[28:], blocks)
	be.PutUint32(b[32:], uint32(f.blockBytes))
	copy(b[40:], f.parent[:])
	sumInto(b, 36)
	return b
}

func sumInto(b []byte, at int) {
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	binary.BigEndian.PutUint32(b[at:], ^sum)
}

// audit reads an image by the specification's offsets and says what is wrong
// with it: a footer at the end that is not the copy at the beginning, blocks
// that reach out of the file or meet each other, the metadata or the footer.
func audit(b []byte) (faults []string) {
	fault := func(s string) { faults = append(faults, s) }
	if !endsWithFooter(b) {
		return []string{"no footer at the end"}
	}
	be := binary.BigEndian
	footer := b[len(b)-512:]
	if be.Uint32(footer[60:]) == 2 {
		return faults
	}
	if !bytes.Equal(footer, b[:512]) {
		fault("the two footers differ")
	}
	header := b[be.Uint64(footer[16:]):][:1024]
	if string(header[:8]) != "cxsparse" || !sumIsRight(header, 36) {
		return append(faults, "bad header")
	}
	block := int64(be.Uint32(header[32:]))
	size, at := int64(be.Uint64(footer[48:])), int64(be.Uint64(header[16:]))
	blocks := (size + block - 1) / block
	type span struct{ from, to int64 }
	spans := []span{{0, 512 + 1024}, {at, at + 4*blocks}, {int64(len(b)) - 512, int64(len(b))}}
	for i := range blocks {
		if e := be.Uint32(b[at+4*i:]); e != 0xFFFFFFFF {
			from := int64(e) * 512
			spans = append(spans, span{from, from + max(512, block/512/8) + block})
		}
	}
	sort.Slice(spans, func(i, j int) bool { return spans[i].from < spans[j].from })
	for i := 1; i < len(spans); i++ {
		if spans[i].from < spans[i-1].to {
			fault("blocks, metadata or footer overlap")
		}
	}
	if spans[len(spans)-1].to > int64(len(b)) {
		fault("a block reaches past the end")
	}
	return faults
}

func endsWithFooter(b []byte) bool {
	return len(b) >= 512 && string(b[len(b)-512:][:8]) == "conectix" && sumIsRight(b[len(b)-512:], 64)
}

func sumIsRight(b []byte, at int) bool {
	c := bytes.Clone(b)
	clear(c[at : at+4])
	sumInto(c, at)
	return bytes.Equal(b, c)
}
