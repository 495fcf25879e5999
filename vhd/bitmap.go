package vhd

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// cacheBytes bounds the bitmaps of one chain that are kept. It is enough
	// for all partial blocks of 64 GiB of blocks of 2 MiB, and keeps a process
	// that serves 2 TiB of partial blocks below 96 MiB.
	cacheBytes = 16 << 20
	// cacheShards is how many locks the cache is split under, since a shard
	// reads a missing bitmap with its lock held.
	cacheShards = 64
	// maxDirtyBytes bounds the bitmaps that wait for a commit and so cannot be
	// dropped: who goes beyond commits first.
	maxDirtyBytes = cacheBytes / 4
)

// bitmap is the block bitmap of a partial block. Its words are big-endian
// pieces of what is in the file, so that the first sector is the highest bit.
// Bits are only ever set.
type bitmap struct {
	layer *layer
	block int64
	at    int64 // in the file
	// words are read by anyone who has the bitmap, and stored to with the
	// shard's lock.
	words []atomic.Uint64

	// These belong to the shard's lock.
	missing int64 // sectors of the disk whose bit is 0
	used    bool  // since the hand of the clock came by
	dirty   bool  // has bits that no commit has taken
	taken   bool  // by a commit that has not ended
}

// run says whether sector i of the block is present, and how many from there
// on, up to most, are like it.
func (m *bitmap) run(i, most int64) (present bool, n int64) {
	present = m.words[i/64].Load()<<(i%64)>>63 == 1
	for n < most {
		w := m.words[(i+n)/64].Load()
		if present {
			w = ^w
		}
		skip := (i + n) % 64
		alike := int64(bits.LeadingZeros64(w << skip))
		if alike < 64-skip {
			return present, min(n+alike, most)
		}
		n += 64 - skip
	}
	return present, most
}

// set sets the bits of n sectors from i on and returns how many were not. The
// caller has the shard's lock.
func (m *bitmap) set(i, n int64) (added int64) {
	for end := i + n; i < end; {
		skip := i % 64
		k := min(64-skip, end-i)
		mask := ^uint64(0) << (64 - k) >> skip
		w := &m.words[i/64]
		old := w.Load()
		added += int64(bits.OnesCount64(mask &^ old))
		w.Store(old | mask)
		i += k
	}
	return added
}

// put writes the bitmap as it is in the file.
func (m *bitmap) put(b []byte) {
	for i := range m.words {
		binary.BigEndian.PutUint64(b[8*i:], m.words[i].Load())
	}
}

// newBitmap makes the bitmap that lies at a place of the file, without a bit or
// with those of b.
func newBitmap(l *layer, block, at int64, b []byte) *bitmap {
	m := &bitmap{layer: l, block: block, at: at, words: make([]atomic.Uint64, l.header.bitmapBytes()/8)}
	if b == nil {
		m.missing = l.blockSectorsOf(block)
		return m
	}
	for i := range m.words {
		m.words[i].Store(binary.BigEndian.Uint64(b[8*i:]))
	}
	for i, end := int64(0), l.blockSectorsOf(block); i < end; {
		present, n := m.run(i, end-i)
		if !present {
			m.missing += n
		}
		i += n
	}
	return m
}

// bitmaps is the cache of a chain.
type bitmaps struct {
	shards [cacheShards]shard
	// shardBytes is the bound of a shard.
	shardBytes int64
	dirtyBytes atomic.Int64
}

type bitmapKey struct {
	layer *layer
	block int64
}

type shard struct {
	mu    sync.Mutex
	byKey map[bitmapKey]*bitmap
	clock []*bitmap // all of byKey, in no order
	hand  int
	bytes int64
	dirty []*bitmap
	buf   []byte
}

func newBitmaps() *bitmaps { return &bitmaps{shardBytes: cacheBytes / cacheShards} }

func (c *bitmaps) shardOf(block int64) *shard { return &c.shards[block%cacheShards] }

// get returns the bitmap of an allocated block, or nil when the block is full.
// A bitmap in hand stays right for who reads: it lacks no bit of a write that
// ended before get was called.
func (c *bitmaps) get(l *layer, block int64) (*bitmap, error) {
	if l.full.has(block) {
		return nil, nil
	}
	s := c.shardOf(block)
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.find(s, l, block)
}

// find is get with the shard's lock.
func (c *bitmaps) find(s *shard, l *layer, block int64) (*bitmap, error) {
	if m := s.byKey[bitmapKey{l, block}]; m != nil {
		m.used = true
		return m, nil
	}
	if l.full.has(block) {
		return nil, nil
	}
	n := l.header.bitmapBytes()
	if int64(len(s.buf)) < n {
		s.buf = make([]byte, n)
	}
	at := int64(l.bat[block].Load()) * SectorBytes
	if err := readFull(l.file, s.buf[:n], at); err != nil {
		return nil, fmt.Errorf("read the bitmap of block %d: %w", block, err)
	}
	m := newBitmap(l, block, at, s.buf[:n])
	if m.missing == 0 {
		l.full.set(block)
		return nil, nil
	}
	c.insert(s, m)
	return m, nil
}

// add puts the bitmap of a block that nobody has seen into the cache, to be
// committed.
func (c *bitmaps) add(m *bitmap) {
	s := c.shardOf(m.block)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.insert(s, m)
	c.touch(s, m)
}

// mark sets the bits of n sectors of an allocated block from i on, whose data
// have been written, and says whether any was new.
func (c *bitmaps) mark(l *layer, block, i, n int64) (changed bool, err error) {
	if l.full.has(block) {
		return false, nil
	}
	s := c.shardOf(block)
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := c.find(s, l, block)
	if m == nil {
		return false, err
	}
	added := m.set(i, n)
	if added == 0 {
		return false, nil
	}
	c.touch(s, m)
	if m.missing -= added; m.missing == 0 {
		l.full.set(block)
	}
	return true, nil
}

// touch queues a bitmap for the next commit.
func (c *bitmaps) touch(s *shard, m *bitmap) {
	if !m.dirty {
		m.dirty = true
		s.dirty = append(s.dirty, m)
		c.dirtyBytes.Add(m.bytes())
	}
}

// take calls each of the bitmaps that wait for a commit, which keeps them in
// the cache until it gives them back.
func (c *bitmaps) take(each func(*bitmap)) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, m := range s.dirty {
			each(m)
			m.dirty, m.taken = false, true
			c.dirtyBytes.Add(-m.bytes())
		}
		clear(s.dirty)
		s.dirty = s.dirty[:0]
		s.mu.Unlock()
	}
}

// giveBack ends a commit for a bitmap; a failed one has to be done again.
func (c *bitmaps) giveBack(m *bitmap, failed bool) {
	s := c.shardOf(m.block)
	s.mu.Lock()
	defer s.mu.Unlock()
	m.taken = false
	if failed {
		c.touch(s, m)
	}
}

func (m *bitmap) bytes() int64 { return 8 * int64(len(m.words)) }

// insert makes room and keeps m. What waits for a commit is not dropped, so
// the bound may be passed by maxDirtyBytes.
func (c *bitmaps) insert(s *shard, m *bitmap) {
	for tries := 2 * len(s.clock); tries > 0 && len(s.clock) > 0 && s.bytes+m.bytes() > c.shardBytes; tries-- {
		s.hand %= len(s.clock)
		old := s.clock[s.hand]
		switch {
		case old.dirty || old.taken:
			s.hand++
		case old.used:
			old.used = false
			s.hand++
		default:
			last := len(s.clock) - 1
			s.clock[s.hand], s.clock[last] = s.clock[last], nil
			s.clock = s.clock[:last]
			s.bytes -= old.bytes()
			delete(s.byKey, bitmapKey{old.layer, old.block})
		}
	}
	if s.byKey == nil {
		s.byKey = make(map[bitmapKey]*bitmap)
	}
	m.used = true
	s.byKey[bitmapKey{m.layer, m.block}] = m
	s.clock = append(s.clock, m)
	s.bytes += m.bytes()
}
