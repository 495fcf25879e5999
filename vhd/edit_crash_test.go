package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// shelf is a directory in memory, whose files are images.
type shelf struct {
	files map[string]*memFile
	// tap, if not nil, sees what is done to the files.
	tap func(path string, o op) error
}

func newShelf(files map[string][]byte) *shelf {
	s := &shelf{files: map[string]*memFile{}}
	for i, path := range slices.Sorted(maps.Keys(files)) {
		s.files[path] = &memFile{data: bytes.Clone(files[path]), identity: Identity{Inode: uint64(i + 1)}, closed: true}
	}
	return s
}

func (s *shelf) open(path string, write bool) (File, error) {
	f, ok := s.files[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	f.mu.Lock()
	f.closed = false
	f.mu.Unlock()
	tapped := &tapFile{File: f}
	if s.tap != nil {
		tapped.before = func(o op) error { return s.tap(path, o) }
	}
	return tapped, nil
}

func (s *shelf) options() Options { return Options{OpenFile: s.open, CommitInterval: -1} }

func (s *shelf) contents() map[string][]byte {
	all := map[string][]byte{}
	for path, f := range s.files {
		all[path] = f.content()
	}
	return all
}

// luck decides what is left of operations that were not synced.
type luck struct {
	*rand.Rand
	// atomicBytes are written all or not at all.
	atomicBytes int64
}

// shelfOp is a change of a file of a shelf.
type shelfOp struct {
	path string
	op
}

// record runs a tool on a shelf, and returns all that it did to the files.
func record(t *testing.T, files map[string][]byte, tool func(*shelf) error) (ops []shelfOp, after map[string][]byte) {
	t.Helper()
	s := newShelf(files)
	s.tap = func(path string, o op) error {
		if o.kind != opRead {
			o.data = bytes.Clone(o.data)
			ops = append(ops, shelfOp{path, o})
		}
		return nil
	}
	if err := tool(s); err != nil {
		t.Fatal(err)
	}
	return ops, s.contents()
}

// crash is what a power failure leaves of files after some operations: what
// was synced, and any pieces of the rest. Without luck, that is all of it: a
// process that was killed.
func crash(files map[string][]byte, ops []shelfOp, luck *luck) map[string][]byte {
	out := map[string][]byte{}
	for path, b := range files {
		f := &memFile{data: bytes.Clone(b)}
		synced := 0
		for i, o := range ops {
			if o.path == path && o.kind == opSync {
				synced = i
			}
		}
		for i, o := range ops {
			if o.path == path {
				apply(f, o.op, luck, luck == nil || i < synced)
			}
		}
		out[path] = f.data
	}
	return out
}

func apply(f *memFile, o op, luck *luck, sure bool) {
	switch o.kind {
	case opTruncate:
		if sure || luck.IntN(2) == 0 {
			f.resize(o.off)
		}
	case opPunch:
		if sure || luck.IntN(2) == 0 {
			_ = f.PunchHole(o.off, o.n)
		}
	case opWrite:
		all := sure || luck.IntN(3) == 0
		none := !all && luck.IntN(2) == 0
		for at := o.off; at < o.off+o.n && !none; {
			n := o.off + o.n - at
			if !all {
				n = min(n, luck.atomicBytes-at%luck.atomicBytes)
			}
			if all || luck.IntN(2) == 0 {
				_, _ = f.WriteAt(o.data[at-o.off:][:n], at)
			}
			at += n
		}
	}
}

// leftover is what a crash left of files.
type leftover struct {
	files map[string][]byte
	// killed says that the process ended and not the machine; done, that the
	// tool had returned.
	killed, done bool
}

// crashes calls check with what crashes leave after each operation: of the
// process first, and of the machine then, with some luck.
func crashes(r *luck, files map[string][]byte, ops []shelfOp, lucky int, check func(leftover) error) error {
	for k := range len(ops) + 1 {
		done := k == len(ops)
		if err := check(leftover{crash(files, ops[:k], nil), true, done}); err != nil {
			return fmt.Errorf("killed after %d of %d operations: %w", k, len(ops), err)
		}
		for range lucky {
			if err := check(leftover{crash(files, ops[:k], r), false, done}); err != nil {
				return fmt.Errorf("power failed after %d of %d operations: %w", k, len(ops), err)
			}
		}
	}
	return nil
}

// stops ends a tool's context at each of its operations.
func stops(t *testing.T, before map[string][]byte, tool func(context.Context, *shelf) error, check func(map[string][]byte) error) {
	t.Helper()
	for stopAt := 1; ; stopAt++ {
		ctx, cancel := context.WithCancel(context.Background())
		s := newShelf(before)
		ops := 0
		s.tap = func(string, op) error {
			if ops++; ops == stopAt {
				cancel()
			}
			return nil
		}
		err := tool(ctx, s)
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped at operation %d: %v", stopAt, err)
		}
		if err := check(s.contents()); err != nil {
			t.Fatalf("stopped at operation %d: %v", stopAt, err)
		}
		if ops < stopAt {
			return // it ended before
		}
	}
}

// specImage reads an image by the offsets of the specification.
type specImage struct {
	b        []byte
	size     int64
	kind     uint32
	block    int64
	table    int64
	entries  int64
	uuid     UUID
	parent   UUID
	bitmap   int64
	locators []string // platform code and text
	metaEnd  int64
}

// readSpec believes the footer at an offset.
func readSpec(b []byte, footerAt int64) (*specImage, error) {
	be := binary.BigEndian
	if footerAt < 0 || footerAt+512 > int64(len(b)) {
		return nil, errors.New("no room for a footer")
	}
	f := b[footerAt:][:512]
	if string(f[:8]) != "conectix" || !sumIsRight(f, 64) {
		return nil, fmt.Errorf("no footer at %d", footerAt)
	}
	m := &specImage{b: b, size: int64(be.Uint64(f[48:])), kind: be.Uint32(f[60:]), uuid: UUID(f[68:84])}
	if m.kind == 2 {
		return m, nil
	}
	at := int64(be.Uint64(f[16:]))
	if at+1024 > int64(len(b)) {
		return nil, fmt.Errorf("header at %d is not in the file", at)
	}
	h := b[at:][:1024]
	if string(h[:8]) != "cxsparse" || !sumIsRight(h, 36) {
		return nil, fmt.Errorf("no header at %d", at)
	}
	m.table, m.block, m.parent = int64(be.Uint64(h[16:])), int64(be.Uint32(h[32:])), UUID(h[40:56])
	m.bitmap = max(512, m.block/512/8)
	for i := range 8 {
		e := h[576+24*i:][:24]
		off, n := int64(be.Uint64(e[16:])), int64(be.Uint32(e[8:]))
		if e[0] != 0 && off+n <= int64(len(b)) {
			m.locators = append(m.locators, string(e[:4])+string(b[off:off+n]))
			m.metaEnd = max(m.metaEnd, off+int64(be.Uint32(e[4:])))
		}
	}
	m.entries = int64(be.Uint32(h[28:]))
	m.metaEnd = max(m.metaEnd, at+1024, m.table+4*m.entries)
	need := (m.size + m.block - 1) / m.block
	if need > m.entries || m.table+4*need > int64(len(b)) {
		return nil, fmt.Errorf("BAT at %d has no room for %d entries", m.table, need)
	}
	for i := range need {
		if m.has(i) && m.entry(i)*512+m.bitmap+m.block > int64(len(b)) {
			return nil, fmt.Errorf("block %d ends behind the file", i)
		}
	}
	return m, nil
}

// entry is the BAT's, 0xFFFFFFFF for a block that is not allocated.
func (m *specImage) entry(block int64) int64 {
	return int64(binary.BigEndian.Uint32(m.b[m.table+4*block:]))
}

func (m *specImage) has(block int64) bool { return m.entry(block) != 0xFFFFFFFF }

// firstBlock is where the first block lies, or the end of the file.
func (m *specImage) firstBlock() int64 {
	first := int64(len(m.b))
	for i := range (m.size + m.block - 1) / m.block {
		if m.has(i) {
			first = min(first, m.entry(i)*512)
		}
	}
	return first
}

// bitmapOf is the bitmap of an allocated block, in place.
func (m *specImage) bitmapOf(block int64) []byte { return m.b[m.entry(block)*512:][:m.bitmap] }

// sector returns a sector, or nil when the image does not have it.
func (m *specImage) sector(s int64) []byte {
	if s*512 >= m.size {
		return nil
	}
	if m.kind == 2 {
		return m.b[s*512:][:512]
	}
	block, i := s*512/m.block, s%(m.block/512)
	if !m.has(block) || m.bitmapOf(block)[i/8]&(0x80>>(i%8)) == 0 {
		return nil
	}
	return m.b[m.entry(block)*512+m.bitmap+i*512:][:512]
}

// specDisk is what a chain shows, the leaf first.
func specDisk(chain ...*specImage) []byte {
	if chain[0] == nil {
		return nil
	}
	out := make([]byte, chain[0].size)
	for s := range chain[0].size / 512 {
		for _, m := range chain {
			if s*512 >= m.size {
				break // zeros, whatever is below
			}
			if b := m.sector(s); b != nil {
				copy(out[s*512:], b)
				break
			}
		}
	}
	return out
}

// readLast believes the footer at the end, or the mirror when there is none.
func readLast(b []byte) (*specImage, error) {
	if m, err := readSpec(b, int64(len(b))-512); err == nil {
		return m, nil
	}
	if len(b) > 512 && string(b[:8]) == "conectix" && binary.BigEndian.Uint32(b[60:]) != 2 {
		return readSpec(b, 0)
	}
	return nil, errors.New("no footer")
}
