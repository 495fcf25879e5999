package vhd

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// image is one file of a chain: its metadata, read and checked. It does no
// data I/O; Disk, check and the offline tools work on it.
type image struct {
	path   string
	file   File
	found  string // how the chain came to it: see Attempt
	raw    bool   // no VHD but the bytes of a disk; footer says fixed
	footer Footer
	header Header // zero for a fixed image
	// bat holds the BAT in host order, one entry a block that the virtual
	// size needs; nil for a fixed image. Who writes the image stores into it.
	// It has no entry that points past the end or into metadata: readBAT
	// takes such a block for unallocated, as it would be without the entry.
	bat []atomic.Uint32
	// batmap has a trusted bit for each block that is completely present, or
	// is nil. It may lack bits and never has one too many.
	batmap []byte
	// batmapAt is where the header of the batmap lies, -1 without one.
	batmapAt int64
	// staleBatmap says that the batmap in the file has bits that batmap has
	// not, and that are not true once the blocks are allocated.
	staleBatmap bool

	sizeBytes int64 // virtual, a multiple of 512
	fileBytes int64 // length of the file when it was opened
	footerAt  int64 // where the footer at the end lies, -1 without
	metaEnd   int64 // end of footer copy, header, locators, BAT and batmap
	dataEnd   int64 // end of the last block, or metaEnd

	encrypted bool
	// anySum accepts footers whose sum is wrong, for a repair that is forced.
	anySum   bool
	problems []Problem
}

// blocks is the number of blocks that the virtual size needs.
func (m *image) blocks() int64 { return int64(len(m.bat)) }

func (m *image) blockBytes() int64 { return int64(m.header.BlockBytes) }

// stride is what a block takes in the file: its bitmap and its data.
func (m *image) stride() int64 { return m.header.bitmapBytes() + m.blockBytes() }

// dataAt is where the data of a block lie, for a BAT entry that is in use.
func (m *image) dataAt(entry uint32) int64 {
	return int64(entry)*SectorBytes + m.header.bitmapBytes()
}

// blockEnd is where a block ends in the file.
func (m *image) blockEnd(entry uint32) int64 { return m.dataAt(entry) + m.blockBytes() }

// readImage reads and checks the metadata of one file. With an error the image
// holds what could be read; without a footer its type is 0.
func readImage(path string, file File) (*image, error) {
	m := &image{path: path, file: file}
	return m, m.readMetadata()
}

func (m *image) readMetadata() error {
	err := m.readParts()
	if err == nil && m.footerAt >= 0 {
		return nil
	}
	if part := splitPart(m.path); part != "" && (err == nil || errors.Is(err, ErrNotVHD)) {
		err = fail(ErrUnsupported, "split", -1, "%s is beside it: the image is split into parts that must be joined first", part)
	}
	var bad *ImageError
	if errors.As(err, &bad) {
		bad.Path = m.path
	}
	return err
}

func (m *image) readParts() (err error) {
	m.footerAt, m.batmapAt = -1, -1
	if m.fileBytes, err = m.file.Size(); err != nil {
		return err
	}
	if err := m.readFooters(); err != nil {
		return err
	}
	if m.footer.Type == TypeFixed {
		return m.checkFixed()
	}
	if err := m.readHeader(); err != nil {
		if m.footerAt < 0 && errors.Is(err, ErrCorrupt) {
			// Whoever wrote to the first sector of a raw disk can have
			// written this footer.
			m.footer = Footer{}
			return fail(ErrNotVHD, codeFooterMissing, 0, "no footer at the end, and none of a VHD at the beginning: %v", err)
		}
		return err
	}
	m.readBatmap()
	return m.readBAT()
}

// readRaw makes an image of a file that is no VHD, whatever its bytes say: all
// of it is data.
func readRaw(path string, file File) (*image, error) {
	m := &image{path: path, file: file, footerAt: -1, batmapAt: -1, raw: true}
	var err error
	if m.fileBytes, err = file.Size(); err != nil {
		return nil, err
	}
	m.footer.Type = TypeFixed
	m.sizeBytes = m.fileBytes / SectorBytes * SectorBytes
	m.footer.CurrentSize = uint64(m.sizeBytes)
	m.dataEnd = m.sizeBytes
	return m, nil
}

// limit is where the part of the file ends that metadata and blocks may use.
func (m *image) limit() int64 {
	if m.footerAt >= 0 {
		return m.footerAt
	}
	return m.fileBytes
}

// read returns n bytes at off, all of which must be there.
func (m *image) read(off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	return b, m.readInto(b, off)
}

func (m *image) readInto(b []byte, off int64) error {
	if off < 0 || off > m.fileBytes || int64(len(b)) > m.fileBytes-off {
		return fmt.Errorf("%w: %d bytes at %d are past the end of the file at %d", ErrCorrupt, len(b), off, m.fileBytes)
	}
	n, err := m.file.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(b), off, err)
}

// extent is a run of bytes in a file.
type extent struct{ start, end int64 }

func (e extent) overlaps(o extent) bool { return e.start < o.end && o.start < e.end }

// metadata lists where the image's metadata lie, but for the footer at the end.
func (m *image) metadata() []extent {
	h := &m.header
	table := int64(h.TableOffset)
	parts := []extent{
		{0, footerBytes},
		{int64(m.footer.DataOffset), int64(m.footer.DataOffset) + headerBytes},
		{table, table + h.tableBytes()},
	}
	if m.batmapAt >= 0 {
		parts = append(parts, extent{m.batmapAt, m.batmapAt + batmapHeaderBytes + m.batmapBytes()})
	}
	for i := range h.Locators {
		l := &h.Locators[i]
		if !l.used() || l.check(m.fileBytes) != nil {
			continue
		}
		end := int64(l.DataOffset) + roundUp(int64(l.DataLength), SectorBytes)
		if reserved := int64(l.DataOffset) + l.space(); reserved <= m.limit() {
			end = max(end, reserved)
		}
		parts = append(parts, extent{int64(l.DataOffset), end})
	}
	return parts
}
