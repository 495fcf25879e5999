package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// image is one file of a chain: its metadata, read and checked. It does no
// data I/O and changes nothing; Disk, check and the offline tools work on it.
type image struct {
	path   string
	file   File
	found  string // how the chain came to it: see Attempt
	raw    bool   // no VHD but the bytes of a disk; footer says fixed
	footer Footer
	header Header // zero for a fixed image
	// bat holds the BAT in host order, one entry a block that the virtual
	// size needs; nil for a fixed image. Who writes the image stores into it.
	bat []atomic.Uint32
	// batmap has a trusted bit for each block that is completely present, or
	// is nil. It may lack bits and never has one too many.
	batmap []byte

	sizeBytes int64 // virtual, a multiple of 512
	fileBytes int64 // length of the file when it was opened
	footerAt  int64 // where the footer at the end lies, -1 without
	metaEnd   int64 // end of footer copy, header, locators, BAT and batmap
	dataEnd   int64 // end of the last block, or metaEnd

	problems []Problem
}

// Severity says what a problem keeps one from doing.
type Severity uint8

const (
	// Note: unusual, and harmless.
	Note Severity = iota
	// Leak: space that no block uses.
	Leak
	// Damage: the image can be read, and must be repaired before it is
	// written.
	Damage
	// Unreadable: the image cannot be opened.
	Unreadable
)

// String returns the word that reports use.
func (s Severity) String() string {
	return [...]string{"note", "leak", "damage", "unreadable"}[s]
}

// Problem is something that is not as it should be in an image.
type Problem struct {
	// Code is stable and meant for programs: "mirror-differs", "bat-overlap".
	Code     string
	Severity Severity
	// Offset is where in the file, in bytes; -1 for no one place.
	Offset int64
	// Text is for people: one line that names the field and its value.
	Text string
}

// blocks is the number of blocks that the virtual size needs.
func (m *image) blocks() int64 { return int64(len(m.bat)) }

func (m *image) blockBytes() int64 { return int64(m.header.BlockBytes) }

// dataAt is where the data of a block lie, for a BAT entry that is in use.
func (m *image) dataAt(entry uint32) int64 {
	return int64(entry)*SectorBytes + m.header.bitmapBytes()
}

// blockEnd is where a block ends in the file.
func (m *image) blockEnd(entry uint32) int64 { return m.dataAt(entry) + m.blockBytes() }

func (m *image) note(code string, s Severity, off int64, format string, args ...any) {
	m.problems = append(m.problems, Problem{code, s, off, fmt.Sprintf(format, args...)})
}

// readImage reads and checks the metadata of one file.
func readImage(path string, file File) (*image, error) {
	m := &image{path: path, file: file, footerAt: -1}
	var err error
	if m.fileBytes, err = file.Size(); err != nil {
		return nil, err
	}
	if err := m.readFooter(); err != nil {
		return nil, err
	}
	m.sizeBytes = int64(m.footer.CurrentSize)
	m.metaEnd = 0
	if m.footer.Type == TypeFixed {
		m.dataEnd = m.sizeBytes
		return m, nil
	}
	if err := m.readHeader(); err != nil {
		return nil, err
	}
	if err := m.readBAT(); err != nil {
		return nil, err
	}
	return m, nil
}

// readRaw makes an image of a file that is no VHD, whatever its bytes say: all
// of it is data.
func readRaw(path string, file File) (*image, error) {
	m := &image{path: path, file: file, footerAt: -1, raw: true}
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

// writable says why an image must not be written before it is repaired.
func (m *image) writable() error { return nil }

func (m *image) readFooter() error {
	b, err := m.read(m.fileBytes-footerBytes, footerBytes)
	if err != nil {
		return err
	}
	f, err := parseFooter(b)
	if err != nil {
		return err
	}
	m.footer, m.footerAt = *f, m.fileBytes-footerBytes
	return nil
}

func (m *image) readHeader() error {
	b, err := m.read(int64(m.footer.DataOffset), headerBytes)
	if err != nil {
		return err
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	m.header = *h
	return nil
}

func (m *image) readBAT() error {
	need := (m.sizeBytes + m.blockBytes() - 1) / m.blockBytes()
	at := int64(m.header.TableOffset)
	b, err := m.read(at, int(need*4))
	if err != nil {
		return err
	}
	m.bat = make([]atomic.Uint32, need)
	m.metaEnd = at + roundUp(int64(m.header.MaxTableEntries)*4, SectorBytes)
	m.dataEnd = m.metaEnd
	for i := range m.bat {
		e := binary.BigEndian.Uint32(b[4*i:])
		m.bat[i].Store(e)
		if e != unallocated {
			m.dataEnd = max(m.dataEnd, m.blockEnd(e))
		}
	}
	return nil
}

// read returns n bytes at off, all of which must be there.
func (m *image) read(off int64, n int) ([]byte, error) {
	if off < 0 || off > m.fileBytes || int64(n) > m.fileBytes-off {
		return nil, fmt.Errorf("%w: %d bytes at %d are past the end of the file at %d",
			ErrCorrupt, n, off, m.fileBytes)
	}
	b := make([]byte, n)
	got, err := m.file.ReadAt(b, off)
	if got == n {
		return b, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
}
