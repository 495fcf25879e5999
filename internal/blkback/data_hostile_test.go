package blkback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"xen-disk/disk"
	"xen-disk/grant"
	"xen-disk/internal/fakexen"
	"xen-disk/ring"
)

// onCopy is a door whose guest does something just before a grant copy.
type onCopy struct {
	Xen
	first func()
}

func (d *onCopy) Copy(segs []grant.CopySegment) error {
	if d.first != nil {
		d.first()
	}
	return d.Xen.Copy(segs)
}

// TestGrantRevokedInFlight: only that request fails.
func TestGrantRevokedInFlight(t *testing.T) {
	for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
		for _, op := range []uint8{fakexen.OpRead, fakexen.OpWrite} {
			t.Run(fmt.Sprintf("%v/op %d", f, op), func(t *testing.T) {
				p := newStillPlane(t)
				d, _, _ := openDisk(t, f, 640, disk.Options{})
				door := &onCopy{}
				s := p.serve(d, attached{front: fakexen.Options{Polled: true}, xen: func(x Xen) Xen { door.Xen = x; return door }})
				front := newRawFront(s, 2, func(int) uint8 { return op })
				defer front.end(t)
				front.push(3)
				s.Ready(0)
				door.first = func() { s.guest.Revoke(front.refs[3]) } // the second of request 1
				for unit, _ := s.queue().Take(); unit >= 0; unit, _ = s.queue().Take() {
					s.queue().Run(0, unit)
				}
				for i, want := range []int16{0, -1, 0} {
					if got := front.raw.Response(uint32(i)); got.ID != uint64(i) || got.Status != want {
						t.Errorf("response %+v, want id %d and status %d", got, i, want)
					}
				}
			})
		}
	}
}

// TestReadIntoTheRingItself harms the guest that asks for it.
func TestReadIntoTheRingItself(t *testing.T) {
	for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			d, _, _ := openDisk(t, f, 64, disk.Options{})
			if _, err := d.WriteAt(bytes.Repeat([]byte{0xe7}, 4096), 0); err != nil {
				t.Fatal(err)
			}
			o, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
			s, other := p.serve(d, attached{}), p.serve(o, attached{domid: 6})
			raw := s.raw()
			raw.Push(rw(fakexen.OpRead, 0, fakexen.Seg{Ref: raw.Refs()[0], Last: 7}))
			for s.stats().OK != 1 || s.busy() > 0 {
				runtime.Gosched()
			}
			raw.Kick(1)
			if err := awaitData(t, s.reports, "a report"); !errors.Is(err, ring.ErrBroken) {
				t.Errorf("reported %v, want %v", err, ring.ErrBroken)
			}
			other.unharmed()
			s.detach()
			other.unharmed()
		})
	}
}

// TestBadGrantsLeakNothing (XSA-71): many requests with one bad grant each.
func TestBadGrantsLeakNothing(t *testing.T) {
	for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			d, _, _ := openDisk(t, f, 640, disk.Options{})
			s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
			front := newRawFront(s, 3, func(i int) uint8 { return uint8(i % 2) })
			for i := range 32 {
				at := 24 + 8*(i%3) // x86_64: the gref of one segment
				binary.LittleEndian.PutUint32(front.slots[i][at:], 0xdead0000+uint32(i))
			}
			const n = 5000
			if err := front.run(deadlineData(t), n, 32); err != nil || front.bad != n {
				t.Errorf("%d of %d failed, %v", front.bad, n, err)
			}
			if got := p.m.Mapped(); got != 1 {
				t.Errorf("%d pages are mapped, want the ring", got)
			}
			front.end(t)
		})
	}
}

// TestDoubleFetch (XSA-155): a guest changes its requests while they are
// served. Whatever mixture is seen, no byte outside of segments that are good
// is read or written, in the guest or on the disk.
func TestDoubleFetch(t *testing.T) {
	const rounds, at, pattern = 300, 8, 0x50
	for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			d, image, path := openDisk(t, f, 64, disk.Options{})
			copy(image[at*512:], bytes.Repeat([]byte{pattern}, 1024))
			if _, err := d.WriteAt(image[at*512:(at+2)*512], at*512); err != nil {
				t.Fatal(err)
			}
			s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
			raw := s.raw()
			page, ref := raw.Page(false)
			b := s.guest.Page(page)
			for i := range b {
				b[i] = canary
			}
			copy(b[1024:2048], image[at*512:]) // sectors 2 and 3
			want := append([]byte(nil), b...)

			var stop atomic.Bool
			var wg sync.WaitGroup
			wg.Add(1)
			go func() { // ends with stop
				defer wg.Done()
				for n := uint32(0); !stop.Load(); n++ {
					mutate(raw.Slot(n%raw.Size()), n/raw.Size())
				}
			}()
			truth := rw(fakexen.OpRead, at, fakexen.Seg{Ref: ref, First: 2, Last: 3})
			for range rounds {
				reqs := make([]fakexen.RawReq, raw.Size())
				for i := range reqs {
					reqs[i] = truth
				}
				raw.Push(reqs...)
				for raw.RspProd() != raw.ReqProd() {
					runtime.Gosched()
				}
			}
			stop.Store(true)
			wg.Wait()
			stats := s.stats()
			t.Logf("%d OK, %d errors, %d unsupported", stats.OK, stats.Errors, stats.Unsupported)
			if stats.OK == 0 || stats.Errors == 0 {
				t.Error("the changes were all seen, or none")
			}
			if !bytes.Equal(b, want) {
				t.Error("bytes outside the segment were written to the page, or foreign ones to it")
			}
			raw.RevokePage(page, ref)
			checkFile(t, path, image)
		})
	}
}

// mutate changes what is checked of a request (x86_64), n says how: each
// field has one good value or two.
func mutate(slot []byte, n uint32) {
	flip := func(at int, bit uint32, a, b byte) {
		if n>>bit&1 == 0 {
			a = b
		}
		slot[at] = a
	}
	flip(0, 0, fakexen.OpRead, fakexen.OpWrite)
	flip(1, 1, 1, 255)  // nr_segments
	flip(28, 2, 2, 5)   // first_sect, past last_sect
	flip(29, 3, 3, 255) // last_sect
	flip(23, 4, 0, 0x80)
	flip(27, 5, 0, 0xff) // gref
}

// TestKickStorm (XSA-332): a guest that kicks without work does none, and
// another disk gets all of its own done meanwhile.
func TestKickStorm(t *testing.T) {
	p := newPlane(t)
	d, _, _ := openDisk(t, disk.Mmap, 64, disk.Options{})
	o, _, _ := openDisk(t, disk.Raw, 640, disk.Options{})
	s, other := p.serve(d, attached{}), p.serve(o, attached{domid: 6, front: fakexen.Options{Polled: true}})
	raw, front := s.raw(), newRawFront(other, 1, func(i int) uint8 { return uint8(i % 2) })
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	kicks := 0
	go func() { // ends with stop
		defer wg.Done()
		for ; !stop.Load(); kicks++ {
			raw.Kick(1)
		}
	}()
	const n = 3000
	err := front.run(deadlineData(t), n, 8)
	stop.Store(true)
	wg.Wait()
	if err != nil || front.bad > 0 || other.pulled() != n {
		t.Errorf("other disk: %d of %d pulled, %d bad responses, %v", other.pulled(), n, front.bad, err)
	}
	if stats := s.stats(); kicks == 0 || stats.Requests() > 0 || stats.Notifications > 0 || s.busy() > 0 {
		t.Errorf("%d kicks made %d requests, %d notifications", kicks, stats.Requests(), stats.Notifications)
	}
	front.end(t)
	submitOne(t, raw)
}

// submitOne proves that a ring is still served.
func submitOne(t *testing.T, raw *fakexen.Raw) {
	t.Helper()
	raw.Push(flushes(1)...)
	if r, err := raw.Responses(deadlineData(t), 1); err != nil || r[0].Status != 0 {
		t.Errorf("a request afterwards: %+v, %v", r, err)
	}
}
