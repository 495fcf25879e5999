package vhd

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"sync"
)

// memFile is a regular file in memory, or a device.
type memFile struct {
	mu       sync.RWMutex
	data     []byte
	identity Identity
	closed   bool
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	if end := off + int64(len(p)); end > int64(len(f.data)) {
		if f.identity.Block {
			return 0, fmt.Errorf("write past the end of the device at %d", len(f.data))
		}
		f.resize(end)
	}
	return copy(f.data[off:], p), nil
}

func (f *memFile) resize(n int64) {
	if n <= int64(len(f.data)) {
		f.data = f.data[:n]
		return
	}
	f.data = append(f.data, make([]byte, n-int64(len(f.data)))...)
}

func (f *memFile) Size() (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return int64(len(f.data)), nil
}

func (f *memFile) Truncate(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.identity.Block {
		return fmt.Errorf("truncate a device")
	}
	f.resize(n)
	return nil
}

func (f *memFile) Sync() error { return nil }

func (f *memFile) PunchHole(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if end := min(off+n, int64(len(f.data))); off < end {
		clear(f.data[off:end])
	}
	return nil
}

// NextData takes pages of zeros for holes, as if all of them had been punched,
// for as far as anyone may want to know.
func (f *memFile) NextData(off int64) (start, end int64, err error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	size := int64(len(f.data))
	far := min(size, off+64<<10)
	page := func(at int64) []byte {
		return f.data[at:min(size, at/punchAlign*punchAlign+punchAlign)]
	}
	for start = off; start < far && isZero(page(start)); {
		start += int64(len(page(start)))
	}
	for end = start; end < far && !isZero(page(end)); {
		end += int64(len(page(end)))
	}
	return start, end, nil
}

func (f *memFile) Identity() Identity { return f.identity }

func (f *memFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

// content is a copy of all bytes.
func (f *memFile) content() []byte {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return bytes.Clone(f.data)
}

// op is one call of a File that changes it, or may fail.
type op struct {
	kind opKind
	off  int64 // for truncate: the length
	n    int64
	data []byte // for write
}

type opKind string

const (
	opRead     opKind = "read"
	opWrite    opKind = "write"
	opPunch    opKind = "punch"
	opTruncate opKind = "truncate"
	opSync     opKind = "sync"
)

// tapFile shows the calls of a File to a test.
type tapFile struct {
	File
	// before may refuse a call; after learns that it has been done. Either may
	// be nil.
	before func(op) error
	after  func(op)
}

func (f *tapFile) do(o op, call func() error) error {
	if f.before != nil {
		if err := f.before(o); err != nil {
			return err
		}
	}
	if err := call(); err != nil {
		return err
	}
	if f.after != nil {
		f.after(o)
	}
	return nil
}

func (f *tapFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.do(op{opRead, off, int64(len(p)), nil}, func() (err error) {
		n, err = f.File.ReadAt(p, off)
		return err
	})
	return n, err
}

func (f *tapFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.do(op{opWrite, off, int64(len(p)), p}, func() (err error) {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *tapFile) PunchHole(off, n int64) error {
	return f.do(op{opPunch, off, n, nil}, func() error { return f.File.PunchHole(off, n) })
}

func (f *tapFile) Truncate(n int64) error {
	return f.do(op{opTruncate, n, 0, nil}, func() error { return f.File.Truncate(n) })
}

func (f *tapFile) Sync() error {
	return f.do(op{opSync, 0, 0, nil}, f.File.Sync)
}

// goroutines are what a test starts and waits for.
type goroutines struct{ sync.WaitGroup }

func (g *goroutines) Go(f func()) {
	g.Add(1)
	go func() {
		defer g.Done()
		f()
	}()
}
