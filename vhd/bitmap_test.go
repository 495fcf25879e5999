package vhd

import (
	"math/rand/v2"
	"testing"
)

// TestBitmapRuns compares runs with a walk by the specification: the first
// sector is the highest bit of the first byte.
func TestBitmapRuns(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLayer(&image{sizeBytes: 2 << 20, header: Header{BlockBytes: 2 << 20}}, newBitmaps())
	const sectors = 4096
	raw := make([]byte, 512)
	m := newBitmap(l, 0, 0, raw)
	for range 300 {
		i := r.Int64N(sectors)
		n := 1 + r.Int64N(min(sectors-i, []int64{1, 70, sectors}[r.IntN(3)]))
		added := int64(0)
		for k := i; k < i+n; k++ {
			if raw[k/8]&(0x80>>(k%8)) == 0 {
				raw[k/8] |= 0x80 >> (k % 8)
				added++
			}
		}
		if got := m.set(i, n); got != added {
			t.Fatalf("set(%d, %d): got %d new bits, want %d", i, n, got, added)
		}
		from := r.Int64N(sectors)
		most := 1 + r.Int64N(sectors-from)
		present := raw[from/8]&(0x80>>(from%8)) != 0
		want := int64(1)
		for want < most && raw[(from+want)/8]&(0x80>>((from+want)%8)) != 0 == present {
			want++
		}
		if p, got := m.run(from, most); p != present || got != want {
			t.Fatalf("run(%d, %d): got %v, %d, want %v, %d", from, most, p, got, present, want)
		}
		if got := make([]byte, 512); true {
			if m.put(got); string(got) != string(raw) {
				t.Fatal("put writes other bits")
			}
		}
		if r.IntN(30) == 0 {
			clear(raw)
			m = newBitmap(l, 0, 0, raw)
		}
		if again := newBitmap(l, 0, 0, raw); again.missing != sectors-ones(raw) {
			t.Fatalf("got %d missing, want %d", again.missing, sectors-ones(raw))
		}
	}
}

func ones(b []byte) (n int64) {
	for _, c := range b {
		for ; c != 0; c &= c - 1 {
			n++
		}
	}
	return n
}

func TestFillBits(t *testing.T) {
	for _, c := range []struct {
		n    int64
		want [3]byte
	}{
		{0, [3]byte{}},
		{1, [3]byte{0x80}},
		{8, [3]byte{0xFF}},
		{13, [3]byte{0xFF, 0xF8}},
		{24, [3]byte{0xFF, 0xFF, 0xFF}},
		{4096, [3]byte{0xFF, 0xFF, 0xFF}},
	} {
		got := [3]byte{0x55, 0x55, 0x55}
		if fillBits(got[:], c.n); got != c.want {
			t.Errorf("%d bits: got %x, want %x", c.n, got, c.want)
		}
	}
}

// TestDirtyBitmapsAreBounded: whoever makes too many bitmaps wait for a commit
// commits them, though nobody flushes.
func TestDirtyBitmapsAreBounded(t *testing.T) {
	const blocks = 3 * maxDirtyBytes / 512
	leaf := &foreign{layout: layouts()[0], sizeBytes: blocks * 1024, blockBytes: 1024, diskType: 4, parent: UUID{1}}
	parent := &foreign{layout: layouts()[0], sizeBytes: 1 << 20, blockBytes: 4096, diskType: 3, uuid: UUID{1}}
	d, err := openOver(&memFile{data: leaf.bytes()}, []*memFile{{data: parent.bytes(), identity: Identity{Inode: 2}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	p := noise(rand.New(rand.NewPCG(1, 1)), 1)
	for i := range int64(blocks) {
		if _, err := d.WriteAt(p, i*1024); err != nil {
			t.Fatal(err)
		}
		if dirty := d.bitmaps.dirtyBytes.Load(); dirty > maxDirtyBytes {
			t.Fatalf("%d bytes wait for a commit after %d blocks, want at most %d", dirty, i+1, maxDirtyBytes)
		}
	}
	held := int64(0)
	for i := range d.bitmaps.shards {
		held += d.bitmaps.shards[i].bytes
	}
	if held > cacheBytes {
		t.Errorf("the cache holds %d bytes, want at most %d", held, cacheBytes)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
