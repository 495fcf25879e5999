package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"
)

// spacious is a disk that can do all that space.go names.
type spacious interface {
	Discarder
	Zeroer
	Mapper
}

// testSpace holds a disk against the contracts of Discarder, Zeroer and Mapper,
// if it has them.
func testSpace(t *testing.T, s subject) {
	d := s.open(t, Options{})
	_, ok := d.(spacious)
	d.Close()
	if !ok {
		return
	}
	for _, c := range []struct {
		name string
		test func(t *testing.T, s subject)
	}{
		{"range refused", testSpaceRange},
		{"read-only", testSpaceReadOnly},
		{"closed", testSpaceClosed},
		{"granularity", testGranularity},
		{"zeros", testZeroes},
		{"discard keeps its neighbours", testDiscardNeighbours},
		{"extents", testExtents},
		{"zeros beside writes", testZeroesBesideWrites},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			c.test(t, s)
		})
	}
}

func openSpacious(t *testing.T, s subject, o Options) spacious {
	t.Helper()
	return s.open(t, o).(spacious)
}

func testSpaceRange(t *testing.T, s subject) {
	d := openSpacious(t, s, Options{})
	size := d.Info().SizeBytes
	before := readAll(t, d)
	const top = 1<<63 - sectorBytes
	for _, c := range []struct {
		name   string
		off, n int64
	}{
		{"before the start", -sectorBytes, sectorBytes},
		{"past the end", size, sectorBytes},
		{"over the end", size - sectorBytes, 2 * sectorBytes},
		{"sum overflows", sectorBytes, top},
		{"most negative offset", -1 << 63, sectorBytes},
		{"negative length", sectorBytes, -sectorBytes},
		{"most negative length", sectorBytes, -1 << 63},
		{"offset not whole sectors", 1, sectorBytes},
		{"length not whole sectors", 0, sectorBytes - 1},
	} {
		if err := d.Discard(c.off, c.n); !errors.Is(err, ErrRange) {
			t.Errorf("%s: discard: %v", c.name, err)
		}
		for _, mayFree := range []bool{false, true} {
			if err := d.WriteZeroes(c.off, c.n, mayFree); !errors.Is(err, ErrRange) {
				t.Errorf("%s: zeros: %v", c.name, err)
			}
		}
	}
	for _, off := range []int64{-sectorBytes, 1, size, top, -1 << 63} {
		if x, err := d.NextExtent(off); !errors.Is(err, ErrRange) {
			t.Errorf("extent at %d: %+v, %v", off, x, err)
		}
	}
	for _, off := range []int64{0, size} {
		if err := errors.Join(d.Discard(off, 0), d.WriteZeroes(off, 0, false), d.WriteZeroes(off, 0, true)); err != nil {
			t.Errorf("empty range at %d: %v", off, err)
		}
	}
	if !bytes.Equal(readAll(t, d), before) {
		t.Error("a refused or empty request changed the disk")
	}
}

func testSpaceReadOnly(t *testing.T, s subject) {
	d := openSpacious(t, s, Options{ReadOnly: true})
	before := readAll(t, d)
	for name, err := range map[string]error{
		"discard": d.Discard(0, sectorBytes),
		"zeros":   d.WriteZeroes(0, sectorBytes, false),
		"freeing": d.WriteZeroes(0, sectorBytes, true),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.NextExtent(0); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(readAll(t, d), before) {
		t.Error("the disk has changed")
	}
}

func testSpaceClosed(t *testing.T, s subject) {
	d := openSpacious(t, s, Options{})
	granularity, alignment := d.Granularity()
	must(t, d.Close())
	_, mapErr := d.NextExtent(0)
	for name, err := range map[string]error{
		"discard": d.Discard(0, sectorBytes),
		"zeros":   d.WriteZeroes(0, sectorBytes, false),
		"freeing": d.WriteZeroes(0, sectorBytes, true),
		"extent":  mapErr,
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g, a := d.Granularity(); g != granularity || a != alignment {
		t.Errorf("granularity %d, %d after close, want %d, %d", g, a, granularity, alignment)
	}
}

func testGranularity(t *testing.T, s subject) {
	g, a := openSpacious(t, s, Options{}).Granularity()
	if g < 0 || g%sectorBytes != 0 || a < 0 || a%sectorBytes != 0 || a > 0 && a >= g {
		t.Errorf("granularity %d, alignment %d", g, a)
	}
}

// testZeroes makes zeros of ranges that begin and end anywhere.
func testZeroes(t *testing.T, s subject) {
	for _, mayFree := range []bool{false, true} {
		d := openSpacious(t, s, Options{})
		size := d.Info().SizeBytes
		model := pattern(int(size))
		for _, c := range []struct{ off, n int64 }{
			{0, size},
			{0, sectorBytes},
			{size - sectorBytes, sectorBytes},
			{size / 2 &^ 4095, 4096},
			{size/2&^4095 + sectorBytes, 3 * 4096},
			{size/4&^4095 - sectorBytes, 2 * sectorBytes},
			{sectorBytes, size - 2*sectorBytes},
		} {
			if c.off < 0 || c.n < 0 || c.off+c.n > size {
				continue // a disk of one sector
			}
			fill(rand.New(rand.NewPCG(7, 7)), model)
			if _, err := d.WriteAt(model, 0); err != nil {
				t.Fatal(err)
			}
			must(t, d.WriteZeroes(c.off, c.n, mayFree))
			clear(model[c.off : c.off+c.n])
			if !bytes.Equal(readAll(t, d), model) {
				t.Errorf("zeros of %d at %d, freeing %v: the disk differs from the model", c.n, c.off, mayFree)
			}
		}
		must(t, d.Close())
		again := s.open(t, Options{ReadOnly: true})
		if !bytes.Equal(readAll(t, again), model) {
			t.Errorf("zeros, freeing %v: the disk differs after reopening", mayFree)
		}
		must(t, again.Close())
	}
}

func testDiscardNeighbours(t *testing.T, s subject) {
	d := openSpacious(t, s, Options{})
	size := d.Info().SizeBytes
	want := pattern(int(size))
	for _, c := range []struct{ off, n int64 }{
		{0, sectorBytes}, {sectorBytes, 3 * 4096}, {4096, 8192}, {0, size},
	} {
		if c.off+c.n > size {
			continue
		}
		if _, err := d.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		must(t, d.Discard(c.off, c.n))
		maybe := make([]bool, size/sectorBytes)
		for i := c.off / sectorBytes; i < (c.off+c.n)/sectorBytes; i++ {
			maybe[i] = true
		}
		if at := differs(readAll(t, d), want, maybe); at >= 0 {
			t.Errorf("discard of %d at %d: sector %d is wrong", c.n, c.off, at)
		}
	}
}

// differs returns the first sector of got that is not want's, nor zeros where
// that may be, or -1.
func differs(got, want []byte, maybe []bool) int {
	for i, zero := range maybe {
		g, w := got[i*sectorBytes:][:sectorBytes], want[i*sectorBytes:][:sectorBytes]
		if !bytes.Equal(g, w) && !(zero && bytes.Equal(g, zeros[:sectorBytes])) {
			return i
		}
	}
	return -1
}

// testExtents walks over a disk that has data, zeros and data again.
func testExtents(t *testing.T, s subject) {
	d := openSpacious(t, s, Options{})
	size := d.Info().SizeBytes
	if _, err := d.WriteAt(pattern(int(size)), 0); err != nil {
		t.Fatal(err)
	}
	third := size / 3 &^ (sectorBytes - 1)
	must(t, d.WriteZeroes(third, third, true))
	content := readAll(t, d)
	for _, start := range []int64{0, third, size - sectorBytes} {
		for off := start; off < size; {
			x, err := d.NextExtent(off)
			must(t, err)
			if x.Off != off || x.Len <= 0 || x.Len%sectorBytes != 0 || x.Len > size-off {
				t.Fatalf("extent at %d: %+v", off, x)
			}
			if x.Zero && bytes.Count(content[off:off+x.Len], []byte{0}) != int(x.Len) {
				t.Errorf("%+v is not zeros", x)
			}
			off += x.Len
		}
	}
}

// testZeroesBesideWrites has each worker own the sectors of one remainder, so
// that all of them meet in every block of the page cache.
func testZeroesBesideWrites(t *testing.T, s subject) {
	const workers, rounds = 4, 300
	d := openSpacious(t, s, Options{})
	sectors := min(d.Info().SizeBytes, 64<<10) / sectorBytes
	var wg sync.WaitGroup
	for w := range min(int64(workers), sectors) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(uint64(w), 1))
			model, got := make([]byte, sectorBytes), make([]byte, sectorBytes)
			for round := range rounds {
				off := (r.Int64N((sectors-w+workers-1)/workers)*workers + w) * sectorBytes
				fill(r, model)
				_, err := d.WriteAt(model, off)
				discarded := false
				switch k := r.IntN(6); {
				case k < 3:
					err = errors.Join(err, d.WriteZeroes(off, sectorBytes, k == 0))
					clear(model)
				case k == 3:
					err = errors.Join(err, d.Discard(off, sectorBytes))
					discarded = true
				}
				_, rerr := d.ReadAt(got, off)
				if err = errors.Join(err, rerr); err != nil {
					t.Error(err)
					return
				}
				if differs(got, model, []bool{discarded}) >= 0 {
					t.Errorf("worker %d, round %d: sector %d is wrong", w, round, off/sectorBytes)
					return
				}
			}
		}()
	}
	wg.Wait()
}
