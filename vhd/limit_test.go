package vhd

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestAllocationEndsWhereTheBATDoes: an entry is a sector number of 32 bits,
// and 0xFFFFFFFF of them means something else. The last blocks that fit are
// handed out; then the disk is full, and everything else goes on.
func TestAllocationEndsWhereTheBATDoes(t *testing.T) {
	const stride = 2<<20 + 4096
	f := &foreign{layout: layouts()[0], sizeBytes: 64 << 20, blockBytes: 2 << 20, diskType: 3}
	b := f.bytes()
	// Block 0 lies so that two more fit.
	end := int64(0xFFFFFFFF)*512/4096*4096 - 2*stride
	at := end - 2<<20 - 512
	binary.BigEndian.PutUint32(b[1536:], uint32(at/512))
	ones := []byte(strings.Repeat("\xFF", 512))
	file := newThinFile(end+512, map[int64][]byte{0: b[:2048], at: ones, end: f.footerSector(512)})
	d, err := openOver(file, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	p := noise(rand.New(rand.NewPCG(1, 1)), 1)
	for block := range int64(4) {
		_, err := d.WriteAt(p, block<<21)
		if full := block == 3; errors.Is(err, syscall.ENOSPC) != full || err != nil != full {
			t.Errorf("write to block %d: %v", block, err)
		}
	}
	if err := d.Flush(); err != nil {
		t.Error(err)
	}
	got := make([]byte, 512)
	for block := range int64(3) {
		if _, err := d.ReadAt(got, block<<21); err != nil || string(got) != string(p) {
			t.Errorf("read of block %d: %x, %v", block, got[:8], err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := readImage("limit", file)
	if err != nil || m.writable() != nil {
		t.Errorf("read again: %v, %v", err, m.problems)
	}
}

// TestRequestsThatLie: what is not whole sectors of the disk is refused and
// does nothing, whatever the sum of offset and length wraps to.
func TestRequestsThatLie(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhd")
	const size = 4 << 20
	if err := Create(path, CreateOptions{SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, Options{CommitInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const most = 1<<63 - 1
	for _, c := range []struct {
		name   string
		off, n int64
	}{
		{"negative offset", -512, 512},
		{"odd offset", 100, 512},
		{"odd length", 0, 100},
		{"begins at the end", size, 512},
		{"ends past the end", size - 512, 1024},
		{"wraps", most &^ 511, 1024},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := make([]byte, c.n)
			_, readErr := d.ReadAt(p, c.off)
			_, writeErr := d.WriteAt(p, c.off)
			errs := []error{readErr, writeErr, d.Discard(c.off, c.n), d.WriteZeroes(c.off, c.n, true)}
			if c.n == 512 {
				_, err := d.NextExtent(c.off)
				errs = append(errs, err)
			}
			for i, err := range errs {
				if !errors.Is(err, ErrRange) {
					t.Errorf("call %d: %v", i, err)
				}
			}
		})
	}
	if err := errors.Join(d.Discard(0, -512), d.WriteZeroes(0, -512, false)); !errors.Is(err, ErrRange) {
		t.Errorf("negative length: %v", err)
	}
	if n, err := d.ReadAt(nil, size); n != 0 || err != nil {
		t.Errorf("nothing at the end: %d, %v", n, err)
	}
}

// TestDeviceIsFull: a device is as long as it is. Its last block that fits does
// not touch the footer; the next one is refused, and nothing else is.
func TestDeviceIsFull(t *testing.T) {
	f := &foreign{layout: layouts()[0], sizeBytes: 1 << 20, blockBytes: 4096, diskType: 3}
	r := rand.New(rand.NewPCG(1, 1))
	file := &memFile{data: asDevice(r, f.bytes(), 3*8192), identity: Identity{Block: true}}
	before := file.content()
	d, err := openOver(file, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	p := noise(r, 8)
	blocks := int64(0)
	for ; err == nil; blocks++ {
		_, err = d.WriteAt(p, blocks*4096)
	}
	if !errors.Is(err, syscall.ENOSPC) || blocks < 3 {
		t.Errorf("write to block %d: %v", blocks, err)
	}
	if _, err := d.WriteAt(p, 0); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	after := file.content()
	if len(after) != len(before) || string(after[len(after)-512:]) != string(before[len(before)-512:]) {
		t.Error("the footer has changed")
	}
	file.closed = false
	if err := checkImage(file); err != nil {
		t.Error(err)
	}
}

// TestZerosTakeNoSpace: zeros are not written where nothing hides below them.
func TestZerosTakeNoSpace(t *testing.T) {
	dir := t.TempDir()
	base, leaf := filepath.Join(dir, "base.vhd"), filepath.Join(dir, "leaf.vhd")
	const block = 2 << 20
	if err := Create(base, CreateOptions{SizeBytes: 4 * block}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(base, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	zero, data := make([]byte, 8192), noise(rand.New(rand.NewPCG(1, 1)), 16)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	layerAt := func(off int64) int {
		e, err := d.NextExtent(off)
		must(err)
		return e.Layer
	}
	_, err = d.WriteAt(zero, 0)
	must(err)
	must(d.WriteZeroes(0, 2*block, false))
	_, err = d.WriteAt(data, 3*block)
	must(err)
	for i, want := range []int{-1, -1, -1, 0} {
		if got := layerAt(int64(i) * block); got != want {
			t.Errorf("block %d is held by %d, want %d", i, got, want)
		}
	}
	must(d.Snapshot(leaf))
	for i := range int64(4) {
		_, err = d.WriteAt(zero, i*block)
		must(err)
		must(d.WriteZeroes(i*block+8192, 4096, true))
	}
	for i, want := range []int{-1, -1, -1, 0} {
		if got := layerAt(int64(i) * block); got != want {
			t.Errorf("over the parent, block %d is held by %d, want %d", i, got, want)
		}
	}
	got := make([]byte, len(zero))
	if _, err := d.ReadAt(got, 3*block); err != nil || !isZero(got) {
		t.Errorf("zeros over data read as %x, %v", got[:8], err)
	}
}

// TestLargestBlocks: blocks of 256 MiB have bitmaps of 64 KiB, and sectors of
// their own all the same.
func TestLargestBlocks(t *testing.T) {
	dir := t.TempDir()
	base, leaf := filepath.Join(dir, "base.vhd"), filepath.Join(dir, "leaf.vhd")
	const block = 256 << 20
	if err := Create(base, CreateOptions{SizeBytes: 3 * block, BlockBytes: block}); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	wrote := map[int64][]byte{}
	for _, path := range []string{base, leaf} {
		d, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			off, p := r.Int64N(3*block/512-16)*512, noise(r, 16)
			wrote[off] = p
			if _, err := d.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		if path == base {
			err = d.Snapshot(leaf)
		}
		if err := errors.Join(err, d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(leaf, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for off, want := range wrote {
		got := make([]byte, len(want))
		if _, err := d.ReadAt(got, off); err != nil || string(got) != string(want) {
			t.Errorf("at %d: %v", off, err)
		}
	}
}

// TestReadOnly: a disk opened for reading refuses all changes, and does not
// touch its file.
func TestReadOnly(t *testing.T) {
	var changed []opKind
	file := &tapFile{after: func(o op) {
		if o.kind != opRead {
			changed = append(changed, o.kind)
		}
	}, File: &memFile{data: (&foreign{
		layout: layouts()[1], sizeBytes: 1 << 20, blockBytes: 4096, diskType: 3, held: map[int64][]byte{3: make([]byte, 512)},
	}).bytes()}}
	d, err := openOver(file, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.WriteAt(make([]byte, 512), 0)
	for i, err := range []error{err, d.Discard(0, 512), d.WriteZeroes(0, 512, true), d.Snapshot("child.vhd")} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if err := errors.Join(d.Flush(), d.Close()); err != nil {
		t.Error(err)
	}
	if len(changed) != 0 {
		t.Errorf("the file has seen %q", changed)
	}
}

// TestRequestsAllocateNothing: garbage is collected while a guest waits.
func TestRequestsAllocateNothing(t *testing.T) {
	dir := t.TempDir()
	base, leaf := filepath.Join(dir, "base.vhd"), filepath.Join(dir, "leaf.vhd")
	if err := Create(base, CreateOptions{SizeBytes: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	p := noise(rand.New(rand.NewPCG(1, 1)), 8)
	d, err := Open(base, Options{CommitInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt(p, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Snapshot(leaf); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"read of a partial block":      func() error { _, err := d.ReadAt(p, 0); return err },
		"read of the parent":           func() error { _, err := d.ReadAt(p, 4<<20); return err },
		"read of nothing":              func() error { _, err := d.ReadAt(p, 8<<20); return err },
		"overwrite in a partial block": func() error { _, err := d.WriteAt(p, 0); return err },
		"discard":                      func() error { return d.Discard(0, 4096) },
		"zeros":                        func() error { return d.WriteZeroes(0, 4096, true) },
	} {
		if n := testing.AllocsPerRun(100, func() {
			if err := call(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
