package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"sync/atomic"
	"testing"
	"time"
)

// owner writes the sectors whose number is its own, modulo the number of
// owners, so that neighbours in a byte of a bitmap belong to different ones.
type owner struct {
	t       *testing.T
	d       *Disk
	r       *rand.Rand
	number  int64
	owners  int64
	sectors int64
	wrote   map[int64]uint64 // a sector's value; 0 is zeros
	loose   map[int64]bool   // discarded
}

func (o *owner) sector() int64 {
	return (o.r.Int64N(o.sectors-o.owners)/o.owners)*o.owners + o.number
}

func stampSector(p []byte, s int64, value uint64) {
	clear(p)
	if value != 0 {
		for i := 0; i < len(p); i += 16 {
			binary.LittleEndian.PutUint64(p[i:], uint64(s))
			binary.LittleEndian.PutUint64(p[i+8:], value)
		}
	}
}

func (o *owner) work(steps int) {
	p, want := make([]byte, 512), make([]byte, 512)
	for range steps {
		s := o.sector()
		var err error
		switch k := o.r.IntN(10); {
		case k < 4:
			value := o.r.Uint64() | 1
			stampSector(p, s, value)
			_, err = o.d.WriteAt(p, s*512)
			o.wrote[s] = value
			delete(o.loose, s)
		case k < 5:
			err = o.d.WriteZeroes(s*512, 512, k%2 == 0)
			o.wrote[s] = 0
			delete(o.loose, s)
		case k < 6:
			err = o.d.Discard(s*512, 512)
			o.loose[s] = true
		case k < 7:
			err = o.d.Flush()
		default:
			if value, ok := o.wrote[s]; ok {
				stampSector(want, s, value)
				_, err = o.d.ReadAt(p, s*512)
				if err == nil && !bytes.Equal(p, want) && !(o.loose[s] && isZero(p)) {
					err = fmt.Errorf("sector %d has %x, want %x", s, p[:16], want[:16])
				}
			}
		}
		if err != nil {
			o.t.Error(err)
			return
		}
	}
}

func (o *owner) verify(d *Disk) {
	p, want := make([]byte, 512), make([]byte, 512)
	for s, value := range o.wrote {
		stampSector(want, s, value)
		if _, err := d.ReadAt(p, s*512); err != nil {
			o.t.Fatal(err)
		}
		if !bytes.Equal(p, want) && !(o.loose[s] && isZero(p)) {
			o.t.Errorf("sector %d has %x, want %x", s, p[:16], want[:16])
		}
	}
}

// TestConcurrent has many writers in the same blocks and bytes of bitmaps,
// beside flushes, discards, maps of the whole disk, commits by the clock and
// live snapshots.
func TestConcurrent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, blockBytes := range []int64{512, 4096, 64 << 10, 2 << 20} {
		t.Run(fmt.Sprintf("blocks of %d", blockBytes), func(t *testing.T) {
			dir := t.TempDir()
			leaf := filepath.Join(dir, "0.vhd")
			sizeBytes := min(24*blockBytes, 4<<20) + 8*512
			if err := Create(leaf, CreateOptions{SizeBytes: sizeBytes, BlockBytes: blockBytes}); err != nil {
				t.Fatal(err)
			}
			d, err := Open(leaf, Options{CommitInterval: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			const owners = 8
			var all []*owner
			var wg goroutines
			for i := range int64(owners) {
				o := &owner{t, d, rand.New(rand.NewPCG(r.Uint64(), 0)), i, owners, sizeBytes / 512, map[int64]uint64{}, map[int64]bool{}}
				all = append(all, o)
				wg.Go(func() { o.work(300) })
			}
			wg.Go(func() { mapAll(t, d) })
			wg.Go(func() {
				for i := 1; i < 4; i++ {
					leaf = filepath.Join(dir, fmt.Sprintf("%d.vhd", i))
					if err := d.Snapshot(leaf); err != nil {
						t.Error(err)
					}
				}
			})
			wg.Wait()
			if t.Failed() {
				return
			}
			paths := d.Paths()
			for _, again := range []bool{false, true} {
				if again {
					if d, err = Open(leaf, Options{ReadOnly: true}); err != nil {
						t.Fatal(err)
					}
				}
				for _, o := range all {
					o.verify(d)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if len(paths) != 4 {
				t.Fatalf("chain %v", paths)
			}
			for _, p := range paths {
				b, err := os.ReadFile(p)
				if err != nil {
					t.Fatal(err)
				}
				if faults := audit(b); len(faults) != 0 {
					t.Errorf("%s: %q", p, faults)
				}
			}
		})
	}
}

// mapAll walks over the extents.
func mapAll(t *testing.T, d *Disk) {
	for off := int64(0); off < d.SizeBytes(); {
		e, err := d.NextExtent(off)
		if err != nil {
			t.Error(err)
			return
		}
		off += e.Len
	}
}

// TestFlushWaitsForItsOwnSync: a flush is answered by a sync that began after
// it was called, however many others are under way.
func TestFlushWaitsForItsOwnSync(t *testing.T) {
	var begun, ended atomic.Int64
	file := &tapFile{File: &memFile{data: (&foreign{
		layout: layouts()[0], sizeBytes: 1 << 20, blockBytes: 4096, diskType: 3,
	}).bytes()}}
	file.before = func(o op) error {
		if o.kind == opSync {
			begun.Add(1)
		}
		return nil
	}
	file.after = func(o op) {
		if o.kind == opSync {
			ended.Add(1)
		}
	}
	d, err := openOver(file, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var wg goroutines
	for i := range int64(16) {
		wg.Go(func() {
			p := noise(rand.New(rand.NewPCG(uint64(i), 0)), 1)
			for k := range int64(50) {
				if _, err := d.WriteAt(p, (k*16+i)*512); err != nil {
					t.Error(err)
				}
				called := begun.Load()
				if err := d.Flush(); err != nil {
					t.Error(err)
				}
				// Syncs of one image follow each other.
				if ended.Load() <= called {
					t.Errorf("flush returned after %d syncs, called when %d had begun", ended.Load(), called)
				}
			}
		})
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCommitByTheClock: what nobody flushes is in the file after a while.
func TestCommitByTheClock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhd")
	if err := Create(path, CreateOptions{SizeBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	synced := make(chan struct{}, 64)
	d, err := Open(path, Options{CommitInterval: time.Millisecond, OpenFile: func(path string, write bool) (File, error) {
		f, err := OpenFile(path, write)
		return &tapFile{File: f, after: func(o op) {
			if o.kind == opSync {
				synced <- struct{}{}
			}
		}}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(noise(rand.New(rand.NewPCG(1, 1)), 1), 3<<20); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(30 * time.Second)
	for committed := false; !committed; {
		select {
		case <-synced:
		case <-deadline:
			t.Fatal("nothing was committed in 30 s")
		}
		now, err := Open(path, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		e, err := now.NextExtent(3 << 20)
		if err := errors.Join(err, now.Close()); err != nil {
			t.Fatal(err)
		}
		committed = e.Layer == 0
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestClose: Close may be called again and beside anything, and what comes
// after it fails with fs.ErrClosed.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhd")
	if err := Create(path, CreateOptions{SizeBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := noise(rand.New(rand.NewPCG(1, 1)), 8)
	calls := map[string]func() error{
		"read":     func() error { _, err := d.ReadAt(make([]byte, 512), 0); return err },
		"write":    func() error { _, err := d.WriteAt(p, 0); return err },
		"flush":    func() error { return d.Flush() },
		"discard":  func() error { return d.Discard(0, 4096) },
		"zeros":    func() error { return d.WriteZeroes(0, 4096, true) },
		"extent":   func() error { _, err := d.NextExtent(0); return err },
		"snapshot": func() error { return d.Snapshot(path + ".child") },
	}
	var wg goroutines
	for name, call := range calls {
		if name == "snapshot" {
			continue
		}
		wg.Go(func() {
			for range 1000 {
				if err := call(); errors.Is(err, fs.ErrClosed) {
					return
				} else if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for name, call := range calls {
		if err := call(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := os.Stat(path + ".child"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the child of a closed disk: %v", err)
	}
}
