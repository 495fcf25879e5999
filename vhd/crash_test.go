package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// version is a value that a sector was given. Times are ticks of the rig's
// clock, which every call moves on twice.
type version struct {
	data         []byte
	begun, ended int
	at           int // how many operations were in the journal when it began
	// maybe says that the sector may have this value, or keep another: it was
	// discarded, or its write failed.
	maybe bool
}

// crashRig runs a workload on one image whose file keeps a journal, and knows
// what each sector may contain after a crash at any place of it.
type crashRig struct {
	r       *rand.Rand
	base    []byte
	journal []op // for a sync n is how many operations had ended when it began
	file    *memFile
	parents []*memFile
	d       *Disk
	mutant  *mutant
	// fault refuses operations; onError learns what came of it.
	fault   func(op) error
	onError func(error)

	// lengths are the most sectors that a call takes, one of them each time;
	// 0 is the whole disk.
	lengths []int64
	// keepsHoles says that the store cannot punch.
	keepsHoles bool

	history [][]version
	clock   int
	flushes []flushCall
	depth   int
}

type flushCall struct {
	begun int // on the clock
	at    int // how many operations were in the journal when it ended
}

const never = int(^uint(0) >> 1)

// newCrashRig makes an image as one of the programs would, in a file or on a
// device, dynamic or over a parent.
func newCrashRig(r *rand.Rand, mut *mutant) *crashRig {
	g := &crashRig{
		r: r, mutant: mut, onError: func(err error) { panic(err) },
		lengths: []int64{1, 3, 20}, keepsHoles: r.IntN(4) == 0,
	}
	size := 512 * (1 + r.Int64N(60))
	top := randomImage(r, size)
	top.blockBytes = 512 << r.IntN(6)
	top.diskType = 3
	want := make([]byte, size)
	if r.IntN(3) != 0 {
		below := randomImage(r, size)
		below.blockBytes = 4096
		below.diskType, below.uuid = 3, UUID{1}
		g.parents = []*memFile{{data: below.bytes(), identity: Identity{Inode: 2}}}
		top.diskType = 4
		for s, b := range below.held {
			copy(want[s*512:], b)
		}
	}
	for s, b := range top.held {
		copy(want[s*512:], b)
	}
	g.base = top.bytes()
	g.file = &memFile{identity: Identity{Inode: 1, Block: r.IntN(4) == 0}}
	if g.file.identity.Block {
		g.base = asDevice(r, g.base, top.blocks()*(top.blockBytes+top.bitmapBytes()+dataAlign+footerBytes))
	}
	g.begin(want)
	return g
}

// newBatmapRig makes an image with a batmap, as blktap wants it.
func newBatmapRig(r *rand.Rand, mut *mutant) *crashRig {
	g := &crashRig{
		r: r, mutant: mut, onError: func(err error) { panic(err) },
		lengths: []int64{1, 500, 0},
	}
	below := &foreign{layout: layouts()[0], sizeBytes: 1 << 20, blockBytes: 4096, diskType: 3, uuid: UUID{1}, held: map[int64][]byte{}}
	want := make([]byte, 2<<20)
	for s := range int64(2048) {
		below.held[s] = noise(r, 1)
		copy(want[s*512:], below.held[s])
	}
	g.parents = []*memFile{{data: below.bytes(), identity: Identity{Inode: 2}}}
	top := newImage(int64(len(want)), 0, CreatorXenServer, UUID{2})
	top.footer.Type, top.header.ParentUUID = TypeDifferencing, below.uuid
	g.file = &memFile{identity: Identity{Inode: 1}}
	if err := top.write(g.file); err != nil {
		panic(err)
	}
	g.base = g.file.content()
	g.begin(want)
	return g
}

// begin takes the base for what is durable, and want for what it shows.
func (g *crashRig) begin(want []byte) {
	g.file.data = bytes.Clone(g.base)
	g.history = make([][]version, len(want)/512)
	for s := range g.history {
		g.history[s] = []version{{data: want[s*512:][:512], begun: -1, ended: -1}}
	}
}

// open opens the image over its journal.
func (g *crashRig) open() error {
	g.file.closed = false
	tap := &tapFile{File: g.file}
	synced := 0
	tap.before = func(o op) error {
		if o.kind == opSync {
			synced = len(g.journal)
		}
		g.interrupt(o)
		if o.kind == opPunch && g.keepsHoles {
			return errors.ErrUnsupported
		}
		if g.fault != nil {
			return g.fault(o)
		}
		return nil
	}
	tap.after = func(o op) {
		switch o.kind {
		case opRead:
			return
		case opSync:
			o.n = int64(synced)
		}
		o.data = bytes.Clone(o.data)
		g.journal = g.mutant.record(g.journal, o)
		g.interrupt(o)
	}
	d, err := openOver(tap, g.parents, false)
	if err != nil {
		return err
	}
	if g.mutant != nil && g.mutant.steps != nil {
		d.w.steps = g.mutant.steps()
	}
	g.d = d
	return nil
}

// openOver opens the chain of a leaf and its parents, as Open does.
func openOver(leaf File, parents []*memFile, readOnly bool) (*Disk, error) {
	files := []File{leaf}
	for _, f := range parents {
		f.closed = false
		files = append(files, f)
	}
	var chain []*image
	for i, f := range files {
		m, err := readImage(fmt.Sprintf("image%d", i), f)
		if err == nil && !readOnly && i == 0 {
			err = m.writable()
		}
		if err != nil {
			return nil, err
		}
		chain = append(chain, m)
	}
	return newDisk(chain, Options{ReadOnly: readOnly, CommitInterval: -1})
}

// interrupt does something else in the middle of an operation at times, as
// another goroutine would.
func (g *crashRig) interrupt(o op) {
	if o.kind == opRead || g.d == nil || g.depth > 1 {
		return
	}
	if g.mutant != nil && g.mutant.during != nil {
		g.mutant.during(g, o)
	}
	odds := 6
	if o.kind == opSync { // it takes longest, and has most to lose
		odds = 2
	}
	if g.r.IntN(odds) != 0 || !g.d.w.mu.TryLock() {
		return
	}
	g.d.w.mu.Unlock()
	if !g.d.mu.TryRLock() { // it is being closed
		return
	}
	g.d.mu.RUnlock()
	g.step()
}

// step does one thing at random.
func (g *crashRig) step() {
	g.depth++
	defer func() { g.depth-- }()
	sectors := int64(len(g.history))
	n := sectors
	if most := g.lengths[g.r.IntN(len(g.lengths))]; most > 0 {
		n = 1 + g.r.Int64N(min(sectors, most))
	}
	first := g.r.Int64N(sectors - n + 1)
	p := make([]byte, n*512)
	switch k := g.r.IntN(12); {
	case k < 5:
		p = noise(g.r, n)
		fallthrough
	case k < 6:
		g.change(first, p, false, func() error { _, err := g.d.WriteAt(p, first*512); return err })
	case k < 7:
		g.change(first, p, false, func() error { return g.d.WriteZeroes(first*512, n*512, g.r.IntN(2) == 0) })
	case k < 8:
		g.change(first, p, true, func() error { return g.d.Discard(first*512, n*512) })
	default:
		g.flush(g.d.Flush)
	}
}

// change notes that sectors get new values while call runs.
func (g *crashRig) change(first int64, p []byte, discard bool, call func() error) {
	g.clock++
	v := version{begun: g.clock, ended: never, at: len(g.journal), maybe: discard}
	var index []int
	for i := range len(p) / 512 {
		v.data = p[i*512:][:512]
		h := &g.history[first+int64(i)]
		index = append(index, len(*h))
		*h = append(*h, v)
	}
	err := call()
	if err != nil {
		g.onError(err)
	}
	g.clock++
	for i, k := range index {
		v := &g.history[first+int64(i)][k]
		v.ended = g.clock
		v.maybe = discard || err != nil
	}
}

func (g *crashRig) flush(call func() error) {
	if !g.d.w.group.mu.TryLock() {
		return
	}
	running := g.d.w.group.running
	g.d.w.group.mu.Unlock()
	if running { // it would wait for itself
		return
	}
	g.clock++
	begun := g.clock
	if err := call(); err != nil {
		g.onError(err)
		return
	}
	g.flushes = append(g.flushes, flushCall{begun, len(g.journal)})
}

// run does the workload: at times it closes the image and opens it again.
func (g *crashRig) run() error {
	for range 1 + g.r.IntN(2) {
		if err := g.open(); err != nil {
			return err
		}
		for range 2 + g.r.IntN(8) {
			g.step()
		}
		if g.r.IntN(3) == 0 {
			return nil
		}
		g.flush(g.d.Close)
		g.d = nil
	}
	return nil
}

// survives runs a workload and crashes it everywhere.
func (g *crashRig) survives(samples int) error {
	if err := g.run(); err != nil {
		return err
	}
	for n := range len(g.journal) + 1 {
		killed := g.crashed(n, func(op) fate { return whole })
		if faults := audit(killed.content()); len(faults) != 0 {
			return fmt.Errorf("killed after %d operations: %q", n, faults)
		}
		if err := g.judge(killed, n); err != nil {
			return fmt.Errorf("killed after %d operations: %w", n, err)
		}
		for range samples {
			left := g.crashed(n, g.fates())
			if !g.growing(n) && !endsWithFooter(left.data) {
				return fmt.Errorf("power lost after %d operations: no footer at the end", n)
			}
			if err := g.judge(left, n); err != nil {
				return fmt.Errorf("power lost after %d operations: %w", n, err)
			}
		}
	}
	return nil
}

// TestCrash crashes random workloads after each of their operations, by a kill
// (all operations are there) and by loss of power (those that no sync covers
// are there, or in part, or not).
func TestCrash(t *testing.T) {
	base := rand.Uint64()
	for i := range uint64(100) {
		seed := base + i
		if err := newCrashRig(rand.New(rand.NewPCG(seed, 0)), nil).survives(4); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestCrashWithBatmap does the same to images whose batmap must never call a
// block complete that a crash has left in part.
func TestCrashWithBatmap(t *testing.T) {
	base := rand.Uint64()
	for i := range uint64(3) {
		seed := base + i
		if err := newBatmapRig(rand.New(rand.NewPCG(seed, 0)), nil).survives(2); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
