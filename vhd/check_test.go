package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// checkCase is an image, and what Check says of it.
type checkCase struct {
	name    string
	image   []byte
	codes   []string
	verdict string
	report  ImageReport // but for the path
}

func checkCases() []checkCase {
	h := aDynamic()
	good := h.bytes()
	n := len(good)
	bitmapOf := func(h handmade, i int, fill byte) []byte {
		return edited(h, func(b []byte) { copy(b[h.blockAt(i):], bytes.Repeat([]byte{fill}, 512)) })
	}
	odd := h
	odd.size = 1<<20 - 32<<10 // the last block is half a block
	odd.blocks = []int{15}
	tail := edited(odd, func(b []byte) {
		clear(b[odd.blockAt(0):][:512])
		b[odd.blockAt(0)+15] = 1
	})
	inFooter := func(at int, v byte) []byte { return withFooter(h, func(f []byte) { f[at] = v }) }
	return []checkCase{
		{"sound", good, nil, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"fixed", aFixed().bytes(), nil, "clean", ImageReport{}},
		{"blktap's", hasBatmap().bytes(), nil, "clean", ImageReport{Blocks: 5, Allocated: 2, Complete: 2}},
		{"a bitmap in part", bitmapOf(h, 1, 0xAA), nil, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 2}},
		{"an empty bitmap", bitmapOf(h, 1, 0), nil, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 2}},
		{"batmap that claims too much", bitmapOf(hasBatmap(), 1, 0xAA), []string{"batmap-wrong"}, "corrupt",
			ImageReport{Blocks: 5, Allocated: 2, Complete: 1}},
		{"last block in part", odd.bytes(), nil, "clean", ImageReport{Blocks: 16, Allocated: 1, Complete: 1}},
		{"bits past the end", tail, []string{"bitmap-past-end"}, "clean", ImageReport{Blocks: 16, Allocated: 1}},
		{"slack", slices.Concat(good[:n-512], make([]byte, 70000/512*512), good[n-512:]), []string{"slack"}, "leaks",
			ImageReport{Blocks: 16, Allocated: 3, Complete: 3, LeakedBytes: 70000 / 512 * 512}},
		{"slack of a page", slices.Concat(good[:n-512], make([]byte, 3584), good[n-512:]), nil, "clean",
			ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"orphan", withEntry(h, 5, 1<<32-1), []string{"leak"}, "leaks",
			ImageReport{Blocks: 16, Allocated: 2, Complete: 2, LeakedBytes: 66048}},
		{"no features", inFooter(11, 0), []string{"features"}, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"saved state 2", inFooter(84, 2), []string{"saved-state"}, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"hidden 2", inFooter(85, 2), []string{"hidden"}, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"reserved bytes", inFooter(511, 1), []string{"reserved"}, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"reserved bytes of the header", withHeader(h, func(head []byte) { head[1023] = 1 }), []string{"reserved"}, "clean",
			ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"made in 2136", inFooter(24, 0xFF), []string{"timestamp"}, "clean", ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"geometry of more", withFooter(h, func(f []byte) { put32(f, 56, 1<<16|16<<8|255) }), []string{"geometry"}, "clean",
			ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"largest geometry", withFooter(h, func(f []byte) { put32(f, 56, 65535<<16|16<<8|255) }), nil, "clean",
			ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
		{"raw parent", aChild(0xC1, 0, locW2ru("p")).bytes(), []string{"raw-parent"}, "clean", ImageReport{Blocks: 16}},
		{"duplicate", withEntry(h, 9, uint32(h.blockAt(0)/512)), []string{"bat-overlap"}, "corrupt",
			ImageReport{Blocks: 16, Allocated: 4, Complete: 4}},
		{"no footer", good[:n-512], []string{"footer-missing"}, "corrupt", ImageReport{Blocks: 16, Allocated: 3, Complete: 3}},
	}
}

func TestCheck(t *testing.T) {
	for _, c := range checkCases() {
		t.Run(c.name, func(t *testing.T) {
			r, err := checkIn(c.image)
			if err != nil {
				t.Fatal(err)
			}
			if got := codesOf(r.Problems); !slices.Equal(got, c.codes) {
				t.Errorf("got %+v, want %q", r.Problems, c.codes)
			}
			if got := verdict(r); got != c.verdict {
				t.Errorf("got verdict %s, want %s", got, c.verdict)
			}
			c.report.Path = "x.vhd"
			if !slices.Equal(r.Images, []ImageReport{c.report}) {
				t.Errorf("got %+v, want %+v", r.Images, c.report)
			}
		})
	}
}

// verdict is the one of the three that holds.
func verdict(r *Report) string {
	switch [3]bool{r.Clean(), r.Leaks(), r.Corrupt()} {
	case [3]bool{true, false, false}:
		return "clean"
	case [3]bool{false, true, false}:
		return "leaks"
	case [3]bool{false, false, true}:
		return "corrupt"
	}
	return "none, or more than one"
}

// TestCheckFixtures: Check has a verdict on each lie, or the error of opening.
func TestCheckFixtures(t *testing.T) {
	for _, f := range fixtures() {
		t.Run(f.name, func(t *testing.T) {
			path := f.save(t, t.TempDir())
			o := f.with
			o.ReadOnly = true
			chain, err := openChain(path, &o)
			if err == nil {
				defer closeChain(chain)
			}
			within(t, func() {
				r, failed := Check(context.Background(), path, CheckOptions{Open: f.with})
				switch {
				case failed != nil && !errors.Is(failed, ErrNotVHD) && !errors.Is(failed, ErrUnsupported) && f.place == nil && f.with.OpenFile == nil:
					t.Errorf("got %v", failed)
				case failed == nil && err != nil && !r.Corrupt() && !errors.Is(err, ErrEncrypted) && !errors.Is(err, ErrRawParent):
					t.Errorf("cannot be opened (%v) and has verdict %s", err, verdict(r))
				case failed == nil && f.rw != "" && r.Clean() && f.rw != "encrypted" && f.rw != "raw-parent":
					t.Errorf("cannot be written (%s) and is clean", f.rw)
				}
			})
		})
	}
}

func TestCheckChain(t *testing.T) {
	dir := t.TempDir()
	base := save(t, dir, "base.vhd", withEntry(aDynamic(), 9, 0))
	mid, leaf := filepath.Join(dir, "mid.vhd"), filepath.Join(dir, "leaf.vhd")
	for _, c := range [][2]string{{base, mid}, {mid, leaf}} {
		err := os.WriteFile(c[1], aChild(0xC0+byte(len(c[1])), 0, locW2ru(`.\`+filepath.Base(c[0]))).bytes(), 0o666)
		if err != nil {
			t.Fatal(err)
		}
	}
	save(t, dir, "mid.vhd", aChild(0xC2, 0xD1, locW2ru(`.\base.vhd`)).bytes())
	save(t, dir, "leaf.vhd", aChild(0xC3, 0xC2, locW2ru(`.\mid.vhd`)).bytes())
	check := func() *Report {
		t.Helper()
		r, err := Check(context.Background(), leaf, CheckOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := check()
	if len(r.Images) != 3 || len(r.Problems) != 1 || r.Problems[0].Code != "bat-in-metadata" || r.Problems[0].Path != base {
		t.Errorf("damaged base: got %+v", r)
	}
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	r = check()
	if len(r.Images) != 2 || len(r.Problems) != 1 || r.Problems[0].Code != "parent" || r.Problems[0].Path != mid || !r.Corrupt() {
		t.Errorf("no base: got %+v", r)
	}
}

// TestCheckParentNewer: a note, as a copy of the parent is newer too.
func TestCheckParentNewer(t *testing.T) {
	dir := t.TempDir()
	parent, child := save(t, dir, "p.vhd", aDynamic().bytes()), filepath.Join(dir, "c.vhd")
	if err := Snapshot(parent, child, SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		when time.Duration
		want []string
	}{{0, nil}, {time.Hour, []string{"parent-newer"}}} {
		then := time.Now().Add(c.when)
		if c.when != 0 {
			if err := os.Chtimes(parent, then, then); err != nil {
				t.Fatal(err)
			}
		}
		r, err := Check(context.Background(), child, CheckOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := codesOf(r.Problems); !slices.Equal(got, c.want) || !r.Clean() {
			t.Errorf("parent written %v later: got %+v", c.when, r.Problems)
		}
	}
}

// shuffled is a dynamic image with all its blocks of 2 MiB, in some order.
func shuffled(blocks int, order []int) *thinFile {
	const first, stride = 8175, 4104 // sectors, as blktap aligns them
	h := handmade{kind: 3, size: uint64(blocks) << 21, block: 2 << 20, uuid: 0xE1}
	bat := make([]byte, 4*blocks)
	for i, place := range order {
		binary.BigEndian.PutUint32(bat[4*i:], uint32(first+place*stride))
	}
	parts := hollow(h.size, h.block, uint32(blocks))
	parts[4096] = bat
	end := int64(first+blocks*stride) * 512
	parts[end] = h.footer()
	return newThinFile(end+512, parts)
}

// TestCheckMany: each block is looked at, progress is told in order, and a
// context ends it.
func TestCheckMany(t *testing.T) {
	const seed, blocks = 7, 50000
	f := shuffled(blocks, rand.New(rand.NewPCG(seed, 0)).Perm(blocks))
	o := Options{OpenFile: func(string, bool) (File, error) { return f, nil }}
	last, calls := int64(-1), 0
	progress := func(done, total int64) {
		if done < last || done > total || total != blocks {
			t.Fatalf("progress %d of %d after %d", done, total, last)
		}
		last, calls = done, calls+1
	}
	r, err := Check(context.Background(), "x.vhd", CheckOptions{Open: o, Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	if got := codesOf(r.Problems); !slices.Equal(got, []string{"leak"}) || r.Images[0].Allocated != blocks || last != blocks || calls < blocks/checkBatch {
		t.Errorf("seed %d: got %+v, progress %d in %d calls", seed, r, last, calls)
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err = Check(ctx, "x.vhd", CheckOptions{Open: o, Progress: func(done, _ int64) {
		last = done
		if done > blocks/4 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || last > blocks/2 {
		t.Errorf("cancelled at %d: got %v", last, err)
	}
}

// BenchmarkMillion opens and checks an image of 2040 GiB that is full.
func BenchmarkMillion(b *testing.B) {
	const blocks = MaxSizeBytes >> 21
	ordered := make([]int, blocks)
	for i := range ordered {
		ordered[i] = i
	}
	for _, c := range []struct {
		name  string
		order []int
	}{{"ordered", ordered}, {"shuffled", rand.New(rand.NewPCG(7, 0)).Perm(blocks)}} {
		f := shuffled(blocks, c.order)
		o := Options{OpenFile: func(string, bool) (File, error) { return f, nil }}
		b.Run("open/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := readImage("x.vhd", f); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("check/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if r, err := Check(context.Background(), "x.vhd", CheckOptions{Open: o}); err != nil || !r.Clean() {
					b.Fatal(r, err)
				}
			}
		})
	}
}

func TestOnesIn(t *testing.T) {
	const seed = 11
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, 64)
	for range 1000 {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		from := r.Int64N(513)
		to := from + r.Int64N(513-from)
		var want int64
		for i := from; i < to; i++ {
			want += int64(b[i/8] >> (7 - i%8) & 1)
		}
		if got := onesIn(b, from, to); got != want {
			t.Fatalf("seed %d: from %d to %d: got %d, want %d", seed, from, to, got, want)
		}
	}
}
