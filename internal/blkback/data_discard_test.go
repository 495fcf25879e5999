package blkback

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// keeping are the two modes in which a disk sees its discards.
var keeping = []disk.Format{disk.Mmap, disk.Raw}

// A span is a discard as a disk sees it, in bytes.
type span struct{ off, n int64 }

// TestDiscardReachesTheDisk: the very range that was asked for, and the data
// next to it stay.
func TestDiscardReachesTheDisk(t *testing.T) {
	const sectors = 1000
	for _, f := range keeping {
		for _, abi := range abis {
			t.Run(fmt.Sprintf("%v/%s", f, abi), func(t *testing.T) {
				p := newPlane(t)
				inner, want, path := openDisk(t, f, sectors, disk.Options{})
				d, tap := discarder(inner)
				var seen []span
				zero := tap.discard
				tap.discard = func(off, n int64) error {
					seen = append(seen, span{off, n})
					return zero(off, n)
				}
				s := p.serve(d, attached{front: fakexen.Options{ABI: abi, WideIDs: true}})
				ctx := deadlineData(t)
				for _, c := range []struct{ sector, nr uint64 }{
					{3, 1}, {8, 8}, {0, 0}, {13, 100}, {sectors, 0}, {sectors - 1, 1}, {0, sectors},
				} {
					if status, err := s.front.Discard(ctx, c.sector, c.nr); status != 0 || err != nil {
						t.Fatalf("discard of %d at %d: %d, %v", c.nr, c.sector, status, err)
					}
					clear(want[c.sector*512 : (c.sector+c.nr)*512])
					got := make([]byte, len(want))
					if _, err := inner.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("discard of %d at %d: other bytes are zero (%v)", c.nr, c.sector, err)
					}
				}
				checkImage(t, s, path, want)
				if all := []span{{3 * 512, 512}, {8 * 512, 8 * 512}, {13 * 512, 100 * 512},
					{(sectors - 1) * 512, 512}, {0, sectors * 512}}; !slices.Equal(seen, all) {
					t.Errorf("the disk saw %v, want %v", seen, all)
				}
				if got := p.m.Stats().CopyCalls; got != 0 {
					t.Errorf("discards copied %d times", got)
				}
			})
		}
	}
}

// TestDiscardFreesSpaceOfTheImage: the real disks, from the ring to the file
// system, which has its blocks back.
func TestDiscardFreesSpaceOfTheImage(t *testing.T) {
	const sectors, at, nr = 4096, 1024, 2048 // 1 MiB of 2
	for _, f := range keeping {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			d, want, path := openDisk(t, f, sectors, disk.Options{})
			must(t, d.Flush()) // a file's blocks may be counted only then
			s := p.serve(d, attached{})
			before := blocks(t, path)
			if status, err := s.front.Discard(deadlineData(t), at, nr); status != 0 || err != nil {
				t.Fatalf("discard: %d, %v", status, err)
			}
			clear(want[at*512 : (at+nr)*512])
			checkImage(t, s, path, want)
			const own = 64 // the file system may need some to describe the hole
			if after := blocks(t, path); before-after < nr-own {
				t.Errorf("the image has %d blocks of 512 bytes less, want %d", before-after, nr)
			}
		})
	}
}

// blocks is how much of a file is stored, in units of 512 bytes (stat(2)).
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// TestMalformedDiscards tells the lies that only who takes discards is told.
func TestMalformedDiscards(t *testing.T) {
	var all []lie
	for _, flag := range []uint8{0, 1, 0xff} { // secure is not offered: ignored
		for _, c := range []struct {
			want       int16
			sector, nr uint64
		}{
			{0, 0, 0}, {0, 3, 1}, {0, lieSectors, 0}, {0, lieSectors - 1, 1}, {0, 0, lieSectors},
			{-1, lieSectors, 1}, {-1, lieSectors - 1, 2}, {-1, 0, lieSectors + 1}, {-1, lieSectors + 1, 0},
			{-1, 0, 1<<64 - 1}, {-1, 1, 1<<64 - 1}, {-1, 16, 1<<64 - 8}, {-1, 1<<64 - 1, 2}, {-1, 1 << 63, 1 << 63},
			{-1, 0, 1 << 55}, {-1, 0, 1<<55 | 8}, {-1, 1<<55 | 8, 8}, {-1, 1 << 54, 1 << 54}, {-1, 1<<64 - 1, 1<<64 - 1},
		} {
			all = append(all, discardLie(c.want, flag, c.sector, c.nr))
		}
	}
	for _, f := range formats {
		for _, abi := range abis {
			t.Run(fmt.Sprintf("%v/%s", f, abi), func(t *testing.T) {
				p := newPlane(t)
				inner, _, _ := openDisk(t, f, lieSectors, disk.Options{})
				d, tap := discarder(inner)
				s := p.serve(d, attached{front: fakexen.Options{ABI: abi}})
				s.limits.Sectors = lieSectors // discard's is more
				if tap != nil {
					tap.discard = func(off, n int64) error {
						if off < 0 || n <= 0 || off%512 != 0 || n%512 != 0 || off+n > lieSectors*512 {
							t.Errorf("the disk saw a discard of %d at %d", n, off)
						}
						return nil
					}
				}
				o, _, _ := openDisk(t, disk.Mmap, 64, disk.Options{})
				l := newLiar(s, p.serve(o, attached{domid: 6}))
				for _, c := range all {
					l.tell(t, &c)
				}
				for _, ref := range []uint32{l.good, l.ro, l.foreign} {
					s.guest.Revoke(ref)
				}
			})
		}
	}
}

// TestDiscardFails: each is an error of its own request, and none is answered
// as unsupported, which would end all discards of that guest.
func TestDiscardFails(t *testing.T) {
	for _, f := range keeping {
		for _, failure := range []error{syscall.EIO, syscall.ENOSPC, syscall.EOPNOTSUPP, disk.ErrRange, disk.ErrReadOnly, fs.ErrClosed} {
			t.Run(fmt.Sprintf("%v/%v", f, failure), func(t *testing.T) {
				p := newPlane(t)
				inner, _, _ := openDisk(t, f, 32*88+1, disk.Options{})
				d, tap := discarder(inner)
				var calls, failed atomic.Int64
				tap.hook = func(op string, _ int64) error {
					if op == "discard" && calls.Add(1)%3 == 0 {
						failed.Add(1)
						return failure
					}
					return nil
				}
				s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
				front := newRawFront(s, 1, func(i int) uint8 { return []uint8{0, 1, 3, 5}[i%4] })
				const n = 960
				if err := front.run(deadlineData(t), n, 32); err != nil {
					t.Fatal(err)
				}
				if got := failed.Load(); int64(front.bad) != got || calls.Load() != n/4 {
					t.Errorf("%d of %d discards failed, but %d requests", got, calls.Load(), front.bad)
				}
				if stats := s.stats(); stats.Unsupported != 0 || stats.Discards != n/4 {
					t.Errorf("%d of %d discards unsupported, want none", stats.Unsupported, stats.Discards)
				}
				front.end(t)
			})
		}
	}
}

// TestStuckDiscard: one may be of the whole disk and take its time. It gets no
// more than its share of the workers, and a guest that is destroyed meanwhile
// has its pages back at once.
func TestStuckDiscard(t *testing.T) {
	for _, f := range keeping {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			inner, _, _ := openDisk(t, f, 32*88+1, disk.Options{})
			d, tap := discarder(inner)
			k := newStuck(t)
			tap.hook = k.hold
			o, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
			s, other := p.serve(d, attached{front: fakexen.Options{Polled: true}}), p.serve(o, attached{domid: 6})
			front := newRawFront(s, 1, func(int) uint8 { return fakexen.OpDiscard })
			front.push(32)
			k.wait(t, map[disk.Format]int64{disk.Mmap: 1, disk.Raw: Workers / 2}[f])
			other.unharmed()
			s.stop()
			must(t, s.sever())
			if got := s.door.Mapped(); got != 0 {
				t.Errorf("%d pages are mapped while discards hang, want none", got)
			}
			k.release()
			must(t, s.drain(nil))
			if stats := s.stats(); stats.Discards != 32 || stats.Answered() != 32 || front.raw.RspProd() != 0 {
				t.Errorf("%d discards, %d ended, rsp_prod %d", stats.Discards, stats.Answered(), front.raw.RspProd())
			}
			s.detach()
			front.end(t)
		})
	}
}

// TestDiscardDoubleFetch (XSA-155): a guest changes its discards while they
// are served. The disk sees none but what was checked.
func TestDiscardDoubleFetch(t *testing.T) {
	const rounds, sectors, at, nr = 300, 64, 8, 16
	for _, f := range keeping {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			inner, _, _ := openDisk(t, f, sectors, disk.Options{})
			d, tap := discarder(inner)
			tap.discard = func(off, n int64) error {
				if off != at*512 || n != nr*512 {
					t.Errorf("the disk saw a discard of %d bytes at %d", n, off)
				}
				return nil
			}
			s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
			raw := s.raw()
			var stop atomic.Bool
			var wg sync.WaitGroup
			wg.Add(1)
			go func() { // ends with stop
				defer wg.Done()
				for n := uint32(0); !stop.Load(); n++ {
					mutateDiscard(raw.Slot(n%raw.Size()), n/raw.Size())
				}
			}()
			truth := fakexen.RawReq{Op: fakexen.OpDiscard, Sector: at, NrSectors: nr}
			for range rounds {
				raw.Push(slices.Repeat([]fakexen.RawReq{truth}, int(raw.Size()))...)
				for raw.RspProd() != raw.ReqProd() {
					runtime.Gosched()
				}
			}
			stop.Store(true)
			wg.Wait()
			stats := s.stats()
			t.Logf("%d OK, %d errors", stats.OK, stats.Errors)
			if stats.OK == 0 || stats.Errors == 0 {
				t.Error("the changes were all seen, or none")
			}
		})
	}
}

// mutateDiscard changes what is checked of a discard (x86_64); every mixture
// but the truth is past the end.
func mutateDiscard(slot []byte, n uint32) {
	flip := func(at int, bit uint32, a, b byte) {
		if n>>bit&1 == 0 {
			a = b
		}
		slot[at] = a
	}
	flip(1, 0, 0, 0xff)  // flag
	flip(23, 1, 0, 0xff) // sector_number
	flip(31, 2, 0, 0x80) // nr_sectors
	if n>>3&1 == 0 {
		binary.LittleEndian.PutUint32(slot[26:], 0) // and half of it
	} else {
		binary.LittleEndian.PutUint32(slot[26:], 0xffffffff)
	}
}
