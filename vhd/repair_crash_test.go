package vhd

import (
	"encoding/binary"
	"slices"
	"testing"
)

// recordOps opens an image in memory, and records what changes it.
func recordOps(image []byte) (f *memFile, o Options, ops *[]op) {
	f, ops = &memFile{data: slices.Clone(image), identity: Identity{Inode: 1}}, new([]op)
	tap := &tapFile{File: f, after: func(o op) {
		if o.kind != opRead {
			o.data = slices.Clone(o.data)
			*ops = append(*ops, o)
		}
	}}
	o.OpenFile = func(string, bool) (File, error) {
		f.closed = false
		return tap, nil
	}
	return f, o, ops
}

// replay does an operation again: of a write those sectors that pick wants, or
// all.
func replay(f *memFile, o op, pick func(sector int) bool) {
	switch o.kind {
	case opTruncate:
		f.resize(o.off)
	case opWrite:
		for i := 0; i < len(o.data); i += 512 {
			if pick == nil || pick(i/512) {
				f.WriteAt(o.data[i:min(len(o.data), i+512)], o.off+int64(i))
			}
		}
	}
}

// everyCrash calls look with each state that a crash can leave: what was synced
// is there, and of what follows each subset, with its writes whole or torn in
// two ways.
func everyCrash(image []byte, ops []op, look func(image []byte, synced, subset int)) {
	durable := &memFile{data: slices.Clone(image)}
	var pending []op
	for n := 0; n <= len(ops); n++ {
		if n < len(ops) && ops[n].kind != opSync {
			pending = append(pending, ops[n])
			continue
		}
		for subset := range 1 << len(pending) {
			for _, pick := range []func(int) bool{nil,
				func(s int) bool { return s%2 == 0 }, func(s int) bool { return s%2 == 1 }} {
				f := &memFile{data: slices.Clone(durable.data)}
				for i, o := range pending {
					if subset&(1<<i) != 0 {
						replay(f, o, pick)
					}
				}
				look(f.data, n, subset)
			}
		}
		for _, o := range pending {
			replay(durable, o, nil)
		}
		pending = pending[:0]
	}
}

// handRead returns what a dynamic or fixed image shows, by the specification's
// offsets alone. Sectors that the file is too short for are 0xEE. An entry that
// points past the end or before the BAT's end counts for none, as this package
// has it.
func handRead(t testing.TB, b []byte) []byte {
	t.Helper()
	be := binary.BigEndian
	end := len(b)
	footer := b[:512]
	for _, n := range []int{512, 511} {
		if f := b[len(b)-n:]; string(f[:8]) == "conectix" && (n == 512 || len(b)%512 == 511) {
			f = append(slices.Clone(f), 0)[:512]
			if onesSumBut(f, 64) == be.Uint32(f[64:]) {
				footer, end = f, len(b)-n
				break
			}
		}
	}
	size := int(be.Uint64(footer[48:])) / 512 * 512
	if be.Uint32(footer[60:]) == 2 {
		return b[:size]
	}
	disk := make([]byte, size)
	head := b[be.Uint64(footer[16:]):]
	table, block := int(be.Uint64(head[16:])), int(be.Uint32(head[32:]))
	bitmap := (max(1, block/4096) + 511) / 512 * 512
	metaEnd := table + (int(be.Uint32(head[28:]))*4+511)/512*512
	for at := 0; at < size; at += 512 {
		e := int(be.Uint32(b[table+4*(at/block):])) * 512
		if e == 0xFFFFFFFF*512 || e < metaEnd || e+bitmap > end {
			continue
		}
		s := at % block / 512
		if b[e+s/8]&(0x80>>(s%8)) == 0 {
			continue
		}
		sector := disk[at : at+512]
		if from := e + bitmap + s*512; from+512 <= len(b) {
			copy(sector, b[from:])
		} else {
			for i := range sector {
				sector[i] = 0xEE
			}
		}
	}
	return disk
}
