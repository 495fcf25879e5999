package disk

import (
	"errors"
	"sync"
	"sync/atomic"
)

// ram is a disk in memory that says what its test tells it to and counts what
// is asked of it. It is a Disk only; ramSpace can do more.
type ram struct {
	info   Info
	mu     sync.RWMutex
	bytes  []byte
	before func(op string, off, n int64) error // nil, or called before each request

	read, written, zeroed, flushes, busy atomic.Int64

	mostBusy int64 // under mu
}

func newRAM(b []byte) *ram {
	return &ram{bytes: b, info: Info{SizeBytes: int64(len(b)), Path: "ram"}}
}

func (d *ram) begin(op string, off, n int64) error {
	d.mu.Lock()
	d.mostBusy = max(d.mostBusy, d.busy.Add(1))
	d.mu.Unlock()
	if d.before != nil {
		return d.before(op, off, n)
	}
	return nil
}

func (d *ram) Info() Info { return d.info }

func (d *ram) ReadAt(p []byte, off int64) (int, error) {
	defer d.busy.Add(-1)
	if err := d.begin("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := checkRange(int64(len(p)), off, d.info.SizeBytes); err != nil {
		return 0, err
	}
	d.read.Add(int64(len(p)))
	d.mu.RLock()
	defer d.mu.RUnlock()
	return copy(p, d.bytes[off:]), nil
}

func (d *ram) WriteAt(p []byte, off int64) (int, error) {
	defer d.busy.Add(-1)
	if err := d.begin("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := checkRange(int64(len(p)), off, d.info.SizeBytes); err != nil {
		return 0, err
	}
	if d.flushes.Load() > 0 {
		return 0, errors.New("write after the flush")
	}
	d.written.Add(int64(len(p)))
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.bytes[off:], p), nil
}

func (d *ram) Flush() error {
	d.flushes.Add(1)
	if d.before != nil {
		return d.before("flush", 0, 0)
	}
	return nil
}

func (d *ram) Close() error { return nil }

// ramSpace is a ram with holes, which lie where the test says. holes are in
// order and do not touch.
type ramSpace struct {
	*ram
	holes []Extent
}

func (d ramSpace) WriteZeroes(off, n int64, _ bool) error {
	defer d.busy.Add(-1)
	if err := d.begin("zeros", off, n); err != nil {
		return err
	}
	if err := checkRange(n, off, d.info.SizeBytes); err != nil {
		return err
	}
	d.zeroed.Add(n)
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.bytes[off : off+n])
	return nil
}

func (d ramSpace) NextExtent(off int64) (Extent, error) {
	if d.before != nil {
		if err := d.before("map", off, 0); err != nil {
			return Extent{}, err
		}
	}
	for _, h := range d.holes {
		if off < h.Off {
			return Extent{Off: off, Len: h.Off - off, Allocated: true}, nil
		}
		if off < h.Off+h.Len {
			return Extent{Off: off, Len: h.Off + h.Len - off, Zero: true}, nil
		}
	}
	return Extent{Off: off, Len: d.info.SizeBytes - off, Allocated: true}, nil
}

// withHoles makes random holes in b and clears them.
func withHoles(b []byte, r interface{ Int64N(int64) int64 }) ramSpace {
	d := ramSpace{ram: newRAM(b)}
	sectors := d.info.SizeBytes / sectorBytes
	most := max(sectors/4, 1)
	for at := r.Int64N(most); at < sectors; at += 1 + r.Int64N(most) {
		n := min(1+r.Int64N(most), sectors-at)
		clear(b[at*sectorBytes : (at+n)*sectorBytes])
		d.holes = append(d.holes, Extent{Off: at * sectorBytes, Len: n * sectorBytes, Zero: true})
		at += n
	}
	return d
}
