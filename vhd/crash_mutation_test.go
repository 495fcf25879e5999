package vhd

import (
	"math/rand/v2"
	"testing"
)

// mutant is a way to do it wrong. A nil one does it right.
type mutant struct {
	name  string
	rig   func(*rand.Rand, *mutant) *crashRig // nil: newCrashRig
	steps func() []commitStep
	// journal changes what has been recorded.
	journal func(journal []op, o op) []op
	// during runs at each operation, before and after it.
	during func(g *crashRig, o op)
}

func (m *mutant) record(journal []op, o op) []op {
	if m != nil && m.journal != nil {
		return m.journal(journal, o)
	}
	return append(journal, o)
}

func steps(s ...commitStep) func() []commitStep { return func() []commitStep { return s } }

// TestCrashFindsMutants: what the crash test cannot find, it does not prove.
func TestCrashFindsMutants(t *testing.T) {
	const (
		enough = 2000 // workloads; a right one passes far more
	)
	invisible, visible := (*writer).writeInvisible, (*writer).writeVisible
	table, barrier := (*writer).writeTable, (*writer).barrier
	mutants := []*mutant{
		{name: "no first barrier", steps: steps(invisible, visible, table, barrier)},
		{name: "no second barrier", steps: steps(invisible, barrier, visible, table)},
		{name: "table first", steps: steps(table, invisible, barrier, visible, barrier)},
		{name: "table before the barrier", steps: steps(invisible, table, barrier, visible, barrier)},
		{name: "bitmap before its data", steps: steps(invisible, visible, barrier, table, barrier)},
		{name: "bitmap never written", steps: steps(barrier, visible, table, barrier)},
		{name: "bitmaps copied late", steps: steps(invisible, barrier, copyAgain, visible, table, barrier)},
		{name: "blocks published early", steps: steps(invisible, barrier, publishAll, visible, table, barrier)},
		{name: "bit set before the data", during: markEarly},
		{name: "footer after the length", journal: lengthFirst},
		{name: "footer cut off before it is durable", journal: cutUnsynced},
		{name: "device not zeroed", during: spoilDevice},
		{name: "batmap before the bitmaps", rig: newBatmapRig, during: batmapEarly},
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			for seed := range uint64(enough) {
				rig := newCrashRig
				if m.rig != nil {
					rig = m.rig
				}
				if err := rig(rand.New(rand.NewPCG(seed, 3)), m).survives(4); err != nil {
					t.Logf("workload %d: %v", seed, err)
					return
				}
			}
			t.Errorf("%d workloads have not found it", enough)
		})
	}
}

// copyAgain takes the bits that were set since the commit began.
func copyAgain(w *writer, b *batch) error {
	for _, c := range b.bitmaps {
		c.put(b.copies[c.from:])
	}
	return nil
}

// publishAll takes the blocks that were allocated since the commit began.
func publishAll(w *writer, _ *batch) error {
	for i := range w.blocks() {
		w.unpublished.clear(i)
	}
	return nil
}

// markEarly sets the bits of data that are about to be written.
func markEarly(g *crashRig, o op) {
	w := g.d.w
	if o.kind != opWrite || w.header.BlockBytes == 0 {
		return
	}
	for b := range w.blocks() {
		e := w.bat[b].Load()
		if e != unallocated && o.off >= w.dataAt(e) && o.off < w.blockEnd(e) {
			if _, err := w.bitmaps.mark(w.layer, b, (o.off-w.dataAt(e))/512, o.n/512); err != nil {
				panic(err)
			}
		}
	}
}

// lengthFirst makes the file grow before the footer is written at its end.
func lengthFirst(journal []op, o op) []op {
	if o.kind == opWrite && string(o.data[:8]) == footerCookie && o.off > 0 {
		journal = append(journal, op{kind: opTruncate, off: o.off + o.n})
	}
	return append(journal, o)
}

// cutUnsynced forgets the sync between the footer and the new length.
func cutUnsynced(journal []op, o op) []op {
	if n := len(journal); o.kind == opTruncate && n > 0 && journal[n-1].kind == opSync {
		journal = journal[:n-1]
	}
	return append(journal, o)
}

// spoilDevice undoes the zeros that a new region is given on a device.
func spoilDevice(g *crashRig, o op) {
	if o.kind != opPunch || !g.file.identity.Block {
		return
	}
	if g.d.w.mu.TryLock() { // a discard
		g.d.w.mu.Unlock()
		return
	}
	if n := len(g.journal); n > 0 && g.journal[n-1].kind == opPunch && g.journal[n-1].off == o.off {
		old := &memFile{data: append([]byte(nil), g.base...)}
		for _, o := range g.journal[:n-1] {
			whole.apply(old, o, nil)
		}
		g.journal = g.journal[:n-1]
		copy(g.file.data[o.off:], old.data[o.off:o.off+o.n])
	}
}

// batmapEarly writes the batmap in the middle of a commit.
func batmapEarly(g *crashRig, o op) {
	if w := g.d.w; o.kind == opSync && g.depth == 1 && w.changed {
		g.depth++
		if err := w.writeBatmap(w.full.has); err != nil {
			panic(err)
		}
		g.depth--
	}
}
