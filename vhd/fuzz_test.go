package vhd

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"
)

// FuzzReadImage: whatever the bytes of a file are, reading, checking and
// repairing it ends, holds what the data path relies on, and a repair that is
// not forced leaves the disk as it was. The file is some bytes, others at its
// end, and zeros between; the sums are made right on demand, as chance would
// not.
func FuzzReadImage(f *testing.F) {
	const meta, most = 4096, 1 << 20
	for _, x := range fixtures() {
		if n := len(x.image); n > 512 && n < most {
			f.Add(x.image[:min(n-512, meta)], x.image[n-512:], uint32(n), false)
		}
	}
	f.Fuzz(func(t *testing.T, begin, end []byte, length uint32, sums bool) {
		b := make([]byte, length%most)
		copy(b, begin)
		copy(b[max(0, len(b)-len(end)):], end)
		if sums && len(b) >= 2048 {
			resum(b[:512], 64)
			resum(b[512:1536], 36)
			resum(b[len(b)-512:], 64)
		}
		judgeLies(t, b)
	})
}

// judgeLies reads, checks and repairs an image.
func judgeLies(t *testing.T, b []byte) {
	t.Helper()
	m, err := readImage("x.vhd", &memFile{data: b})
	if err != nil {
		var known *ImageError
		if !errors.As(err, &known) {
			t.Errorf("got %v, want an ImageError", err)
		}
		return
	}
	holdInvariants(t, m)
	before := shown(b)
	r, err := checkIn(b)
	if err != nil {
		t.Fatal(err)
	}
	_, o, _ := recordOps(b)
	repaired, err := Repair(context.Background(), "x.vhd", RepairOptions{Open: o})
	if err != nil {
		t.Fatal(err)
	}
	file, _ := o.OpenFile("", true)
	after := file.(*tapFile).File.(*memFile).content()
	// A batmap that claims too much is believed until it is found out.
	wrong := slices.Contains(codesOf(repaired.Mended), codeBatmapWrong)
	if repaired.worst() > r.worst() || !wrong && !slices.Equal(shown(after), before) {
		t.Errorf("repaired from %+v to %+v", r, repaired)
	}
}

// TestRandomLies puts wrong values where an image has numbers: FuzzReadImage
// does not know where that is.
func TestRandomLies(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	bases := []handmade{aDynamic(), hasBatmap(), aFixed(), aChild(0xC1, 0xD1, locW2ru(`.\p.vhd`))}
	for i := range 100 {
		h := bases[r.IntN(len(bases))]
		b := h.bytes()
		for range 1 + r.IntN(6) {
			lie(r, &h, b)
		}
		if b = b[:len(b)-512*r.IntN(3)]; r.IntN(8) == 0 {
			b = b[:r.IntN(len(b))]
		}
		if judgeLies(t, b); t.Failed() {
			t.Fatalf("seed %d, image %d", seed, i)
		}
	}
}

// lie changes one number of an image, mostly to one near another.
func lie(r *rand.Rand, h *handmade, b []byte) {
	near := []uint64{0, 1, 511, 512, 1536, 1 << 31, 1<<32 - 1, 1 << 63, 1<<64 - 1, uint64(len(b)), uint64(len(b)) / 512,
		uint64(h.blockAt(0)), uint64(h.blockAt(1)) / 512, uint64(h.batmapAt()), uint64(h.size), uint64(h.block)}
	v := near[r.IntN(len(near))] + uint64(r.IntN(5)) - 2
	field := func(b []byte, sum int, fields ...int) {
		at := fields[r.IntN(len(fields))]
		if at&7 == 0 && at != 28 {
			put64(b, at, v)
		} else {
			put32(b, at, uint32(v))
		}
		resum(b, sum)
	}
	footers := []int{12, 16, 32, 48, 60}
	switch last := b[len(b)-512:]; {
	case h.kind == 2 || r.IntN(6) == 0:
		field(last, 64, footers...)
	case r.IntN(5) == 0:
		field(b[:512], 64, footers...)
	case r.IntN(4) == 0:
		field(b[512:1536], 36, 16, 28, 32, 576+4, 576+8, 576+16)
	case h.batmap && r.IntN(3) == 0:
		at := []int{8, 16, 20, 24}[r.IntN(4)]
		put32(b, h.batmapAt()+at, uint32(v))
	default:
		put32(b, handBATAt+4*r.IntN(16), uint32(v))
	}
}

// shown is what a small image without a parent shows, through the data path;
// a sector that cannot be read is 0xEE.
func shown(b []byte) []byte {
	const small = 4 << 20
	m, err := readImage("x.vhd", &memFile{data: b})
	if err != nil || m.sizeBytes > small || m.footer.Type == TypeDifferencing || m.readable() != nil {
		return nil
	}
	d, err := newDisk([]*image{m}, Options{ReadOnly: true})
	if err != nil {
		return nil
	}
	defer d.Close()
	disk := make([]byte, m.sizeBytes)
	if _, err := d.ReadAt(disk, 0); err == nil {
		return disk
	}
	for at := int64(0); at < m.sizeBytes; at += SectorBytes {
		sector := disk[at : at+SectorBytes]
		if _, err := d.ReadAt(sector, at); err != nil {
			for i := range sector {
				sector[i] = 0xEE
			}
		}
	}
	return disk
}

// TestReadErrors: an error of the file comes back, from wherever it is, and
// nothing stays open.
func TestReadErrors(t *testing.T) {
	for _, h := range []handmade{aFixed(), aDynamic(), hasBatmap(), aChild(0xC1, 0, locW2ru("p"))} {
		image := h.bytes()
		for n := 0; ; n++ {
			f := &memFile{data: slices.Clone(image)}
			reads := 0
			o := Options{ReadOnly: true, OpenFile: func(string, bool) (File, error) {
				return &tapFile{File: f, before: func(op) error {
					if reads++; reads == n+1 {
						return syscall.EIO
					}
					return nil
				}}, nil
			}}
			chain, err := openChain("x.vhd", &o)
			if reads <= n {
				break // it has read all that it wants
			}
			switch {
			case err == nil: // it could do without: the footer copy, a hint
				if len(chain[0].problems) == 0 {
					t.Errorf("type %d: read %d failed and nothing is said", h.kind, n)
				}
				closeChain(chain)
			case !errors.Is(err, syscall.EIO) && !errors.Is(err, ErrRawParent):
				t.Errorf("type %d, read %d: got %v, want EIO", h.kind, n, err)
			}
			if !f.closed {
				t.Errorf("type %d, read %d: file stays open", h.kind, n)
			}
		}
	}
}

// TestRepairErrors: wherever the file fails, Repair says so, and the image is
// no worse and can be repaired.
func TestRepairErrors(t *testing.T) {
	for _, c := range slices.Concat(repairCases(), batmapRepairs()) {
		t.Run(c.name, func(t *testing.T) {
			want, _, _ := repairIn(t, c.image, c.force)
			for n := 0; ; n++ {
				f := &memFile{data: slices.Clone(c.image)}
				changes := 0
				tap := &tapFile{File: f, before: func(o op) error {
					if o.kind == opRead {
						return nil
					}
					if changes++; changes == n+1 {
						return syscall.ENOSPC
					}
					return nil
				}}
				o := Options{OpenFile: func(string, bool) (File, error) { return tap, nil }}
				_, err := Repair(context.Background(), "x.vhd", RepairOptions{Force: c.force, Open: o})
				if changes <= n {
					break
				}
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("change %d: got %v, want ENOSPC", n, err)
				}
				if !c.force {
					if err := noWorse(t, c.image, f.data); err != nil {
						t.Errorf("change %d: %v", n, err)
					}
				}
				if got, _, _ := repairIn(t, f.data, c.force); !slices.Equal(handRead(t, got), handRead(t, want)) {
					t.Errorf("change %d: repaired to another disk", n)
				}
			}
		})
	}
}
