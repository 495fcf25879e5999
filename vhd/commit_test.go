package vhd

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// TestCommitMeetsAllocation: a commit that comes in the middle of an
// allocation writes nothing of it but to its place.
func TestCommitMeetsAllocation(t *testing.T) {
	const blocks = 20000
	leaf := &foreign{layout: layouts()[0], sizeBytes: blocks * 1024, blockBytes: 1024, diskType: 4, parent: UUID{1}}
	parent := &foreign{layout: layouts()[0], sizeBytes: 1 << 20, blockBytes: 4096, diskType: 3, uuid: UUID{1}}
	end := leaf.tableAt + blocks*(4+2048+512)
	file := &tapFile{File: &memFile{data: leaf.bytes()}, before: func(o op) error {
		if o.kind == opWrite && o.off > 2*end {
			return fmt.Errorf("%d bytes written at %d", o.n, o.off)
		}
		return nil
	}}
	d, err := openOver(file, []*memFile{{data: parent.bytes(), identity: Identity{Inode: 2}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	var writers, flusher goroutines
	var stop atomic.Bool
	flusher.Go(func() {
		for !stop.Load() {
			if err := d.Flush(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range int64(4) {
		writers.Go(func() {
			p := noise(rand.New(rand.NewPCG(uint64(i), 0)), 1)
			for b := i; b < blocks; b += 4 {
				if _, err := d.WriteAt(p, b*1024); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	flusher.Wait()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
