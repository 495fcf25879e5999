package vhd

import (
	"encoding/binary"
	"fmt"
)

const (
	batmapHeaderBytes = SectorBytes
	batmapCookie      = "tdbatmap"
	// batmapVersion is 1.2; 1.1 summed signed characters.
	batmapVersion = 0x00010002

	// keyhashAt is the byte of the header that says that data are encrypted.
	keyhashAt    = 29
	batmapSizeAt = 16
	batmapSumAt  = 24

	codeBatmap      = "batmap"
	codeBatmapStale = "batmap-stale"
	codeBatmapWrong = "batmap-wrong"
)

// hasBatmap says whether blktap takes the image for one with a batmap
// (libvhd.c, vhd_has_batmap; from 1.2 on it insists).
func (f *Footer) hasBatmap() bool {
	return string(f.Creator.App[:3]) == "tap" && f.Creator.Version >= 0x00010002
}

// batmapSectors is the length of the batmap of a disk as blktap counts, which
// knows blocks of 2 MiB only.
func batmapSectors(sizeBytes int64) int64 {
	const covers = DefaultBlockBytes * 8 // by a byte
	return max(1, roundUp(sizeBytes/covers, SectorBytes)/SectorBytes)
}

// overruns says that libvhd counts differently for its buffer and for the
// bits: the last blocks of a disk that is up to 16 MiB larger than a multiple
// of 8 GiB have none, and it reads and sets bits past the buffer. A batmap
// that lacks them is one that "vhd-util check" refuses (libvhd.c,
// vhd_read_batmap_map and vhd_batmap_set; vhd-util-check.c; @7977431).
func overruns(sizeBytes int64) bool {
	blocks := (sizeBytes-1)/DefaultBlockBytes + 1
	return blocks > batmapSectors(sizeBytes)*SectorBytes*8
}

func (m *image) batmapBytes() int64 { return batmapSectors(m.sizeBytes) * SectorBytes }

// batmapHeaderAt is the only place where a batmap can be: behind the BAT.
func (m *image) batmapHeaderAt() int64 {
	return int64(m.header.TableOffset) + m.header.tableBytes()
}

// readBatmap reads the bits that say which blocks are complete. They are a
// hint: what is wrong with them makes them worthless, and the image no worse.
// Bits are trusted where the sum covers them and the block is allocated, which
// the reader of a bit must look at. A crash leaves a map that lacks bits.
func (m *image) readBatmap() {
	if !m.footer.hasBatmap() {
		return
	}
	at := m.batmapHeaderAt()
	h, err := m.read(at, batmapHeaderBytes)
	if err == nil {
		err = m.parseBatmap(h, at)
	}
	if err != nil {
		m.note(codeBatmap, Note, at, "batmap: %v", err)
	}
}

func (m *image) parseBatmap(h []byte, at int64) error {
	be := binary.BigEndian
	if string(h[:8]) != batmapCookie {
		return fmt.Errorf("%w: no cookie", ErrCorrupt)
	}
	m.encrypted = h[keyhashAt] == 1
	if v := be.Uint32(h[20:]); v != batmapVersion {
		return fmt.Errorf("%w: version is %#08x, want %#08x", ErrUnsupported, v, batmapVersion)
	}
	// The formula of blktap for the length holds for its own block size only.
	if m.header.BlockBytes != DefaultBlockBytes {
		return fmt.Errorf("%w: block size is %d", ErrUnsupported, m.header.BlockBytes)
	}
	if off := be.Uint64(h[8:]); off != uint64(at+batmapHeaderBytes) {
		return fmt.Errorf("%w: map at %d does not follow its header", ErrUnsupported, off)
	}
	sectors := int64(be.Uint32(h[batmapSizeAt:]))
	room := (m.limit() - at - batmapHeaderBytes) / SectorBytes
	if want := batmapSectors(m.sizeBytes); sectors < want || want > room {
		return fmt.Errorf("%w: map has %d sectors and room for %d, want %d", ErrCorrupt, sectors, room, want)
	}
	m.batmapAt = at
	b, err := m.read(at+batmapHeaderBytes, int(m.batmapBytes()))
	if err != nil {
		return err
	}
	if got, want := be.Uint32(h[batmapSumAt:]), checksum(b, len(b)); got != want {
		return fmt.Errorf("%w: checksum is %#08x, want %#08x", ErrCorrupt, got, want)
	}
	m.setBatmap(b)
	return nil
}

// setBatmap takes the bits as the file has them, which can lack the last ones.
func (m *image) setBatmap(b []byte) {
	need := (m.sizeBytes-1)/m.blockBytes() + 1
	m.batmap = append(b, make([]byte, max(0, (need+7)/8-int64(len(b))))...)
}

// batmapHas says whether the batmap says that an allocated block is complete.
func (m *image) batmapHas(block int64) bool {
	return m.batmap != nil && m.batmap[block/8]&(0x80>>(block%8)) != 0
}

// dropStaleBits clears the bits of blocks that are not allocated. They may come
// to be, in part, and must not be complete for whoever reads the batmap after a
// crash: recoverFooter writes it again.
func (m *image) dropStaleBits() {
	for i := range m.blocks() {
		if m.batmapHas(i) && m.bat[i].Load() == unallocated {
			m.batmap[i/8] &^= 0x80 >> (i % 8)
			m.staleBatmap = true
		}
	}
	if m.staleBatmap {
		m.note(codeBatmapStale, Note, m.batmapAt, "batmap has blocks that the BAT has not")
	}
}

// writeBatmap stores which blocks are complete, where the image has a batmap.
// Their bitmaps must be durable. A torn batmap has a wrong sum and is ignored.
func (m *image) writeBatmap(complete func(block int64) bool) error {
	if m.batmapAt < 0 {
		return nil
	}
	h, err := m.read(m.batmapAt, batmapHeaderBytes)
	if err != nil {
		return err
	}
	b := make([]byte, m.batmapBytes())
	for i := range min(m.blocks(), 8*int64(len(b))) {
		if m.bat[i].Load() != unallocated && complete(i) {
			b[i/8] |= 0x80 >> (i % 8)
		}
	}
	// What else the header says, a key's hash above all, stays; and the length
	// where it is more, as in images that libvhd overruns.
	if string(h[:8]) != batmapCookie {
		clear(h)
	}
	sectors := binary.BigEndian.Uint32(h[batmapSizeAt:])
	putBatmapHeader(h, m.batmapAt, b)
	if room := (m.limit() - m.batmapAt) / SectorBytes; int64(sectors) > batmapSectors(m.sizeBytes) && int64(sectors) < room {
		binary.BigEndian.PutUint32(h[batmapSizeAt:], sectors)
	}
	if _, err := m.file.WriteAt(append(h, b...), m.batmapAt); err != nil {
		return fmt.Errorf("write batmap at %d: %w", m.batmapAt, err)
	}
	m.setBatmap(b)
	return nil
}

// putBatmapHeader describes a map that follows its header at a place.
func putBatmapHeader(h []byte, at int64, bits []byte) {
	be := binary.BigEndian
	copy(h, batmapCookie)
	be.PutUint64(h[8:], uint64(at+batmapHeaderBytes))
	be.PutUint32(h[batmapSizeAt:], uint32(len(bits)/SectorBytes))
	be.PutUint32(h[20:], batmapVersion)
	be.PutUint32(h[batmapSumAt:], checksum(bits, len(bits)))
}
