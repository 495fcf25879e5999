package vhd

import "encoding/binary"

const (
	headerBytes      = 1024
	headerCookie     = "cxsparse"
	checksumAtHeader = 36
	maxLocators      = 8

	// DefaultBlockBytes is what Windows, blktap and QEMU write.
	DefaultBlockBytes = 2 << 20

	// unallocated is the BAT entry of a block that the image does not have.
	unallocated = 0xFFFFFFFF
)

// Header is the 1024 bytes that dynamic and differencing images have besides.
type Header struct {
	DataOffset  uint64 // all ones; unused
	TableOffset uint64 // of the BAT, in bytes
	Version     uint32
	// MaxTableEntries is the number of blocks that the BAT has room for.
	MaxTableEntries uint32
	BlockBytes      uint32
	ParentUUID      UUID
	ParentTimestamp uint32 // the parent's modification, seconds since 2000
	reserved        uint32
	parentName      [512]byte // UTF-16, big-endian
	Locators        [maxLocators]Locator
	tail            [256]byte
}

// Locator says where one description of the parent's place lies.
type Locator struct {
	Platform   [4]byte
	DataSpace  uint32 // bytes, or sectors when less than 512: see space
	DataLength uint32 // bytes
	reserved   uint32
	DataOffset uint64 // bytes
}

// parseHeader reads the 1024 bytes that lie at a place. It checks the cookie
// and the sum only.
func parseHeader(b []byte, at int64) (*Header, error) {
	be := binary.BigEndian
	if string(b[:8]) != headerCookie {
		return nil, fail(ErrCorrupt, "header-cookie", at, "no header cookie")
	}
	if got, want := be.Uint32(b[checksumAtHeader:]), checksum(b[:headerBytes], checksumAtHeader); got != want {
		return nil, fail(ErrCorrupt, "header-checksum", at, "header checksum is %#08x, want %#08x", got, want)
	}
	h := &Header{
		DataOffset:      be.Uint64(b[8:]),
		TableOffset:     be.Uint64(b[16:]),
		Version:         be.Uint32(b[24:]),
		MaxTableEntries: be.Uint32(b[28:]),
		BlockBytes:      be.Uint32(b[32:]),
		ParentTimestamp: be.Uint32(b[56:]),
		reserved:        be.Uint32(b[60:]),
	}
	copy(h.ParentUUID[:], b[40:])
	copy(h.parentName[:], b[64:])
	for i := range h.Locators {
		e := b[576+24*i:]
		l := &h.Locators[i]
		copy(l.Platform[:], e)
		l.DataSpace = be.Uint32(e[4:])
		l.DataLength = be.Uint32(e[8:])
		l.reserved = be.Uint32(e[12:])
		l.DataOffset = be.Uint64(e[16:])
	}
	copy(h.tail[:], b[768:])
	return h, nil
}

// bytes is the header as it lies in the file, with its sum.
func (h *Header) bytes() []byte {
	b := make([]byte, headerBytes)
	be := binary.BigEndian
	copy(b, headerCookie)
	be.PutUint64(b[8:], h.DataOffset)
	be.PutUint64(b[16:], h.TableOffset)
	be.PutUint32(b[24:], h.Version)
	be.PutUint32(b[28:], h.MaxTableEntries)
	be.PutUint32(b[32:], h.BlockBytes)
	copy(b[40:], h.ParentUUID[:])
	be.PutUint32(b[56:], h.ParentTimestamp)
	be.PutUint32(b[60:], h.reserved)
	copy(b[64:], h.parentName[:])
	for i := range h.Locators {
		e, l := b[576+24*i:], &h.Locators[i]
		copy(e, l.Platform[:])
		be.PutUint32(e[4:], l.DataSpace)
		be.PutUint32(e[8:], l.DataLength)
		be.PutUint32(e[12:], l.reserved)
		be.PutUint64(e[16:], l.DataOffset)
	}
	copy(b[768:], h.tail[:])
	be.PutUint32(b[checksumAtHeader:], checksum(b, checksumAtHeader))
	return b
}

// blockSectors is how many sectors a block has.
func (h *Header) blockSectors() int64 { return int64(h.BlockBytes) / SectorBytes }

// bitmapBytes is the length of a block's bitmap: whole sectors.
func (h *Header) bitmapBytes() int64 {
	return roundUp(max(1, h.blockSectors()/8), SectorBytes)
}

// roundUp returns the least multiple of unit that is not below n.
func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// tableBytes is the length of the BAT: whole sectors.
func (h *Header) tableBytes() int64 { return roundUp(4*int64(h.MaxTableEntries), SectorBytes) }

const (
	minBlockBytes = SectorBytes
	// maxBlockBytes is more than any program writes; qemu takes any power of
	// two.
	maxBlockBytes = 256 << 20
	// maxBlocks bounds the memory of a BAT at 64 MiB: 32 TiB of blocks of 2
	// MiB, or the specification's 2040 GiB of blocks of 128 KiB.
	maxBlocks = 1 << 24
)

// readHeader reads the header and refuses what it may not say.
func (m *image) readHeader() error {
	at := m.footer.DataOffset
	// The subtraction cannot wrap: a footer takes 512 of these bytes.
	if at < footerBytes || at%SectorBytes != 0 || at > uint64(m.limit()) || uint64(m.limit())-at < headerBytes {
		return fail(ErrCorrupt, "header-offset", max(m.footerAt, 0)+16,
			"header offset is %d, want a multiple of 512 in the file of %d", at, m.fileBytes)
	}
	b, err := m.read(int64(at), headerBytes)
	if err != nil {
		return err
	}
	h, err := parseHeader(b, int64(at))
	if err != nil {
		return err
	}
	if err := h.check(int64(at), m.limit(), m.sizeBytes); err != nil {
		return err
	}
	m.header = *h
	return nil
}

// check holds a header that lies at a place against the bytes of the file that
// it can use and the size of the disk.
func (h *Header) check(at, limit, sizeBytes int64) error {
	if h.Version>>16 != version1>>16 {
		return fail(ErrUnsupported, "header-version", at+24, "header version is %#08x, want %#08x", h.Version, version1)
	}
	size := h.BlockBytes
	if size < minBlockBytes || size > maxBlockBytes || size&(size-1) != 0 {
		return fail(ErrCorrupt, "block-size", at+32, "block size is %d, want a power of two from 512 to %d", size, maxBlockBytes)
	}
	need := (sizeBytes-1)/int64(size) + 1
	if need > maxBlocks {
		return fail(ErrUnsupported, "block-count", at+32, "disk has %d blocks, want at most %d", need, maxBlocks)
	}
	if int64(h.MaxTableEntries) < need {
		return fail(ErrCorrupt, "bat-size", at+28, "BAT has %d entries, want at least %d", h.MaxTableEntries, need)
	}
	table, n := h.TableOffset, 4*uint64(h.MaxTableEntries)
	if table < footerBytes || table%SectorBytes != 0 || table > uint64(limit) || uint64(limit)-table < n {
		return fail(ErrCorrupt, "bat-offset", at+16, "BAT offset is %d for %d bytes, want a multiple of 512 in the file of %d", table, n, limit)
	}
	if (extent{int64(table), int64(table) + h.tableBytes()}).overlaps(extent{at, at + headerBytes}) {
		return fail(ErrCorrupt, "bat-offset", at+16, "BAT at %d lies over the header at %d", table, at)
	}
	return nil
}
