package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"
)

// subject is a disk to be held against the contract of Disk. open may be
// called many times, one disk at a time, and finds the same image.
type subject struct {
	keeps bool // what is written can be read back
	open  func(t *testing.T, o Options) Disk
}

const (
	subjectBytes = 256 << 10
	tailBytes    = 100
)

func TestConformance(t *testing.T) {
	on := func(store func(*testing.T, int) string, sizeBytes int, f Format) func(t *testing.T) subject {
		return func(t *testing.T) subject { return imageSubject(store(t, sizeBytes), f) }
	}
	for _, c := range []struct {
		name string
		make func(t *testing.T) subject
	}{
		{"discard", func(*testing.T) subject { return imageSubject("", Discard) }},
		{"raw file with tail", on(image, subjectBytes+tailBytes, Raw)},
		{"raw file of one sector", on(image, sectorBytes, Raw)},
		{"mmap file with tail", on(image, subjectBytes+tailBytes, Mmap)},
		{"mmap file of one sector", on(image, sectorBytes, Mmap)},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			testDisk(t, c.make(t))
		})
	}
	for _, s := range allStores() {
		for _, f := range []Format{Raw, Mmap} {
			t.Run(f.String()+" on "+s.name, func(t *testing.T) {
				noLeaks(t)
				testDisk(t, imageSubject(s.make(t, subjectBytes), f))
			})
		}
	}
}

func imageSubject(path string, f Format) subject {
	return subject{
		keeps: f != Discard,
		open: func(t *testing.T, o Options) Disk {
			t.Helper()
			return mustOpen(t, path, f, o)
		},
	}
}

// testDisk holds a disk against the contract of Disk.
func testDisk(t *testing.T, s subject) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s subject)
	}{
		{"info", testInfo},
		{"random against model", testModel},
		{"boundaries", testBoundaries},
		{"range refused", testRange},
		{"read-only", testReadOnly},
		{"concurrent", testConcurrent},
		{"close twice", testCloseTwice},
		{"close while busy", testCloseWhileBusy},
		{"space", testSpace},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			c.test(t, s)
		})
	}
}

func testInfo(t *testing.T, s subject) {
	for _, readOnly := range []bool{false, true} {
		d := s.open(t, Options{ReadOnly: readOnly})
		i := d.Info()
		if i.SizeBytes <= 0 || i.SizeBytes%sectorBytes != 0 {
			t.Errorf("SizeBytes = %d", i.SizeBytes)
		}
		if i.TailBytes < 0 || i.TailBytes >= sectorBytes {
			t.Errorf("TailBytes = %d", i.TailBytes)
		}
		if i.ReadOnly != readOnly {
			t.Errorf("ReadOnly = %v, want %v", i.ReadOnly, readOnly)
		}
		if p := i.PhysicalSectorBytes; p < sectorBytes || p&(p-1) != 0 {
			t.Errorf("PhysicalSectorBytes = %d", p)
		}
		d.Close()
		if d.Info() != i {
			t.Errorf("Info after Close = %+v, want %+v", d.Info(), i)
		}
	}
}

// readAll returns the whole disk.
func readAll(t *testing.T, d Disk) []byte {
	t.Helper()
	b := make([]byte, d.Info().SizeBytes)
	if n, err := d.ReadAt(b, 0); n != len(b) || err != nil {
		t.Fatalf("read all: %d of %d, %v", n, len(b), err)
	}
	return b
}

func testBoundaries(t *testing.T, s subject) {
	d := s.open(t, Options{})
	size := d.Info().SizeBytes
	for _, off := range []int64{0, size - sectorBytes} {
		want := make([]byte, sectorBytes)
		if s.keeps {
			fill(rand.New(rand.NewPCG(3, uint64(off))), want)
		}
		got := bytes.Repeat([]byte{0xa5}, sectorBytes)
		if n, err := d.WriteAt(want, off); n != sectorBytes || err != nil {
			t.Fatalf("write at %d: %d, %v", off, n, err)
		}
		if n, err := d.ReadAt(got, off); n != sectorBytes || err != nil {
			t.Fatalf("read at %d: %d, %v", off, n, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("read at %d differs from what was written", off)
		}
	}
	if n, err := d.ReadAt(nil, size); n != 0 || err != nil {
		t.Errorf("empty read at the end: %d, %v", n, err)
	}
	if n, err := d.WriteAt(nil, 0); n != 0 || err != nil {
		t.Errorf("empty write: %d, %v", n, err)
	}
}

func testRange(t *testing.T, s subject) {
	d := s.open(t, Options{})
	size := d.Info().SizeBytes
	const top = 1<<63 - sectorBytes // the highest whole sector of an int64
	for _, c := range []struct {
		name string
		n    int
		off  int64
	}{
		{"before the start", sectorBytes, -sectorBytes},
		{"past the end", sectorBytes, size},
		{"over the end", 2 * sectorBytes, size - sectorBytes},
		{"empty past the end", 0, size + sectorBytes},
		{"sum overflows", sectorBytes, top},
		{"most negative", sectorBytes, -1 << 63},
		{"offset not whole sectors", sectorBytes, 1},
		{"length not whole sectors", sectorBytes - 1, 0},
	} {
		p := bytes.Repeat([]byte{0xa5}, c.n)
		if n, err := d.ReadAt(p, c.off); n != 0 || !errors.Is(err, ErrRange) {
			t.Errorf("%s: read: %d, %v", c.name, n, err)
		}
		if bytes.Count(p, []byte{0xa5}) != c.n {
			t.Errorf("%s: a refused read changed the buffer", c.name)
		}
		if n, err := d.WriteAt(p, c.off); n != 0 || !errors.Is(err, ErrRange) {
			t.Errorf("%s: write: %d, %v", c.name, n, err)
		}
		if m, ok := d.(Memory); ok && m.Bytes(c.off, c.n) != nil {
			t.Errorf("%s: Bytes is not nil", c.name)
		}
	}
	if m, ok := d.(Memory); ok && m.Bytes(0, -sectorBytes) != nil {
		t.Error("Bytes of negative length is not nil")
	}
}

func testReadOnly(t *testing.T, s subject) {
	d := s.open(t, Options{ReadOnly: true})
	p := make([]byte, sectorBytes)
	if n, err := d.ReadAt(p, 0); n != len(p) || err != nil {
		t.Fatal(n, err)
	}
	before := bytes.Clone(p)
	if n, err := d.WriteAt(pattern(sectorBytes), 0); n != 0 || !errors.Is(err, ErrReadOnly) {
		t.Errorf("write: %d, %v", n, err)
	}
	if _, err := d.ReadAt(p, 0); err != nil || !bytes.Equal(p, before) {
		t.Errorf("a refused write changed the disk (%v)", err)
	}
	if err := d.Flush(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func testConcurrent(t *testing.T, s subject) {
	const workers, rounds = 8, 50
	d := s.open(t, Options{})
	part := min(d.Info().SizeBytes, subjectBytes) / workers / sectorBytes * sectorBytes
	var wg sync.WaitGroup
	for w := range int64(workers) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(uint64(w), 0))
			want, got := make([]byte, part), make([]byte, part)
			for range rounds {
				if s.keeps {
					fill(r, want)
				}
				_, werr := d.WriteAt(want, w*part)
				ferr := d.Flush()
				_, rerr := d.ReadAt(got, w*part)
				if err := errors.Join(werr, ferr, rerr); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got, want) {
					t.Errorf("worker %d read what it did not write", w)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func testCloseTwice(t *testing.T, s subject) {
	d := s.open(t, Options{})
	for i := range 2 {
		if err := d.Close(); err != nil {
			t.Errorf("close %d: %v", i+1, err)
		}
	}
	p := make([]byte, sectorBytes)
	if _, err := d.ReadAt(p, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := d.WriteAt(p, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if err := d.Flush(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("flush after close: %v", err)
	}
	if m, ok := d.(Memory); ok && m.Bytes(0, sectorBytes) != nil {
		t.Error("Bytes after close is not nil")
	}
}

// testCloseWhileBusy closes under callers of all kinds. They must see success
// or fs.ErrClosed, never another file's bytes or a fault.
func testCloseWhileBusy(t *testing.T, s subject) {
	d := s.open(t, Options{})
	calls := []func(p []byte) error{
		func(p []byte) error { _, err := d.ReadAt(p, 0); return err },
		func(p []byte) error { _, err := d.WriteAt(p, 0); return err },
	}
	if d, ok := d.(spacious); ok {
		calls = append(calls,
			func([]byte) error { return d.Discard(0, sectorBytes) },
			func([]byte) error { return d.WriteZeroes(0, sectorBytes, true) },
			func([]byte) error { _, err := d.NextExtent(0); return err },
		)
	}
	var started, done sync.WaitGroup
	for w, call := range calls {
		started.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			p := make([]byte, sectorBytes)
			err := call(p)
			started.Done()
			for err == nil {
				err = call(p)
			}
			if !errors.Is(err, fs.ErrClosed) {
				t.Error(fmt.Errorf("worker %d: %w", w, err))
			}
		}()
	}
	started.Wait()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	done.Wait()
}
