package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
)

// outage refuses some of the operations of a file.
type outage struct {
	from, to int // which of those that match fail
	matches  func(opKind) bool
	err      error
	seen     int
	hit      bool
}

func anyKind(opKind) bool { return true }

func needsSpace(k opKind) bool { return k == opWrite || k == opPunch }

func isSync(k opKind) bool { return k == opSync }

// fails decides on one operation. A write that fails may have been done in
// part.
func (u *outage) fails(g *crashRig, o op) error {
	if !u.matches(o.kind) {
		return nil
	}
	u.seen++
	if u.seen <= u.from || u.seen > u.to {
		return nil
	}
	u.hit = true
	if part := g.r.Int64N(o.n/512+1) * 512; o.kind == opWrite && part > 0 {
		done := op{kind: opWrite, off: o.off, n: part, data: bytes.Clone(o.data[:part])}
		whole.apply(g.file, done, nil)
		g.journal = append(g.journal, done)
	}
	return u.err
}

// endure runs the workload of a seed with an outage in it, and says what went
// wrong besides. Once the outage is over all must be well again.
func endure(seed uint64, u *outage) error {
	g := newCrashRig(rand.New(rand.NewPCG(seed, 2)), nil)
	var other error
	g.fault = func(o op) error { return u.fails(g, o) }
	g.onError = func(err error) {
		if !errors.Is(err, u.err) && !errors.Is(err, ErrFailed) {
			other = fmt.Errorf("an error of its own: %w", err)
		}
	}
	if err := g.open(); err != nil {
		g.onError(err)
		if err := g.open(); err != nil && u.to == u.from+1 {
			return fmt.Errorf("open again: %w", err)
		}
	}
	if g.d == nil {
		return other
	}
	for range 12 {
		g.step()
	}
	if other != nil {
		return other
	}
	u.matches = func(opKind) bool { return false }
	if u.hit && g.d.w.failure() != nil {
		return g.staysFailed()
	}
	flushed := len(g.flushes)
	if g.flush(g.d.Flush); len(g.flushes) == flushed {
		return errors.New("flush fails when the outage is over")
	}
	if err := g.reads(); err != nil {
		return err
	}
	if g.flush(g.d.Close); len(g.flushes) != flushed+2 {
		return errors.New("close fails when the outage is over")
	}
	return g.judgeClosed()
}

// judgeClosed judges what is in the file after a Close.
func (g *crashRig) judgeClosed() error {
	f := &memFile{data: g.file.content(), identity: g.file.identity}
	if faults := audit(f.data); len(faults) != 0 {
		return fmt.Errorf("after close: %q", faults)
	}
	return g.judge(f, len(g.journal))
}

// reads holds what the open disk shows against what it may.
func (g *crashRig) reads() error {
	b, err := readAll(g.d)
	if err != nil {
		return err
	}
	for s := range g.history {
		got := b[s*512:][:512]
		if !slices.ContainsFunc(g.allowed(s, len(g.journal)), func(v []byte) bool { return bytes.Equal(v, got) }) {
			return fmt.Errorf("sector %d of the open disk: %w: %x", s, errForbidden, got[:16])
		}
	}
	return nil
}

// staysFailed: after a sync has failed nothing is written any more, whatever
// later syncs would say, and reads go on.
func (g *crashRig) staysFailed() error {
	before := len(g.journal)
	for name, call := range map[string]func() error{
		"write":   func() error { _, err := g.d.WriteAt(make([]byte, 512), 0); return err },
		"zeros":   func() error { return g.d.WriteZeroes(0, 512, true) },
		"discard": func() error { return g.d.Discard(0, 512) },
		"flush":   g.d.Flush,
	} {
		if err := call(); !errors.Is(err, ErrFailed) {
			return fmt.Errorf("%s after a failed sync: %v", name, err)
		}
	}
	if err := g.reads(); err != nil {
		return err
	}
	if err := g.d.Close(); !errors.Is(err, ErrFailed) {
		return fmt.Errorf("close after a failed sync: %v", err)
	}
	if len(g.journal) != before {
		return errors.New("the file was changed after a failed sync")
	}
	return g.judgeClosed()
}

// TestFaults lets each operation of random workloads fail: once, as a bad
// sector does, for a while, as a full file system does, or as a sync, which
// is for ever.
func TestFaults(t *testing.T) {
	cases := []struct {
		name    string
		length  int
		matches func(opKind) bool
		err     error
	}{
		{"an error of the device", 1, anyKind, syscall.EIO},
		{"no space for one operation", 1, needsSpace, syscall.ENOSPC},
		{"no space for a while", 7, needsSpace, syscall.ENOSPC},
		{"a failed sync", 1, isSync, syscall.EIO},
	}
	base := rand.Uint64()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for seed := base; seed < base+12; seed++ {
				for i := 0; ; i++ {
					u := &outage{from: i, to: i + c.length, matches: c.matches, err: c.err}
					if err := endure(seed, u); err != nil {
						t.Fatalf("seed %d, operation %d: %v", seed, i, err)
					}
					if !u.hit {
						break
					}
				}
			}
		})
	}
}
