package vhd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// RepairOptions say what Repair may do.
type RepairOptions struct {
	// Force permits what changes the data that the image shows: of blocks that
	// overlap it keeps the first in the file, a block that was cut off by the
	// end of the file is filled with zeros, and a footer with a wrong checksum
	// is believed where there is no other.
	Force bool
	Open  Options // of the image; its parents are not opened
	// Progress is as that of CheckOptions. Repair looks twice.
	Progress func(done, total int64)
}

// Repair mends an image that is not in use, and checks it again: the Report
// has what is left. It brings back missing footers, drops BAT entries that
// point nowhere, cuts unused space off the end and writes blktap's batmap
// again. Without Force the disk reads as it did before, unless a batmap called
// blocks complete that are not. After a crash at any point the image is no
// worse than before, and Repair can be called again.
//
// Not to be mended is a header that is damaged, as it has no copy; nor a resize
// by blktap that was interrupted, which only its journal can undo. Errors are
// as those of Check.
func Repair(ctx context.Context, path string, o RepairOptions) (_ *Report, err error) {
	file, err := o.Open.open(path, true)
	if err != nil {
		return nil, fmt.Errorf("repair %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	r := repair{ctx: ctx, o: &o}
	if err := r.run(path, file); err != nil {
		return nil, fmt.Errorf("repair %s: %w", path, err)
	}
	return &r.report, nil
}

// repair is one run.
type repair struct {
	ctx    context.Context
	o      *RepairOptions
	report Report
}

func (r *repair) run(path string, file File) error {
	m, err := r.read(path, file)
	if err != nil {
		return err
	}
	before := checker{ctx: r.ctx, progress: r.o.Progress}
	before.expect(m)
	complete, err := before.check(m)
	if err != nil {
		return err
	}
	found := slices.Clone(m.problems)
	if err := r.mend(m, complete); err != nil {
		return err
	}
	again, err := readImage(path, file)
	if err != nil {
		return err
	}
	after := checker{ctx: r.ctx, progress: r.o.Progress}
	after.expect(again)
	if _, err := after.check(again); err != nil {
		return err
	}
	r.report.Images = after.report.Images
	r.report.Problems = append([]Problem{}, again.problems...)
	for _, p := range found {
		same := func(left Problem) bool { return left.Code == p.Code }
		if !slices.ContainsFunc(again.problems, same) {
			r.report.Mended = append(r.report.Mended, p)
		}
	}
	return nil
}

// read reads the image; with Force it believes a footer whose sum is wrong if
// there is no other.
func (r *repair) read(path string, file File) (*image, error) {
	m, err := readImage(path, file)
	var bad *ImageError
	if r.o.Force && errors.As(err, &bad) && bad.Code == codeFooterSum {
		m = &image{path: path, file: file, anySum: true}
		err = m.readMetadata()
	}
	return m, err
}

// mend goes from what makes nothing worse to what needs the rest to be right.
// The BAT is first: a footer that is added makes the file longer, and an entry
// past its end could come to lie in it.
func (r *repair) mend(m *image, complete []bool) error {
	if m.footer.Type != TypeFixed {
		if err := r.mendBAT(m); err != nil {
			return err
		}
	}
	if m.dataEnd > m.fileBytes && !r.o.Force {
		return nil // a block was cut: the file's end is not ours to choose
	}
	m.placeBatmap()
	if m.footerAt >= 0 && m.dataEnd > m.footerAt {
		m.footerAt = -1 // it lies in a block, or where the batmap will be
		if err := m.placeFooter(); err != nil {
			return err
		}
	}
	if err := recoverFooter(m); err != nil {
		return err
	}
	if err := m.mendBatmap(complete); err != nil {
		return err
	}
	return m.trim()
}

// mendBAT writes the entries that are to change.
func (r *repair) mendBAT(m *image) error {
	if r.o.Force {
		m.dropOverlaps()
	}
	changed, err := r.writeBAT(m)
	if err != nil || !changed {
		return err
	}
	return m.file.Sync()
}

// dropOverlaps takes from the BAT each block that overlaps one before it in
// the file.
func (m *image) dropOverlaps() {
	stride, end := m.stride(), int64(0)
	m.dataEnd = m.metaEnd
	for _, b := range m.inFileOrder() {
		at := int64(m.bat[b].Load()) * SectorBytes
		if at < end {
			m.bat[b].Store(unallocated)
			m.staleBatmap = m.staleBatmap || m.batmapHas(int64(b))
			continue
		}
		end = at + stride
		m.dataEnd = max(m.dataEnd, end)
	}
}

// writeBAT makes the file's BAT that of the image, a sector at a time, and
// records what the disk loses.
func (r *repair) writeBAT(m *image) (changed bool, err error) {
	buf := make([]byte, min(batChunkBytes, m.header.tableBytes()))
	for i := int64(0); i < m.blocks(); i += int64(len(buf)) / 4 {
		b := buf[:min(int64(len(buf)), 4*(m.blocks()-i))]
		if err := m.readInto(b, m.entryAt(i)); err != nil {
			return changed, err
		}
		for n := 0; n < len(b); n += SectorBytes {
			sector := b[n:min(len(b), n+SectorBytes)]
			if !r.patch(m, i+int64(n/4), sector) {
				continue
			}
			changed = true
			if _, err := m.file.WriteAt(sector, m.entryAt(i+int64(n/4))); err != nil {
				return changed, fmt.Errorf("write BAT: %w", err)
			}
		}
	}
	return changed, nil
}

// patch puts the image's entries into a sector of the BAT that begins with
// that of a block.
func (r *repair) patch(m *image, first int64, sector []byte) (changed bool) {
	be := binary.BigEndian
	for ; len(sector) > 0; first, sector = first+1, sector[4:] {
		e := m.bat[first].Load()
		at := first * m.blockBytes()
		end := min(at+m.blockBytes(), m.sizeBytes)
		if be.Uint32(sector) != e {
			be.PutUint32(sector, e)
			changed = true
			r.report.lose(at, end)
		} else if e != unallocated && r.o.Force && m.blockEnd(e) > m.fileBytes {
			r.report.lose(at+max(0, m.fileBytes-m.dataAt(e)), end)
		}
	}
	return changed
}

// placeBatmap reserves the place of a batmap that blktap will look for, where
// nothing else is.
func (m *image) placeBatmap() {
	if !m.footer.hasBatmap() || m.batmapAt >= 0 || m.header.BlockBytes != DefaultBlockBytes {
		return
	}
	at := m.batmapHeaderAt()
	place := extent{at, at + batmapHeaderBytes + m.batmapBytes()}
	for _, p := range m.metadata() {
		if p.overlaps(place) {
			return
		}
	}
	for i := range m.bat {
		e := m.bat[i].Load()
		if e != unallocated && place.overlaps(extent{int64(e) * SectorBytes, m.blockEnd(e)}) {
			return
		}
	}
	m.batmapAt = at
	m.metaEnd, m.dataEnd = max(m.metaEnd, place.end), max(m.dataEnd, place.end)
}

// mendBatmap writes a batmap that cannot be trusted again.
func (m *image) mendBatmap(complete []bool) error {
	wrong := func(p Problem) bool { return p.Code == codeBatmap || p.Code == codeBatmapWrong }
	if m.batmapAt < 0 || !slices.ContainsFunc(m.problems, wrong) {
		return nil
	}
	if err := m.writeBatmap(func(b int64) bool { return complete[b] }); err != nil {
		return err
	}
	return m.file.Sync()
}

// trim cuts off what lies behind the last block, if it is worth it. The footer
// at the end is good until the one that follows the block is durable.
func (m *image) trim() error {
	at := roundUp(m.dataEnd, SectorBytes)
	if m.footer.Type == TypeFixed || m.footerAt-at < m.leakBytes() || m.file.Identity().Block {
		return nil
	}
	if err := m.writeFooter(at); err != nil {
		return err
	}
	if err := m.file.Truncate(at + footerBytes); err != nil {
		return fmt.Errorf("truncate: %w", err)
	}
	m.footerAt, m.fileBytes = at, at+footerBytes
	return m.file.Sync()
}
