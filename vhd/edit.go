package vhd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// editor changes the layout of one image that nobody else has open. The
// machine may stop at any instant, and the image is whole, because
//
//   - what something points to is durable before the pointer is written;
//   - a pointer is one write inside a sector: a BAT entry, or the footer at
//     the end, which has the size and points to the header;
//   - bytes that nothing points to any more are written again only when that
//     is durable.
//
// A header is two sectors long, so it is never written over. The new one is
// written beside the old, the footer turns to it, and turns back when the
// header in its usual place is new too. So there is no journal that others
// would have to know: at each instant the footer at the end of the file is
// right, and who believes its mirror finds the old header or the new one, or
// for a moment one with a wrong sum.
type editor struct {
	*layer
	// kept is what was found for something that the header will point to.
	kept []extent
	buf  []byte
}

// copyBuffer is for data of an image that are moved or looked at: a block, if
// that is neither little nor much.
func copyBuffer(m *image) []byte { return make([]byte, min(max(m.blockBytes(), 64<<10), 1<<20)) }

// openEditor opens an image without its parents, and mends what a crash left.
func openEditor(path string, o *Options) (*editor, error) {
	m, err := openImage(path, true, o)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	e := &editor{layer: newLayer(m, newBitmaps()), buf: copyBuffer(m)}
	if err := e.mend(); err != nil {
		return nil, errors.Join(fmt.Errorf("open: %w", err), m.file.Close())
	}
	return e, nil
}

func (e *editor) mend() error {
	if err := e.writable(); err != nil {
		return err
	}
	if e.encrypted {
		return ErrEncrypted
	}
	if err := recoverFooter(e.image); err != nil {
		return err
	}
	if err := e.bringHeaderHome(); err != nil {
		return err
	}
	return e.extend(0)
}

// close gives back what lies behind the last byte in use, if all went well,
// and closes the file.
func (e *editor) close(failed error) error {
	if failed == nil {
		failed = e.endAt(e.usedEnd())
	}
	return errors.Join(failed, e.file.Close())
}

// extend makes the file so long that the footer lies at an offset or behind. It
// lies in one sector then, and so is written at once.
func (e *editor) extend(at int64) error { return e.endAt(roundUp(max(at, e.footerAt), SectorBytes)) }

// endAt moves the footer, and with it the end of the file: at each instant
// there is one at the end. A device ends where it ends.
func (e *editor) endAt(at int64) error {
	if e.file.Identity().Block {
		if at > e.footerAt {
			return fmt.Errorf("use %d bytes: %w", at+footerBytes, syscall.ENOSPC)
		}
		return nil
	}
	if at == e.footerAt {
		return nil
	}
	if err := e.writeFooter(at); err != nil {
		return err
	}
	end := at + footerBytes
	if end < e.fileBytes {
		if err := e.file.Truncate(end); err != nil {
			return err
		}
	}
	e.footerAt, e.fileBytes = at, end
	return nil
}

// switchFooter gives the image another footer, at once.
func (m *image) switchFooter(f Footer) error {
	m.footer = f
	if err := m.writeFooter(m.footerAt); err != nil {
		return err
	}
	if f.Type == TypeFixed {
		return nil
	}
	return m.writeFooter(0)
}

// switchHeader gives the image another header and another footer, both at
// once. What the header points to need not be durable yet.
func (e *editor) switchHeader(h Header, f Footer) error {
	beside, err := e.beside(headerBytes)
	if err != nil {
		return err
	}
	if _, err := e.file.WriteAt(h.bytes(), beside); err != nil {
		return err
	}
	if err := e.file.Sync(); err != nil {
		return err
	}
	f.DataOffset = uint64(beside)
	e.footer, e.header, e.kept = f, h, nil
	if !e.isFree(headerHome()) {
		return e.switchFooter(f)
	}
	// The mirror goes on pointing home.
	if err := e.writeFooter(e.footerAt); err != nil {
		return err
	}
	return e.bringHeaderHome()
}

// headerAt is where programs expect the header; some look nowhere else.
const headerAt = footerBytes

func headerHome() extent { return extent{headerAt, headerAt + headerBytes} }

// bringHeaderHome writes a header that lies elsewhere where programs expect
// it, if nothing else is there, and has the footer point to it when it is
// durable. An image whose header was being changed when the machine stopped
// becomes like others by it; one that is, is not touched.
func (m *image) bringHeaderHome() error {
	if m.footer.Type == TypeFixed || m.footer.DataOffset == headerAt || !m.isFree(headerHome()) {
		return nil
	}
	if _, err := m.file.WriteAt(m.header.bytes(), headerAt); err != nil {
		return fmt.Errorf("write header at %d: %w", headerAt, err)
	}
	if err := m.file.Sync(); err != nil {
		return err
	}
	f := m.footer
	f.DataOffset = headerAt
	return m.switchFooter(f)
}

// point writes one BAT entry.
func (e *editor) point(block int64, entry uint32) error {
	e.bat[block].Store(entry)
	_, err := e.file.WriteAt(binary.BigEndian.AppendUint32(nil, entry), e.entryAt(block))
	return err
}

// drop gives blocks up, whose data nobody reads.
func (e *editor) drop(blocks []int64) error {
	if len(blocks) == 0 {
		return nil
	}
	if err := e.forget(blocks); err != nil {
		return err
	}
	for _, b := range blocks {
		if err := e.point(b, unallocated); err != nil {
			return err
		}
	}
	return e.file.Sync()
}

// forget takes blocks out of the batmap: it must not call one complete that is
// allocated again and filled in part.
func (e *editor) forget(blocks []int64) error {
	if !slices.ContainsFunc(blocks, e.batmapHas) {
		return nil
	}
	gone := newBitset(e.blocks())
	for _, b := range blocks {
		gone.set(b)
	}
	err := e.writeBatmap(func(b int64) bool { return e.batmapHas(b) && !gone.has(b) })
	if err != nil {
		return err
	}
	return e.file.Sync()
}

// readsZeros says whether a range of the disk that layers show is zeros. It
// reads into buf.
func readsZeros(ctx context.Context, layers []*layer, off, end int64, buf []byte) (bool, error) {
	for off < end {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		x, err := nextExtent(layers, off)
		if err != nil {
			return false, err
		}
		n := min(x.Len, end-off)
		if !x.Zero {
			n = min(n, int64(len(buf)))
			if err := readChain(layers, buf[:n], off); err != nil {
				return false, err
			}
			if !isZero(buf[:n]) {
				return false, nil
			}
		}
		off += n
	}
	return true, nil
}

// openParents opens what an image stands on, for reading.
func openParents(m *image, o *Options) (parents []*layer, err error) {
	chain, err := extendChain([]*image{m}, o)
	if err != nil {
		return nil, errors.Join(err, closeChain(chain[1:]))
	}
	cache := newBitmaps()
	for _, m := range chain[1:] {
		parents = append(parents, newLayer(m, cache))
	}
	return parents, nil
}

func closeLayers(layers []*layer) error {
	var errs []error
	for _, l := range layers {
		errs = append(errs, l.file.Close())
	}
	return errors.Join(errs...)
}

// checkParentEnd says that what the parents have between two sizes must not be
// seen.
func checkParentEnd(ctx context.Context, parents []*layer, from, to int64) error {
	to = min(to, parents[0].sizeBytes)
	zeros, err := readsZeros(ctx, parents, from, to, copyBuffer(parents[0].image))
	if err == nil && !zeros {
		err = fmt.Errorf("%w: %s, between %d and %d", ErrParentShows, parents[0].path, from, to)
	}
	return err
}
