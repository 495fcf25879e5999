package vhd

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// commitGroup lets those who want a commit at the same time share one.
type commitGroup struct {
	mu      sync.Mutex
	ended   *sync.Cond
	running bool
	begun   uint64 // runs
	done    uint64 // runs
	err     error  // of the last one
	batch   batch  // of the one that runs
}

// commit makes durable what had completed before the call. A run that is under
// way may have begun too early, so the caller waits for the next one, which
// one of those who wait does for all.
func (w *writer) commit() error {
	g := &w.group
	g.mu.Lock()
	defer g.mu.Unlock()
	for run := g.begun + 1; g.done < run; {
		if g.running {
			g.ended.Wait()
			continue
		}
		g.running = true
		g.begun++
		g.mu.Unlock()
		err := w.runCommit(&g.batch)
		g.mu.Lock()
		g.running, g.done, g.err = false, g.begun, err
		g.ended.Broadcast()
	}
	return g.err
}

// batch is what one commit writes: copies, so that what comes later stays out.
type batch struct {
	blocks  []uint32 // whose BAT entries have to be written
	bitmaps []bitmapCopy
	copies  []byte
}

type bitmapCopy struct {
	*bitmap
	// visible says that the file may have the block's entry already.
	visible bool
	from    int // in copies
}

// keepCopies bounds the memory that a commit leaves to the next one.
const keepCopies = 1 << 20

// commitStep is a part of a commit.
type commitStep func(*writer, *batch) error

// commitSteps are the steps in their order; see the rules at writer.
func commitSteps() []commitStep {
	return []commitStep{
		(*writer).writeInvisible,
		(*writer).barrier,
		(*writer).writeVisible,
		(*writer).writeTable,
		(*writer).barrier,
	}
}

// runCommit makes one run. When it fails the next one has all of it to do
// again.
func (w *writer) runCommit(b *batch) error {
	if err := w.failure(); err != nil {
		return err
	}
	w.dirty.Store(false)
	if w.fixed() {
		return w.sync()
	}
	w.take(b)
	if len(b.blocks) == 0 && len(b.bitmaps) == 0 {
		return w.sync()
	}
	w.changed = true
	var err error
	for _, step := range w.steps {
		if err = step(w, b); err != nil {
			break
		}
	}
	w.giveBack(b, err != nil)
	return err
}

// take fills the batch with what there is to write now. A block is taken
// before its bitmap, so that none is published with a bitmap that is not
// written.
func (w *writer) take(b *batch) {
	w.mu.Lock()
	b.blocks = append(b.blocks[:0], w.fresh...)
	w.fresh = w.fresh[:0]
	w.mu.Unlock()
	slices.Sort(b.blocks)
	w.bitmaps.take(func(m *bitmap) {
		from := len(b.copies)
		b.copies = slices.Grow(b.copies, int(m.bytes()))[:from+int(m.bytes())]
		m.put(b.copies[from:])
		b.bitmaps = append(b.bitmaps, bitmapCopy{m, !w.unpublished.has(m.block), from})
	})
	slices.SortFunc(b.bitmaps, func(x, y bitmapCopy) int { return int(x.at/SectorBytes - y.at/SectorBytes) })
}

// giveBack ends the batch.
func (w *writer) giveBack(b *batch, failed bool) {
	for i := range b.bitmaps {
		w.bitmaps.giveBack(b.bitmaps[i].bitmap, failed)
	}
	if failed {
		w.mu.Lock()
		w.fresh = append(w.fresh, b.blocks...)
		w.mu.Unlock()
		w.dirty.Store(true)
	}
	clear(b.bitmaps)
	b.blocks, b.bitmaps, b.copies = b.blocks[:0], b.bitmaps[:0], b.copies[:0]
	if cap(b.copies) > keepCopies {
		*b = batch{}
	}
}

func (w *writer) barrier(*batch) error { return w.sync() }

// writeInvisible writes the bitmaps of blocks that the file does not know yet.
func (w *writer) writeInvisible(b *batch) error {
	if err := w.writeBitmaps(b, false); err != nil || w.footer.Type == TypeDifferencing {
		return err
	}
	buf := make([]byte, w.header.bitmapBytes())
	for _, block := range b.blocks {
		at := int64(w.bat[block].Load()) * SectorBytes
		fillBits(buf, w.blockSectorsOf(int64(block)))
		if err := w.writeMeta(buf, at, "a bitmap"); err != nil {
			return err
		}
	}
	return nil
}

// writeVisible writes the bitmaps of blocks that the file has.
func (w *writer) writeVisible(b *batch) error { return w.writeBitmaps(b, true) }

func (w *writer) writeBitmaps(b *batch, visible bool) error {
	for i := range b.bitmaps {
		c := &b.bitmaps[i]
		if c.visible != visible {
			continue
		}
		if err := w.writeMeta(b.copies[c.from:][:c.bytes()], c.at, "a bitmap"); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) writeMeta(p []byte, at int64, what string) error {
	if _, err := w.file.WriteAt(p, at); err != nil {
		return fmt.Errorf("%s: write %s at %d: %w", w.path, what, at, err)
	}
	return nil
}

const (
	// entriesPerSector is how many BAT entries are written together at least.
	entriesPerSector = SectorBytes / 4
	// tableRunSectors bounds what is written of the BAT at once.
	tableRunSectors = 128
)

// writeTable writes the sectors of the BAT that have entries of the batch. An
// error on the way leaves it open which the file has, so all count as visible
// from here on.
func (w *writer) writeTable(b *batch) error {
	for _, block := range b.blocks {
		w.unpublished.clear(int64(block))
	}
	for rest := b.blocks; len(rest) > 0; {
		first := int64(rest[0]) / entriesPerSector
		n, end := 0, first
		for n < len(rest) {
			sector := int64(rest[n]) / entriesPerSector
			if sector > end || sector >= first+tableRunSectors {
				break
			}
			n, end = n+1, sector+1
		}
		if err := w.writeEntries(first*entriesPerSector, min(end*entriesPerSector, w.blocks())); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// writeEntries writes the entries of some blocks, but for those of blocks that
// a later commit will publish.
func (w *writer) writeEntries(first, end int64) error {
	buf := make([]byte, 0, 4*(end-first))
	for i := first; i < end; i++ {
		entry := w.bat[i].Load()
		if w.unpublished.has(i) {
			entry = unallocated
		}
		buf = binary.BigEndian.AppendUint32(buf, entry)
	}
	return w.writeMeta(buf, int64(w.header.TableOffset)+4*first, "BAT entries")
}

// fillBits sets the first n bits of b and clears the others.
func fillBits(b []byte, n int64) {
	for i := range b {
		k := max(0, min(8, n-8*int64(i)))
		b[i] = ^byte(0xFF >> k)
	}
}
