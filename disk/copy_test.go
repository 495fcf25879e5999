package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopyRandom copies random disks with random holes, of kinds that can and
// cannot tell and make them.
func TestCopyRandom(t *testing.T) {
	r := random(t)
	for round := range 60 {
		size := (1 + r.Int64N(3*chunkBytes/sectorBytes)) * sectorBytes
		b := make([]byte, size)
		fill(r, b)
		mapped := withHoles(b, r)
		scatterZeros(r, b)
		var src, dst Disk = mapped.ram, nil
		if r.IntN(2) == 0 {
			src = mapped
		}
		more := max(0, r.Int64N(8)-4) * 100 * sectorBytes
		dstZero := r.IntN(2) == 0
		target := newRAM(make([]byte, size+more))
		if !dstZero {
			fill(r, target.bytes)
		}
		dst = target
		if r.IntN(2) == 0 {
			dst = ramSpace{ram: target}
		}
		stats, err := Copy(t.Context(), dst, src, CopyOptions{DstZero: dstZero})
		must(t, err)
		if !bytes.Equal(target.bytes[:size], b) || !bytes.Equal(target.bytes[size:], make([]byte, more)) {
			t.Fatalf("round %d: %T of %d bytes to %T of %d, zero %v: differs", round, src, size, dst, size+more, dstZero)
		}
		if stats.DataBytes+stats.ZeroBytes != size+more || target.flushes.Load() != 1 {
			t.Fatalf("round %d: %+v of %d bytes, %d flushes", round, stats, size+more, target.flushes.Load())
		}
		if dstZero && target.written.Load() != stats.DataBytes {
			t.Fatalf("round %d: %d bytes written, want %d", round, target.written.Load(), stats.DataBytes)
		}
		diff, err := Compare(t.Context(), src, dst, CompareOptions{})
		if want := (Diff{ASizeBytes: size, BSizeBytes: size + more, FirstByte: -1}); diff != want || err != nil {
			t.Fatalf("round %d: compare: %+v, %v, want %+v", round, diff, err, want)
		}
	}
}

// scatterZeros clears runs that no extent tells of.
func scatterZeros(r *rand.Rand, b []byte) {
	for range r.IntN(20) {
		off := r.IntN(len(b))
		clear(b[off:min(len(b), off+r.IntN(200<<10))])
	}
}

// TestCopyFiles copies between real stores, and looks at the space taken.
func TestCopyFiles(t *testing.T) {
	const size = 4 << 20
	for _, s := range allStores() {
		for _, f := range []Format{Raw, Mmap} {
			t.Run(fmt.Sprint(f, " on ", s.name), func(t *testing.T) {
				noLeaks(t)
				src := mustOpen(t, s.make(t, size), f, Options{})
				must(t, src.(Zeroer).WriteZeroes(1<<20, 2<<20, true))
				if _, err := src.WriteAt(make([]byte, 64<<10), 512<<10); err != nil {
					t.Fatal(err)
				}
				const used = size - 2<<20 - 64<<10

				path := filepath.Join(ext4(t), "copy.img")
				sparse, err := Create(path, size)
				must(t, err)
				defer sparse.Close()
				stats, err := Copy(t.Context(), sparse, src, CopyOptions{DstZero: true})
				if want := (CopyStats{DataBytes: used, ZeroBytes: size - used}); stats != want || err != nil {
					t.Errorf("%+v, %v, want %+v", stats, err, want)
				}
				if n := spaceOf(t, path); n < used || n > used+64<<10 {
					t.Errorf("the copy takes %d bytes, want %d", n, used)
				}

				full := mustOpen(t, s.make(t, size+1<<20), f, Options{})
				_, err = Copy(t.Context(), full, sparse, CopyOptions{})
				must(t, err)
				if got := readAll(t, full); !bytes.Equal(got[:size], readAll(t, src)) ||
					!bytes.Equal(got[size:], make([]byte, 1<<20)) {
					t.Error("the copy of the copy differs")
				}
			})
		}
	}
}

// TestCopyLeavesHolesAlone: they are neither read nor written.
func TestCopyLeavesHolesAlone(t *testing.T) {
	const size = 200 << 20
	src := ramSpace{ram: newRAM(make([]byte, size)), holes: []Extent{{Off: 4096, Len: size - 4096}}}
	fill(rand.New(rand.NewPCG(1, 1)), src.bytes[:4096])
	dst := ramSpace{ram: newRAM(make([]byte, size))}
	stats, err := Copy(t.Context(), dst, src, CopyOptions{DstZero: true})
	must(t, err)
	if want := (CopyStats{DataBytes: 4096, ZeroBytes: size - 4096}); stats != want {
		t.Errorf("%+v, want %+v", stats, want)
	}
	if src.read.Load() != 4096 || dst.written.Load() != 4096 || dst.zeroed.Load() != 0 {
		t.Errorf("read %d, written %d, zeroed %d", src.read.Load(), dst.written.Load(), dst.zeroed.Load())
	}
	if _, err = Copy(t.Context(), ramSpace{ram: newRAM(make([]byte, size))}, src, CopyOptions{}); err != nil {
		t.Error(err)
	}
}

// TestCopySmallZeros: a few zeros among data are not worth a request where they
// must be made, and are left out where they are there.
func TestCopySmallZeros(t *testing.T) {
	b := bytes.Repeat([]byte{1}, 256<<10)
	clear(b[4096:8192])
	clear(b[128<<10 : 192<<10])
	for _, c := range []struct {
		dstZero         bool
		written, zeroed int64
	}{
		{true, 188 << 10, 0},
		{false, 192 << 10, 64 << 10},
	} {
		dst := ramSpace{ram: newRAM(make([]byte, len(b)))}
		_, err := Copy(t.Context(), dst, newRAM(b), CopyOptions{DstZero: c.dstZero})
		must(t, err)
		if w, z := dst.written.Load(), dst.zeroed.Load(); w != c.written || z != c.zeroed {
			t.Errorf("DstZero %v: %d written, %d zeroed, want %d, %d", c.dstZero, w, z, c.written, c.zeroed)
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	noLeaks(t)
	small, large := newRAM(make([]byte, 512)), newRAM(make([]byte, 1024))
	readOnly := newRAM(make([]byte, 1024))
	readOnly.info.ReadOnly = true
	for _, c := range []struct {
		name     string
		dst, src Disk
		want     error
	}{
		{"smaller", small, large, ErrRange},
		{"read-only", readOnly, large, ErrReadOnly},
	} {
		if _, err := Copy(t.Context(), c.dst, c.src, CopyOptions{DstZero: true}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if large.read.Load() != 0 || small.flushes.Load() != 0 {
		t.Error("a refused copy has begun")
	}
}

// TestCopyFails with each request that can, and says with which.
func TestCopyFails(t *testing.T) {
	for _, op := range []string{"read", "map", "write", "zeros", "flush"} {
		t.Run(op, func(t *testing.T) {
			b := pattern(8 * chunkBytes)
			src := withHoles(b, rand.New(rand.NewPCG(5, 5)))
			dst := ramSpace{ram: newRAM(make([]byte, len(b)))}
			fails := func(what string, off, _ int64) error {
				if what == op && (off > chunkBytes || what == "flush") {
					return unix.EIO
				}
				return nil
			}
			src.before, dst.before = fails, fails
			if _, err := Copy(t.Context(), dst, src, CopyOptions{}); !errors.Is(err, unix.EIO) {
				t.Errorf("copy: %v", err)
			}
			if flushed := dst.flushes.Load() == 1; flushed != (op == "flush") {
				t.Errorf("flushed: %v", flushed)
			}
			if n := src.busy.Load() + dst.busy.Load(); n != 0 {
				t.Errorf("%d requests are still under way", n)
			}
		})
	}
}

// TestCopyKeepsRequestsInFlight: none returns before there are four, and there
// are never more.
func TestCopyKeepsRequestsInFlight(t *testing.T) {
	src := newRAM(pattern(16 * chunkBytes))
	var met sync.WaitGroup
	met.Add(inFlight)
	var calls atomic.Int64
	src.before = func(string, int64, int64) error {
		if calls.Add(1) <= inFlight {
			met.Done()
		}
		met.Wait()
		return nil
	}
	dst := newRAM(make([]byte, 16*chunkBytes))
	_, err := Copy(t.Context(), dst, src, CopyOptions{})
	must(t, err)
	if n := src.mostBusy; n != inFlight {
		t.Errorf("%d requests at once, want %d", n, inFlight)
	}
}

func TestCopyObeysContext(t *testing.T) {
	cause := errors.New("the operator pressed ^C")
	src, dst := newRAM(pattern(64*chunkBytes)), newRAM(make([]byte, 64*chunkBytes))
	ctx, cancel := context.WithCancelCause(t.Context())
	src.before = func(_ string, off, _ int64) error {
		if off >= 8*chunkBytes {
			cancel(cause)
		}
		return nil
	}
	if _, err := Copy(ctx, dst, src, CopyOptions{}); !errors.Is(err, cause) {
		t.Errorf("copy: %v", err)
	}
	if n := src.read.Load(); n > (8+2*inFlight)*chunkBytes || dst.flushes.Load() != 0 || dst.busy.Load() != 0 {
		t.Errorf("read %d bytes, %d flushes, %d under way", n, dst.flushes.Load(), dst.busy.Load())
	}
	before := dst.written.Load()
	if _, err := Copy(ctx, dst, src, CopyOptions{}); !errors.Is(err, cause) || dst.written.Load() != before {
		t.Errorf("copy after the end: %v", err)
	}
}

func TestCopyTellsProgress(t *testing.T) {
	b := pattern(5 * chunkBytes)
	src := withHoles(b, rand.New(rand.NewPCG(9, 9)))
	dst := newRAM(make([]byte, len(b)+1024))
	last, calls := int64(0), 0
	_, err := Copy(t.Context(), dst, src, CopyOptions{Progress: func(done, total int64) {
		if calls++; done <= last || total != int64(len(b)+1024) {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last = done
	}})
	must(t, err)
	if last != int64(len(b)+1024) || calls < 5 {
		t.Errorf("ended at %d after %d calls", last, calls)
	}
}

// TestWalkRefusesExtentsThatLie: a mapper that does not go forward is a bug of
// ours and must not make a loop.
func TestWalkRefusesExtentsThatLie(t *testing.T) {
	for _, c := range []struct {
		name string
		x    Extent
	}{
		{"empty", Extent{}},
		{"elsewhere", Extent{Off: 512, Len: 512}},
		{"over the end", Extent{Len: 1 << 20}},
		{"not whole sectors", Extent{Len: 100}},
	} {
		func() {
			defer func() {
				if text := fmt.Sprint(recover()); !strings.Contains(text, "want one there") {
					t.Errorf("%s: %s", c.name, text)
				}
			}()
			s := &side{Disk: liar{newRAM(make([]byte, 1024)), c.x}}
			x, err := s.extent(0)
			t.Errorf("%s: %+v, %v", c.name, x, err)
		}()
	}
}

// liar is a Mapper that says the same of every offset.
type liar struct {
	*ram
	x Extent
}

func (d liar) NextExtent(int64) (Extent, error) { return d.x, nil }

func TestZeroRun(t *testing.T) {
	z, o := make([]byte, 4096), bytes.Repeat([]byte{1}, 4096)
	lastBit := append(make([]byte, 4095), 1)
	for _, c := range []struct {
		name string
		b    []byte
		n    int
		zero bool
	}{
		{"zeros", z, 4096, true},
		{"data", o, 4096, false},
		{"data in the last byte", lastBit, 4096, false},
		{"zeros then data", bytes.Join([][]byte{z, z, o}, nil), 8192, true},
		{"data then zeros", bytes.Join([][]byte{o, lastBit, z}, nil), 8192, false},
		{"a short end of zeros", bytes.Join([][]byte{z, z[:512]}, nil), 4608, true},
		{"a short end of data", bytes.Join([][]byte{z, o[:512]}, nil), 4096, true},
		{"less than a unit", z[:512], 512, true},
	} {
		if n, zero := zeroRun(c.b, 4096); n != c.n || zero != c.zero {
			t.Errorf("%s: %d, %v, want %d, %v", c.name, n, zero, c.n, c.zero)
		}
	}
}
