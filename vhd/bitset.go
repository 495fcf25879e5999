package vhd

import "sync/atomic"

// bitset is one bit a block, for many readers and writers at once.
type bitset []atomic.Uint64

func newBitset(n int64) bitset { return make(bitset, (n+63)/64) }

func (s bitset) has(i int64) bool { return s[i/64].Load()&(1<<(i%64)) != 0 }

func (s bitset) set(i int64) { s[i/64].Or(1 << (i % 64)) }

func (s bitset) clear(i int64) { s[i/64].And(^uint64(1 << (i % 64))) }
