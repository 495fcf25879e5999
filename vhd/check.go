package vhd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"time"
)

// CheckOptions say how Check looks.
type CheckOptions struct {
	Open Options // for reading, whatever it says
	// Progress is told how many of the allocated blocks have been looked at,
	// now and then and at the end. It is called by the caller's goroutine.
	Progress func(done, total int64)
}

// Check looks at all metadata of an image and of those that it stands on, the
// block bitmaps too, and changes nothing. What is wrong with them is in the
// Report; an error says that there is none: the file cannot be read, it is no
// VHD or one of a kind that is not supported, or ctx is done.
func Check(ctx context.Context, path string, o CheckOptions) (_ *Report, err error) {
	o.Open.ReadOnly = true
	file, err := o.Open.open(path, false)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", path, err)
	}
	m, err := readImage(path, file)
	chain := []*image{m}
	defer func() { err = errors.Join(err, closeChain(chain)) }()
	var bad *ImageError
	if errors.As(err, &bad) && errors.Is(err, ErrCorrupt) {
		return &Report{Images: []ImageReport{}, Problems: []Problem{bad.Problem}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", path, err)
	}
	chain, err = extendChain(chain, &o.Open)
	if err != nil {
		noteParent(chain, err)
	}
	c := checker{ctx: ctx, progress: o.Progress}
	for _, m := range chain {
		c.expect(m)
	}
	for i, m := range chain {
		if _, err := c.check(m); err != nil {
			return nil, fmt.Errorf("check %s: %w", m.path, err)
		}
		if i > 0 {
			checkTimes(chain[i-1], m)
		}
	}
	c.report.Problems = []Problem{}
	for _, m := range chain {
		c.report.Problems = append(c.report.Problems, m.problems...)
	}
	return &c.report, nil
}

// checker counts over the images of a chain.
type checker struct {
	ctx         context.Context
	progress    func(done, total int64)
	done, total int64
	report      Report
}

const codeBitmap = "bitmap-unreadable"

// Bitmaps are a read each, at a distance: as many are read at once as make a
// drive of flash fast, and a batch is between two looks at ctx.
const (
	checkReaders = 8
	readerBlocks = 1024
	checkBatch   = checkReaders * readerBlocks
)

// expect adds the blocks of an image to those that progress counts.
func (c *checker) expect(m *image) {
	for i := range m.bat {
		if m.bat[i].Load() != unallocated {
			c.total++
		}
	}
}

// check looks at what readImage does not. It returns which blocks are complete.
func (c *checker) check(m *image) (complete []bool, err error) {
	m.noteOddities(time.Now())
	r := ImageReport{Path: m.path, Blocks: m.blocks()}
	if m.blocks() > 0 {
		order := m.inFileOrder()
		r.Allocated = int64(len(order))
		r.LeakedBytes = m.findLeaks(order)
		if complete, err = c.bitmaps(m, order, &r); err != nil {
			return nil, err
		}
	}
	c.report.Images = append(c.report.Images, r)
	return complete, nil
}

// bitmaps reads the bitmap of each block, in the order of the file.
func (c *checker) bitmaps(m *image, order []uint32, r *ImageReport) ([]bool, error) {
	complete := make([]bool, m.blocks())
	looks := make([]bitmapLook, min(len(order), checkBatch))
	found := listing{image: m}
	for n := 0; n < len(order); n += checkBatch {
		if err := c.step(n); err != nil {
			return nil, err
		}
		batch := order[n:min(len(order), n+checkBatch)]
		m.lookAt(batch, looks)
		for k, block := range batch {
			l, i := &looks[k], int64(block)
			at := int64(m.bat[i].Load()) * SectorBytes
			switch {
			case l.err != nil:
				if found.more(codeBitmap, Damage) {
					m.note(codeBitmap, Damage, at, "bitmap of block %d: %v", i, l.err)
				}
			case l.complete:
				complete[i] = true
				r.Complete++
			case m.batmapHas(i):
				if found.more(codeBatmapWrong, Damage) {
					m.note(codeBatmapWrong, Damage, at, "batmap has block %d, and its bitmap lacks sectors", i)
				}
			}
			if l.past != 0 {
				m.note("bitmap-past-end", Note, at, "bitmap of block %d has %d sectors past the end of the disk", i, l.past)
			}
		}
	}
	found.finish()
	c.done += int64(len(order))
	return complete, c.step(0)
}

// bitmapLook is what a bitmap says.
type bitmapLook struct {
	complete bool
	// past is how many of the bits past the disk's end are set, 0 for all:
	// programs that fill a bitmap fill all of it.
	past int64
	err  error
}

// lookAt reads the bitmaps of a batch, by several goroutines that have ended
// when it returns.
func (m *image) lookAt(batch []uint32, looks []bitmapLook) {
	var readers sync.WaitGroup
	for from := 0; from < len(batch); from += readerBlocks {
		part := batch[from:min(len(batch), from+readerBlocks)]
		readers.Add(1)
		go func() {
			defer readers.Done()
			buf := make([]byte, m.header.bitmapBytes())
			for k, block := range part {
				looks[from+k] = m.look(int64(block), buf)
			}
		}()
	}
	readers.Wait()
}

func (m *image) look(block int64, buf []byte) (l bitmapLook) {
	if l.err = m.readInto(buf, int64(m.bat[block].Load())*SectorBytes); l.err != nil {
		return l
	}
	here, all := m.blockSectorsOf(block), m.header.blockSectors()
	l.complete = onesIn(buf, 0, here) == here
	if past := onesIn(buf, here, all); past != all-here {
		l.past = past
	}
	return l
}

// step reports progress, n blocks into an image.
func (c *checker) step(n int) error {
	if c.progress != nil {
		c.progress(c.done+int64(n), c.total)
	}
	return c.ctx.Err()
}

// blockSectorsOf is how many sectors of a block the disk has: all, but of the
// last one.
func (m *image) blockSectorsOf(block int64) int64 {
	return min(m.blockBytes(), m.sizeBytes-block*m.blockBytes()) / SectorBytes
}

// onesIn counts the bits from one to before another. A bitmap is whole sectors.
func onesIn(bitmap []byte, from, to int64) (n int64) {
	for at := from / 64 * 64; at < to; at += 64 {
		word := binary.BigEndian.Uint64(bitmap[at/8:])
		if from > at {
			word &= ^uint64(0) >> (from - at)
		}
		if to < at+64 {
			word &= ^(^uint64(0) >> (to - at))
		}
		n += int64(bits.OnesCount64(word))
	}
	return n
}

// alignmentBytes is what may lie between two blocks because the next one is
// aligned: QEMU, blktap and Windows leave 3584 bytes at most.
const alignmentBytes = 8192

// leakBytes is how long unused space must be to be a leak.
func (m *image) leakBytes() int64 { return max(m.stride(), alignmentBytes) }

// findLeaks adds up the space between blocks, and between the last one and the
// footer, that has room for a block.
func (m *image) findLeaks(order []uint32) int64 {
	if m.file.Identity().Block {
		return 0 // a device is as long as it is, and blktap leaves it so
	}
	room := m.leakBytes()
	var between int64
	end := m.metaEnd
	for _, b := range order {
		e := m.bat[b].Load()
		if gap := int64(e)*SectorBytes - end; gap >= room {
			between += gap
		}
		end = max(end, m.blockEnd(e))
	}
	if between > 0 {
		m.note(codeLeak, Leak, -1, "%d bytes between blocks are not used", between)
	}
	slack := m.limit() - end
	if slack < room {
		return between
	}
	m.note(codeSlack, Leak, end, "%d bytes after the last block are not used", slack)
	return between + slack
}

const (
	codeLeak  = "leak"
	codeSlack = "slack"
)

// noteOddities notes what is unusual in footer and header, and hurts nobody.
func (m *image) noteOddities(now time.Time) {
	if m.raw {
		return
	}
	f, h, at := &m.footer, &m.header, max(m.footerAt, 0)
	if f.Features&featureReserved == 0 {
		m.note("features", Note, at+8, "features are %#x, without the reserved bit", f.Features)
	}
	if f.SavedState > 1 {
		m.note("saved-state", Note, at+84, "saved state is %d, want 0 or 1", f.SavedState)
	}
	if f.Hidden > 1 {
		m.note("hidden", Note, at+85, "hidden is %d, want 0 or 1", f.Hidden)
	}
	if f.reserved != [426]byte{} {
		m.note("reserved", Note, at+86, "reserved bytes of the footer are not zero")
	}
	// A file can come from a host whose clock is ahead a little.
	if f.Created().After(now.Add(24 * time.Hour)) {
		m.note("timestamp", Note, at+24, "image was made on %s, which is still to come", f.Created().Format(time.DateOnly))
	}
	// Programs write the largest geometry to say that it means nothing.
	if g := f.Geometry; g != (Geometry{65535, 16, 255}) && int64(g.Cylinders)*int64(g.Heads)*int64(g.Sectors)*SectorBytes > m.sizeBytes {
		m.note("geometry", Note, at+56, "geometry %d/%d/%d is more than the size of %d bytes",
			g.Cylinders, g.Heads, g.Sectors, m.sizeBytes)
	}
	if f.Type == TypeFixed {
		return
	}
	if h.reserved != 0 || h.tail != [256]byte{} {
		m.note("reserved", Note, int64(f.DataOffset)+60, "reserved bytes of the header are not zero")
	}
	if f.Type != TypeDifferencing {
		return
	}
	for i := range h.Locators {
		if _, err := m.readLocator(&h.Locators[i]); err != nil {
			m.note("locator", Note, int64(f.DataOffset)+576+24*int64(i), "locator %d: %v", i, err)
		}
	}
}

// checkTimes compares when the parent was written with what the child says. A
// copy has another time too: it is no proof that the parent has changed.
func checkTimes(child, parent *image) {
	said := child.header.ParentTimestamp
	st, err := os.Stat(parent.path)
	if err != nil || said == 0 {
		return // Windows 10 writes 0
	}
	if got := stamp(st.ModTime()); got > said {
		child.note("parent-newer", Note, int64(child.footer.DataOffset)+56,
			"parent %s was written %d seconds after the child was made", parent.path, got-said)
	}
}
