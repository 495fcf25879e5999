package vhd

import (
	"encoding/binary"
	"sync/atomic"
)

// batChunkBytes is how much of a BAT is read at once: the file's length is no
// bound on what a hole in it costs in memory.
const batChunkBytes = 256 << 10

// maxListed bounds the problems of one kind that are listed one by one.
const maxListed = 16

// The codes of BAT entries that are not as they should be.
const (
	codeBATBeyond   = "bat-beyond-end"
	codeBATMetadata = "bat-in-metadata"
	codeBATFooter   = "bat-over-footer"
	codeBATCut      = "bat-cut"
	codeBATOverlap  = "bat-overlap"
)

// readBAT reads the entries of the blocks that the disk has, and finds those
// that cannot be right:
//
//   - past the end of the file, or with a bitmap that is not all in it: the
//     block reads as if it was not allocated. A crash leaves this when the
//     entry is durable and the file's new length is not (NTFS and tapdisk);
//   - over the footer copy, the header, the BAT, the batmap or a locator, so
//     that a guest could rewrite them: the same;
//   - with data past the end: the block was cut. What is there can be read,
//     and reading the rest fails;
//   - over the footer at the end, or over another block: reads as the entry
//     says, for who is to tell which of two is right.
//
// All of them are Damage. An image without a footer at the end may have a
// block there: blktap overwrites the footer with new blocks, and writes it
// again when it closes the image.
func (m *image) readBAT() error {
	need := (m.sizeBytes-1)/m.blockBytes() + 1
	m.bat = make([]atomic.Uint32, need)
	parts := m.metadata()
	for _, p := range parts {
		m.metaEnd = max(m.metaEnd, p.end)
	}
	m.dataEnd = m.metaEnd
	found := listing{image: m}
	buf := make([]byte, min(4*need, batChunkBytes))
	for i := int64(0); i < need; {
		b := buf[:min(int64(len(buf)), 4*(need-i))]
		if err := m.readInto(b, int64(m.header.TableOffset)+4*i); err != nil {
			return err
		}
		for ; len(b) > 0; b, i = b[4:], i+1 {
			if e := binary.BigEndian.Uint32(b); !m.checkEntry(i, e, parts, &found) {
				m.bat[i].Store(unallocated)
			} else {
				m.bat[i].Store(e)
			}
		}
	}
	m.dropStaleBits()
	m.findOverlaps(&found)
	found.finish()
	return nil
}

// checkEntry says whether a block can be read where its entry says.
func (m *image) checkEntry(block int64, e uint32, parts []extent, found *listing) bool {
	if e == unallocated {
		return false
	}
	at, end := int64(e)*SectorBytes, m.blockEnd(e)
	if at < m.metaEnd {
		for _, p := range parts {
			if p.overlaps(extent{at, end}) {
				if found.more(codeBATMetadata, Damage) {
					m.note(codeBATMetadata, Damage, m.entryAt(block), "block %d at %d lies over metadata at %d", block, at, p.start)
				}
				return false
			}
		}
	}
	switch {
	case m.dataAt(e) > m.limit():
		if found.more(codeBATBeyond, Damage) {
			m.note(codeBATBeyond, Damage, m.entryAt(block), "block %d at %d lies past the end at %d", block, at, m.limit())
		}
		return false
	case end > m.fileBytes:
		if found.more(codeBATCut, Damage) {
			m.note(codeBATCut, Damage, m.entryAt(block), "block %d ends at %d, the file at %d", block, end, m.fileBytes)
		}
	case m.footerAt >= 0 && end > m.footerAt:
		if found.more(codeBATFooter, Damage) {
			m.note(codeBATFooter, Damage, m.entryAt(block), "block %d ends at %d, over the footer at %d", block, end, m.footerAt)
		}
	}
	m.dataEnd = max(m.dataEnd, end)
	return true
}

// entryAt is where the BAT entry of a block lies.
func (m *image) entryAt(block int64) int64 { return int64(m.header.TableOffset) + 4*block }

// findOverlaps finds blocks that share bytes of the file.
func (m *image) findOverlaps(found *listing) {
	stride := m.stride() / SectorBytes
	order := m.inFileOrder()
	for i := 1; i < len(order); i++ {
		a, b := int64(order[i-1]), int64(order[i])
		at, next := int64(m.bat[a].Load()), int64(m.bat[b].Load())
		if next-at < stride {
			if found.more(codeBATOverlap, Damage) {
				m.note(codeBATOverlap, Damage, m.entryAt(b), "blocks %d at %d and %d at %d overlap",
					a, at*SectorBytes, b, next*SectorBytes)
			}
		}
	}
}

// inFileOrder returns the numbers of the blocks that are allocated, in the
// order in which they lie in the file; those at the same place in their own
// order. It is a radix sort: a million blocks take slices.SortFunc 200 ms.
func (m *image) inFileOrder() []uint32 {
	const (
		digit  = 11 // bits
		digits = 3  // hold the 32 bits of an entry
		mask   = 1<<digit - 1
	)
	var counts [digits][1 << digit]uint32
	var n int
	var last uint32
	sorted := true
	for i := range m.bat {
		e := m.bat[i].Load()
		if e == unallocated {
			continue
		}
		n++
		sorted = sorted && e >= last
		last = e
		for d := range counts {
			counts[d][e>>(d*digit)&mask]++
		}
	}
	from := make([]uint32, 0, n)
	for i := range m.bat {
		if m.bat[i].Load() != unallocated {
			from = append(from, uint32(i))
		}
	}
	if sorted {
		return from
	}
	to := make([]uint32, n)
	for d := range counts {
		next := &counts[d]
		var sum uint32
		for v, count := range next {
			next[v], sum = sum, sum+count
		}
		for _, b := range from {
			v := m.bat[b].Load() >> (d * digit) & mask
			to[next[v]] = b
			next[v]++
		}
		from, to = to, from
	}
	return from
}

// listing counts problems of the kinds that an image can have millions of.
type listing struct {
	image *image
	kinds []kindCount
}

type kindCount struct {
	code     string
	severity Severity
	count    int
}

// more counts a problem, and says whether it is to be noted.
func (l *listing) more(code string, s Severity) bool {
	k := 0
	for k < len(l.kinds) && l.kinds[k].code != code {
		k++
	}
	if k == len(l.kinds) {
		l.kinds = append(l.kinds, kindCount{code: code, severity: s})
	}
	l.kinds[k].count++
	return l.kinds[k].count <= maxListed
}

// finish says how many were not listed.
func (l *listing) finish() {
	for _, k := range l.kinds {
		if k.count > maxListed {
			l.image.note(k.code, k.severity, -1, "and %d more like these", k.count-maxListed)
		}
	}
}
