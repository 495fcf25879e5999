package vhd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The codes of what opening for writing mends.
const (
	codeFooterMissing = "footer-missing"
	codeFooterOld     = "footer-511"
	codeFooterSum     = "footer-checksum" // accepted by force only
	codeMirrorBad     = "mirror-bad"
	codeMirrorDiffers = "mirror-differs"
)

// maxFileBytes is a quarter of what an int64 counts, so that sums of two places
// in a file do not wrap. Blocks end at 2 TiB anyway: a BAT entry has 32 bits.
const maxFileBytes = 1 << 61

// readFooters decides which footer to believe. The one at the end counts; its
// mirror at the beginning is believed only when that is missing or bad, and
// never for a fixed image, whose first sector belongs to a guest.
func (m *image) readFooters() error {
	last, err := m.lastFooter()
	if err != nil && !errors.Is(err, ErrNotVHD) && !errors.Is(err, ErrCorrupt) {
		return err
	}
	if last != nil {
		m.footer = *last
		if m.sizeBytes, err = last.check(m.footerAt); err != nil {
			return err
		}
		m.checkMirror()
	} else if err := m.believeMirror(err); err != nil {
		return err
	}
	if odd := m.footer.CurrentSize % SectorBytes; odd != 0 {
		m.note("size-odd", Note, max(m.footerAt, 0)+48,
			"size is %d bytes: the last %d are not used", m.footer.CurrentSize, odd)
	}
	return nil
}

// lastFooter reads the footer at the end, and sets footerAt. Virtual PC wrote
// 511 bytes before 2004.
func (m *image) lastFooter() (*Footer, error) {
	if m.fileBytes < footerBytes {
		return nil, fail(ErrNotVHD, codeFooterMissing, 0, "file has %d bytes, a footer takes %d", m.fileBytes, footerBytes)
	}
	if m.fileBytes > maxFileBytes {
		return nil, fail(ErrUnsupported, "file-size", -1, "file has %d bytes, want at most %d", m.fileBytes, int64(maxFileBytes))
	}
	at := m.fileBytes - footerBytes
	f, err := m.footerAtOffset(at, footerBytes)
	if f == nil && m.fileBytes%SectorBytes == oldFooterBytes {
		old, _ := m.footerAtOffset(at+1, oldFooterBytes)
		if old != nil {
			f, err, at = old, nil, at+1
			m.note(codeFooterOld, Damage, at, "footer has 511 bytes, as before 2004")
		}
	}
	if f != nil {
		m.footerAt = at
	}
	return f, err
}

func (m *image) footerAtOffset(at int64, n int) (*Footer, error) {
	b, err := m.read(at, n)
	if err != nil {
		return nil, err
	}
	f, err := parseFooter(b)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, ErrNotVHD):
		return nil, fail(ErrNotVHD, codeFooterMissing, at, "no footer cookie")
	case m.anySum:
		var full [footerBytes]byte
		copy(full[:], b)
		m.note(codeFooterSum, Damage, at, "%v", err)
		return decodeFooter(&full), nil
	}
	return nil, fail(ErrCorrupt, codeFooterSum, at, "footer checksum is wrong")
}

// checkMirror compares the copy at the beginning with the footer at the end.
func (m *image) checkMirror() {
	if m.footer.Type == TypeFixed {
		return
	}
	b, err := m.read(0, footerBytes)
	if err == nil {
		var mirror *Footer
		if mirror, err = parseFooter(b); err == nil {
			if *mirror != m.footer {
				m.note(codeMirrorDiffers, Damage, 0, "footer copy differs from the footer")
			}
			return
		}
	}
	m.note(codeMirrorBad, Damage, 0, "footer copy: %v", err)
}

// believeMirror takes the copy at the beginning, as there is no good footer at
// the end. The header must bear it out: see readParts.
func (m *image) believeMirror(last error) error {
	if m.fileBytes < footerBytes {
		return last
	}
	f, err := m.footerAtOffset(0, footerBytes)
	if f == nil || f.Type == TypeFixed {
		var bad *ImageError
		if errors.As(err, &bad) && !errors.Is(err, ErrNotVHD) {
			return err
		}
		return last
	}
	m.footer = *f
	if m.sizeBytes, err = f.check(0); err != nil {
		return err
	}
	why := last.Error()
	var e *ImageError
	if errors.As(last, &e) {
		why = e.Text // the offset is the note's
	}
	m.note(codeFooterMissing, Damage, m.fileBytes-footerBytes, "footer at the end: %s", why)
	return nil
}

// checkFixed holds the footer of a fixed image against the length of the file.
func (m *image) checkFixed() error {
	m.dataEnd = m.sizeBytes
	if m.sizeBytes > m.footerAt {
		return fail(ErrCorrupt, "fixed-short", m.footerAt+48,
			"size is %d bytes, and the file has %d before its footer", m.footer.CurrentSize, m.footerAt)
	}
	if slack := m.footerAt - int64(m.footer.CurrentSize); slack >= SectorBytes {
		m.note("fixed-slack", Note, m.sizeBytes, "%d bytes lie between data and footer", slack)
	}
	return nil
}

// splitPart returns the name of a part of a split image that lies beside path,
// or is it ("Splitting Hard Disk Images" in the specification: the parts are
// .vhd, .v01, .v02 ..., and the footer ends the last).
func splitPart(path string) string {
	ext := filepath.Ext(path)
	if len(ext) == 4 && (ext[1]|0x20) == 'v' && strings.Trim(ext[2:], "0123456789") == "" {
		return path
	}
	for _, part := range []string{".v01", ".V01"} {
		part = strings.TrimSuffix(path, ext) + part
		if _, err := os.Stat(part); err == nil {
			return part
		}
	}
	return ""
}

// recoverFooter does what an image needs before it may be written: it writes
// what of the two footers is missing, bad or old, and a batmap that has too
// much. An image that is well is not touched. The good footer is never
// overwritten before the other is durable.
func recoverFooter(m *image) error {
	var end, mirror bool
	for _, p := range m.problems {
		switch p.Code {
		case codeFooterMissing, codeFooterOld, codeFooterSum:
			end = true
		case codeMirrorBad, codeMirrorDiffers:
			mirror = true
		}
	}
	if end {
		if err := m.placeFooter(); err != nil {
			return err
		}
	}
	if mirror {
		if err := m.writeFooter(0); err != nil {
			return err
		}
	}
	if m.staleBatmap {
		if err := m.writeBatmap(m.batmapHas); err != nil {
			return err
		}
		if err := m.file.Sync(); err != nil {
			return err
		}
	}
	for i := range m.problems {
		p := &m.problems[i]
		if p.mendedByOpening() {
			p.Severity, p.Text = Note, "repaired: "+p.Text
		}
	}
	return nil
}

// placeFooter writes the footer at the end of the file, past the last block.
// One write adds it and sets the length.
func (m *image) placeFooter() error {
	at := m.footerAt
	if at < 0 {
		at = roundUp(max(m.dataEnd, m.fileBytes-footerBytes), SectorBytes)
		if m.file.Identity().Block {
			if at = m.fileBytes/SectorBytes*SectorBytes - footerBytes; at < m.dataEnd {
				return fmt.Errorf("%w: no room for a footer between the last block at %d and the device's end at %d",
					ErrCorrupt, m.dataEnd, m.fileBytes)
			}
		}
	}
	if err := m.writeFooter(at); err != nil {
		return err
	}
	m.footerAt, m.fileBytes = at, max(m.fileBytes, at+footerBytes)
	return nil
}

// writeFooter makes a footer durable.
func (m *image) writeFooter(at int64) error {
	if _, err := m.file.WriteAt(m.footer.bytes(), at); err != nil {
		return fmt.Errorf("write footer at %d: %w", at, err)
	}
	return m.file.Sync()
}
