package disk

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// model is what a disk must hold.
type model struct {
	r     *rand.Rand
	bytes []byte
	maybe []bool // sectors that were discarded: as in bytes, or zeros
}

// testModel does random things to a disk and to a model of it.
func testModel(t *testing.T, s subject) {
	d := s.open(t, Options{})
	sectors := min(d.Info().SizeBytes, subjectBytes) / sectorBytes
	m := &model{r: random(t), bytes: make([]byte, sectors*sectorBytes), maybe: make([]bool, sectors)}
	if n, err := d.ReadAt(m.bytes, 0); n != len(m.bytes) || err != nil {
		t.Fatal(n, err)
	}
	buf := make([]byte, len(m.bytes))
	for step := range 2000 {
		first := m.r.Int64N(sectors)
		count := 1 + m.r.Int64N(min(64, sectors-first))
		if step%100 == 99 {
			must(t, d.Close())
			d = s.open(t, Options{})
		}
		what, err := m.step(d, s.keeps, first, count, buf[:count*sectorBytes])
		if err != nil {
			t.Fatalf("step %d: %s of %d sectors at %d: %v", step, what, count, first, err)
		}
		if what == "read" {
			at := differs(buf, m.bytes[first*sectorBytes:], m.maybe[first:first+count])
			if at >= 0 {
				t.Fatalf("step %d: read of %d sectors at %d: sector %d differs from the model", step, count, first, at)
			}
		}
	}
	if s.keeps && differs(readAll(t, d), m.bytes, m.maybe) >= 0 {
		t.Fatal("the disk differs from the model at the end")
	}
}

// step does one thing and says which.
func (m *model) step(d Disk, keeps bool, first, count int64, p []byte) (what string, err error) {
	off, n := first*sectorBytes, count*sectorBytes
	want, maybe := m.bytes[off:off+n], m.maybe[first:first+count]
	zeroer, _ := d.(Zeroer)
	discarder, _ := d.(Discarder)
	k := m.r.IntN(100)
	switch {
	case k < 10 && zeroer != nil:
		clear(want)
		clear(maybe)
		return "zeros", zeroer.WriteZeroes(off, n, k%2 == 0)
	case k < 20 && discarder != nil:
		for i := range maybe {
			maybe[i] = true
		}
		return "discard", discarder.Discard(off, n)
	case k < 55:
		fill(m.r, p)
		if keeps {
			copy(want, p)
			clear(maybe)
		}
		_, err := d.WriteAt(p, off)
		return "write", err
	case k < 57:
		return "flush", d.Flush()
	}
	fill(m.r, p)
	_, err = d.ReadAt(p, off)
	return "read", err
}

// TestModelSeesWrongSectors holds the model's eye against what it must refuse.
func TestModelSeesWrongSectors(t *testing.T) {
	old, none := pattern(sectorBytes), make([]byte, sectorBytes)
	half := bytes.Clone(old)
	clear(half[:sectorBytes/2])
	for _, c := range []struct {
		name  string
		got   []byte
		maybe bool
		want  int
	}{
		{"old bytes", old, false, -1},
		{"old bytes of a discarded sector", old, true, -1},
		{"zeros of a discarded sector", none, true, -1},
		{"zeros of a written sector", none, false, 0},
		{"half of each", half, true, 0},
	} {
		if got := differs(c.got, old, []bool{c.maybe}); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
