package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
)

// allowed returns what a sector may contain after a crash that let n
// operations be issued: what a flush had promised, and whatever was written
// later or at the same time.
func (g *crashRig) allowed(sector, n int) (values [][]byte) {
	promised := -1
	for _, f := range g.flushes {
		if f.at <= n {
			promised = max(promised, f.begun)
		}
	}
	for _, v := range g.history[sector] {
		replaced := slices.ContainsFunc(g.history[sector], func(u version) bool {
			return !u.maybe && u.begun > v.ended && u.ended < promised
		})
		if v.at <= n && !replaced {
			values = append(values, v.data)
		}
	}
	return values
}

// durable is how many of n operations a completed sync covers.
func (g *crashRig) durable(n int) (ops int64) {
	for _, o := range g.journal[:n] {
		if o.kind == opSync {
			ops = max(ops, o.n)
		}
	}
	return ops
}

// growing says that the file was being made longer. A loss of power may then
// leave it without its footer: the length and the bytes at it are two things.
func (g *crashRig) growing(n int) bool {
	size, durable := int64(len(g.base)), g.durable(n)
	for i, o := range g.journal[:n] {
		switch {
		case o.kind == opTruncate:
			size = o.off
		case o.kind == opWrite && o.off+o.n > size:
			size = o.off + o.n
			if int64(i) >= durable {
				return true
			}
		}
	}
	return false
}

// crashed builds the file that a crash leaves after n operations. What the last
// completed sync covers is there; keep chooses for what came later.
func (g *crashRig) crashed(n int, keep func(op) fate) *memFile {
	durable := g.durable(n)
	f := &memFile{data: bytes.Clone(g.base), identity: g.file.identity}
	for i, o := range g.journal[:n] {
		how := whole
		if int64(i) >= durable {
			how = keep(o)
		}
		how.apply(f, o, g.r)
	}
	return f
}

// fate is what becomes of an operation that no sync covers.
type fate int

const (
	lost fate = iota
	whole
	torn       // some of its sectors
	lengthOnly // the file has grown, and the bytes are not there
)

func (how fate) apply(f *memFile, o op, r *rand.Rand) {
	if how == lost || o.kind == opSync {
		return
	}
	var err error
	switch o.kind {
	case opTruncate:
		err = f.Truncate(o.off)
	case opPunch:
		if how == whole || how == torn && r.IntN(2) == 0 {
			err = f.PunchHole(o.off, o.n)
		}
	case opWrite:
		if end := o.off + o.n; int64(len(f.data)) < end {
			f.resize(end)
		}
		for i := int64(0); i < o.n; i += 512 {
			if how == whole || how == torn && r.IntN(2) == 0 {
				_, err = f.WriteAt(o.data[i:min(i+512, o.n)], o.off+i)
			}
		}
	}
	if err != nil {
		panic(err)
	}
}

// fates are ways in which a crash chooses.
func (g *crashRig) fates() func(op) fate {
	any := func() fate { return fate(g.r.IntN(4)) }
	most := []fate{lost, whole}[g.r.IntN(2)]
	odds := 1 + g.r.IntN(6)
	return func(op) fate {
		if g.r.IntN(odds) == 0 {
			return any()
		}
		return most
	}
}

var errForbidden = errors.New("sector has a value that it must not have")

// judge opens what a crash left and says what is wrong with it.
func (g *crashRig) judge(f *memFile, n int) error {
	d, err := openOver(f, g.parents, true)
	if err != nil {
		return fmt.Errorf("open for reading: %w", err)
	}
	before, err := readAll(d)
	if err != nil {
		return err
	}
	for s := range g.history {
		got := before[s*512:][:512]
		if !slices.ContainsFunc(g.allowed(s, n), func(v []byte) bool { return bytes.Equal(v, got) }) {
			return fmt.Errorf("sector %d: %w: %x", s, errForbidden, got[:16])
		}
	}
	return g.judgeWriting(f, before)
}

// judgeWriting goes on with an image after a crash: new blocks must not show
// what was left behind.
func (g *crashRig) judgeWriting(f *memFile, want []byte) error {
	d, err := openOver(f, g.parents, false)
	if err != nil {
		return fmt.Errorf("open for writing: %w", err)
	}
	for range 3 {
		p, first := noise(g.r, 1), g.r.IntN(len(g.history))
		if _, err := d.WriteAt(p, int64(first)*512); err != nil {
			return err
		}
		copy(want[first*512:], p)
	}
	for range 2 {
		got, err := readAll(d)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("recovery or the next write has changed other sectors")
		}
		if err := d.Close(); err != nil {
			return err
		}
		f.closed = false
		if err := checkImage(f); err != nil {
			return fmt.Errorf("after recovery: %w", err)
		}
		if d, err = openOver(f, g.parents, true); err != nil {
			return err
		}
	}
	return nil
}

// checkImage holds an image that was closed against the audit and our check.
func checkImage(f *memFile) error {
	if faults := audit(f.content()); len(faults) != 0 {
		return fmt.Errorf("audit: %q", faults)
	}
	m, err := readImage("image", f)
	if err != nil {
		return err
	}
	c := checker{ctx: context.Background()}
	if _, err := c.check(m); err != nil {
		return err
	}
	for _, p := range m.problems {
		if p.Severity >= Damage {
			return fmt.Errorf("check: %+v", p)
		}
	}
	return nil
}

func readAll(d *Disk) ([]byte, error) {
	b := make([]byte, d.SizeBytes())
	_, err := d.ReadAt(b, 0)
	return b, err
}
