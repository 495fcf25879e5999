package disk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCompare(t *testing.T) {
	const size = 3 * chunkBytes
	base := pattern(size)
	changed := func(at ...int) []byte {
		b := bytes.Clone(base)
		for _, i := range at {
			b[i] ^= 1
		}
		return b
	}
	longer := func(tail ...byte) []byte {
		b := append(bytes.Clone(base), make([]byte, 1024)...)
		copy(b[size:], tail)
		return b
	}
	for _, c := range []struct {
		name    string
		a, b    []byte
		first   int64
		sectors int64
	}{
		{"equal", base, base, -1, 0},
		{"first byte", base, changed(0), 0, 1},
		{"last byte", base, changed(size - 1), size - 1, 1},
		{"two bytes of one sector", changed(700, 800), base, 700, 1},
		{"in each chunk", base, changed(2*chunkBytes+5, chunkBytes+7, 513), 513, 3},
		{"longer by zeros", base, longer(), -1, 0},
		{"shorter by zeros", longer(), base, -1, 0},
		{"longer by data", base, longer(0, 0, 9), size + 2, 1},
		{"shorter by data", longer(1), base, size, 1},
		{"all of one sector", make([]byte, 512), bytes.Repeat([]byte{1}, 512), 0, 1},
	} {
		want := Diff{int64(len(c.a)), int64(len(c.b)), c.first, c.sectors}
		got, err := Compare(t.Context(), newRAM(c.a), newRAM(c.b), CompareOptions{})
		if got != want || err != nil || got.SameContent() != (c.first < 0) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, want)
		}
		got, err = Compare(t.Context(), newRAM(c.a), newRAM(c.b), CompareOptions{FirstOnly: true})
		if got.FirstByte != c.first || got.Sectors > c.sectors || err != nil {
			t.Errorf("%s: first only: %+v, %v", c.name, got, err)
		}
	}
}

// TestCompareRandom compares disks whose holes differ from their zeros.
func TestCompareRandom(t *testing.T) {
	r := random(t)
	for round := range 40 {
		size := (1 + r.IntN(2*chunkBytes/sectorBytes)) * sectorBytes
		a := make([]byte, size)
		fill(r, a)
		da := withHoles(a, r)
		b := bytes.Clone(a)
		db := ramSpace{ram: newRAM(b)}
		if r.IntN(2) == 0 {
			db = withHoles(b, r) // some of a's data become zeros
		}
		for range r.IntN(3) {
			at := r.IntN(size)
			if x, err := db.NextExtent(int64(at) &^ 511); err == nil && !x.Zero {
				b[at] ^= 0x80
			}
		}
		want := Diff{int64(size), int64(size), -1, 0}
		for i := 0; i < size; i += sectorBytes {
			if x, y := a[i:][:sectorBytes], b[i:][:sectorBytes]; !bytes.Equal(x, y) {
				if want.Sectors++; want.FirstByte < 0 {
					want.FirstByte = int64(i + firstDifference(x, y))
				}
			}
		}
		got, err := Compare(t.Context(), da, db, CompareOptions{})
		if got != want || err != nil {
			t.Fatalf("round %d: %+v, %v, want %+v", round, got, err, want)
		}
		first, err := Compare(t.Context(), da, db, CompareOptions{FirstOnly: true})
		if first.FirstByte != want.FirstByte || err != nil {
			t.Fatalf("round %d: first only: %+v, %v, want %+v", round, first, err, want)
		}
	}
}

// TestCompareSkipsHolesOfBoth, and reads where one has data.
func TestCompareSkipsHolesOfBoth(t *testing.T) {
	const size = 8 << 20
	a := ramSpace{ram: newRAM(make([]byte, size)), holes: []Extent{{Off: 0, Len: 6 << 20}}}
	b := ramSpace{ram: newRAM(make([]byte, size)), holes: []Extent{{Off: 2 << 20, Len: 6 << 20}}}
	got, err := Compare(t.Context(), a, b, CompareOptions{})
	if !got.SameContent() || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if a.read.Load() != 4<<20 || b.read.Load() != 4<<20 {
		t.Errorf("read %d and %d bytes, want 4 MiB of each", a.read.Load(), b.read.Load())
	}
}

func TestCompareFirstOnlyStops(t *testing.T) {
	a := newRAM(make([]byte, 64*chunkBytes))
	b := newRAM(bytes.Repeat([]byte{1}, 64*chunkBytes))
	got, err := Compare(t.Context(), a, b, CompareOptions{FirstOnly: true})
	if got.FirstByte != 0 || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if n := a.read.Load(); n > inFlight*chunkBytes {
		t.Errorf("read %d bytes", n)
	}
}

func TestCompareFails(t *testing.T) {
	for _, op := range []string{"read", "map"} {
		for which := range 2 {
			disks := make([]ramSpace, 2)
			for i := range disks {
				disks[i] = withHoles(pattern(4*chunkBytes), rand.New(rand.NewPCG(5, 5)))
			}
			disks[which].before = func(what string, off, _ int64) error {
				if what == op && off > chunkBytes {
					return unix.EIO
				}
				return nil
			}
			if _, err := Compare(t.Context(), disks[0], disks[1], CompareOptions{}); !errors.Is(err, unix.EIO) {
				t.Errorf("%s of disk %d fails: %v", op, which, err)
			}
		}
	}
}

func TestCompareObeysContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, b := newRAM(make([]byte, 32*chunkBytes)), newRAM(make([]byte, 32*chunkBytes))
	calls := 0
	_, err := Compare(ctx, a, b, CompareOptions{Progress: func(done, total int64) {
		if calls++; total != 32*chunkBytes || done > total {
			t.Errorf("%d of %d", done, total)
		}
		cancel()
	}})
	if !errors.Is(err, context.Canceled) || calls > 2*inFlight {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestCompareFiles(t *testing.T) {
	noLeaks(t)
	dir := ext4(t)
	a, err := Create(filepath.Join(dir, "a"), 2<<20)
	must(t, err)
	defer a.Close()
	b, err := Create(filepath.Join(dir, "b"), 3<<20)
	must(t, err)
	defer b.Close()
	for _, d := range []Disk{a, b} {
		_, err = d.WriteAt(pattern(64<<10), 1<<20)
		must(t, err)
	}
	want := Diff{2 << 20, 3 << 20, -1, 0}
	if got, err := Compare(t.Context(), a, b, CompareOptions{}); got != want || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	_, err = b.WriteAt(bytes.Repeat([]byte{1}, 512), 3<<20-512)
	must(t, err)
	want = Diff{2 << 20, 3 << 20, 3<<20 - 512, 1}
	if got, err := Compare(t.Context(), a, b, CompareOptions{}); got != want || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}
