package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// chainModel is a chain in memory, and what its disk must contain.
type chainModel struct {
	t    testing.TB
	r    *rand.Rand
	d    *Disk
	want []byte
	// maybeZero are the sectors that were discarded: zeros will do as well.
	maybeZero map[int64]bool
	files     []*memFile // the leaf's first
	interval  time.Duration
}

// noise makes n sectors, none of which is zeros or like another one.
func noise(r *rand.Rand, n int64) []byte {
	b := make([]byte, n*SectorBytes)
	for i := 0; i < len(b); i += SectorBytes {
		sector := b[i:][:SectorBytes]
		binary.LittleEndian.PutUint64(sector, r.Uint64()|1)
		for k := 8; k < SectorBytes; k *= 2 {
			copy(sector[k:], sector[:k])
		}
	}
	return b
}

// openImages reads the metadata of files in memory.
func openImages(t testing.TB, files []*memFile, leaf File) (chain []*image) {
	t.Helper()
	for i, f := range files {
		file := File(f)
		if i == 0 && leaf != nil {
			file = leaf
		}
		m, err := readImage(fmt.Sprintf("image%d.vhd", i), file)
		if err != nil {
			t.Fatalf("read image %d: %v", i, err)
		}
		chain = append(chain, m)
	}
	return chain
}

func (m *chainModel) open(readOnly bool) {
	m.t.Helper()
	for _, f := range m.files {
		f.closed = false
	}
	d, err := newDisk(openImages(m.t, m.files, nil), Options{ReadOnly: readOnly, CommitInterval: m.interval})
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	if m.r.IntN(2) == 0 {
		d.bitmaps.shardBytes = 1024 // two bitmaps at most
	}
	m.d = d
}

func (m *chainModel) close() {
	m.t.Helper()
	if err := m.d.Close(); err != nil {
		m.t.Fatalf("close: %v", err)
	}
	if faults := audit(m.files[0].content()); len(faults) != 0 {
		m.t.Fatalf("after close: %q", faults)
	}
}

// stack puts a new leaf on the chain.
func (m *chainModel) stack(f *foreign, device bool) {
	f.uuid = UUID{byte(len(m.files) + 1)}
	f.diskType = 4
	if len(m.files) == 0 {
		f.diskType = 3 - uint32(m.r.IntN(4)/3)
	}
	file := &memFile{data: f.bytes(), identity: Identity{Inode: uint64(len(m.files))}}
	if device && f.diskType != 2 {
		file.data = asDevice(m.r, file.data, f.blocks()*(f.blockBytes+f.bitmapBytes()+dataAlign+footerBytes))
	}
	file.identity.Block = device
	m.files = slices.Insert(m.files, 0, file)
	below := m.want
	m.want = make([]byte, f.sizeBytes)
	copy(m.want, below)
	for s, b := range f.held {
		copy(m.want[s*SectorBytes:], b)
	}
	for s := range m.maybeZero {
		if s*SectorBytes >= f.sizeBytes || f.held[s] != nil {
			delete(m.maybeZero, s)
		}
	}
}

// asDevice puts an image on a device full of another tenant's bytes, with the
// footer at its end.
func asDevice(r *rand.Rand, image []byte, spare int64) []byte {
	n := len(image) - footerBytes
	out := slices.Concat(image[:n], noise(r, spare/SectorBytes), image[n:])
	return out
}

func (m *chainModel) check(off, n int64, got []byte) {
	m.t.Helper()
	for s := off / SectorBytes; s < (off+n)/SectorBytes; s++ {
		have := got[s*SectorBytes-off:][:SectorBytes]
		if bytes.Equal(have, m.want[s*SectorBytes:][:SectorBytes]) || m.maybeZero[s] && isZero(have) {
			continue
		}
		m.t.Fatalf("sector %d: got %x..., want %x...", s, have[:16], m.want[s*SectorBytes:][:16])
	}
}

// somewhere is a range, short ones more often.
func (m *chainModel) somewhere() (off, n int64) {
	sectors := int64(len(m.want)) / SectorBytes
	n = 1 + m.r.Int64N(min(sectors, []int64{1, 8, 64, 700, sectors}[m.r.IntN(5)]))
	return m.r.Int64N(sectors-n+1) * SectorBytes, n * SectorBytes
}

func (m *chainModel) verifyAll() {
	m.t.Helper()
	got := make([]byte, len(m.want))
	if _, err := m.d.ReadAt(got, 0); err != nil {
		m.t.Fatal(err)
	}
	m.check(0, int64(len(got)), got)
	for off := int64(0); off < m.d.SizeBytes(); {
		e, err := m.d.NextExtent(off)
		if err != nil {
			m.t.Fatal(err)
		}
		if e.Off != off || e.Len <= 0 || e.Len%SectorBytes != 0 || e.Len > m.d.SizeBytes()-off || !e.Allocated && !e.Zero {
			m.t.Fatalf("extent %+v at %d", e, off)
		}
		if e.Zero && bytes.Trim(got[off:off+e.Len], "\x00") != nil {
			m.t.Fatalf("extent %+v is not zero", e)
		}
		off += e.Len
	}
}

func (m *chainModel) write(off, n int64, p []byte) {
	copy(m.want[off:off+n], p)
	for s := off / SectorBytes; s < (off+n)/SectorBytes; s++ {
		delete(m.maybeZero, s)
	}
}

// step does one thing at random.
func (m *chainModel) step() {
	m.t.Helper()
	off, n := m.somewhere()
	var err error
	switch k := m.r.IntN(20); {
	case k < 8:
		p := noise(m.r, n/SectorBytes)
		_, err = m.d.WriteAt(p, off)
		m.write(off, n, p)
	case k < 9:
		_, err = m.d.WriteAt(make([]byte, n), off)
		m.write(off, n, make([]byte, n))
	case k < 11:
		err = m.d.WriteZeroes(off, n, k == 9)
		m.write(off, n, make([]byte, n))
	case k < 12:
		err = m.d.Discard(off, n)
		for s := off / SectorBytes; s < (off+n)/SectorBytes; s++ {
			m.maybeZero[s] = true
		}
	case k < 14:
		err = m.d.Flush()
	case k < 19:
		p := make([]byte, n)
		if _, err = m.d.ReadAt(p, off); err == nil {
			m.check(off, n, p)
		}
	default:
		m.close()
		m.open(false)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// randomImage is an image as one of the programs would have left it, for a
// place in a chain.
func randomImage(r *rand.Rand, sizeBytes int64) *foreign {
	f := &foreign{
		layout:     layouts()[r.IntN(len(layouts()))],
		sizeBytes:  sizeBytes,
		blockBytes: []int64{512, 1024, 4096, 16 << 10, 64 << 10, 2 << 20, 8 << 20}[r.IntN(7)],
		held:       map[int64][]byte{},
		garbage:    r,
	}
	for range r.IntN(4) {
		for s, n := r.Int64N(sizeBytes/512), r.Int64N(40); n > 0 && s < sizeBytes/512; s, n = s+1, n-1 {
			f.held[s] = noise(r, 1)
		}
	}
	return f
}

// TestModel compares chains with what was written to them.
func TestModel(t *testing.T) {
	base := rand.Uint64()
	for i := range uint64(40) {
		seed := base + i
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			m := &chainModel{t: t, r: r, maybeZero: map[int64]bool{}, interval: -1}
			size := 512 * (1 + r.Int64N([]int64{9, 100, 3000, 12000}[r.IntN(4)]))
			for range 1 + r.IntN(4) {
				m.stack(randomImage(r, size), r.IntN(5) == 0)
				m.open(false)
				for range 60 {
					m.step()
				}
				m.verifyAll()
				m.close()
				m.open(true)
				m.verifyAll()
				m.close()
				if r.IntN(2) == 0 {
					size = 512 * (1 + r.Int64N(2*size/512))
				}
			}
		})
	}
}
