package blkback

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// TestIndicesWrapAround: they run freely through 2^32.
func TestIndicesWrapAround(t *testing.T) {
	for _, f := range formats {
		for _, start := range []uint32{1<<32 - 1, 1<<32 - 17, 1<<32 - 32, 1<<32 - 100, 1<<31 - 5} {
			t.Run(fmt.Sprintf("%v/%#x", f, start), func(t *testing.T) {
				p := newPlane(t)
				d, _, _ := openDisk(t, f, 640, disk.Options{})
				s := p.serve(d, attached{front: fakexen.Options{Polled: true}, before: func(raw *fakexen.Raw) {
					raw.SetReqProd(start)
					raw.SetRspProd(start)
				}})
				front := newRawFront(s, 1, func(i int) uint8 { return uint8(i % 2) })
				defer front.end(t)
				for depth := range 33 {
					if err := front.run(deadlineData(t), 2*depth, depth); err != nil || front.bad > 0 {
						t.Fatalf("depth %d: %d bad responses, %v", depth, front.bad, err)
					}
				}
				if got := front.cons - start; got != 32*33 || s.pulled() != uint64(got) {
					t.Errorf("%d responses to %d requests, want %d", got, s.pulled(), 32*33)
				}
			})
		}
	}
}

// TestARingThatWasServedBefore is taken up at rsp_prod: what waits is served.
func TestARingThatWasServedBefore(t *testing.T) {
	p := newPlane(t)
	d, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
	s := p.serve(d, attached{before: func(raw *fakexen.Raw) {
		raw.SetReqProd(70)
		raw.SetRspProd(70)
		raw.Push(flushes(5)...)
	}})
	raw := s.raw()
	for ctx := deadlineData(t); raw.RspProd() != 75; runtime.Gosched() {
		if err := ctx.Err(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint32(5) {
		if r := raw.Response(70 + i); r.Op != fakexen.OpFlush || r.Status != 0 {
			t.Errorf("response %d is %+v", i, r)
		}
	}
}

// TestFlushReachesTheDisk, before the data that it carries, and nothing else
// does.
func TestFlushReachesTheDisk(t *testing.T) {
	for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			inner, _, _ := openDisk(t, f, 64, disk.Options{})
			memory := &tappedMemory{}
			d, tap := disk.Disk(memory), &memory.tapped
			if f == disk.Raw {
				tap = &tapped{}
				d = tap
			}
			tap.Disk = inner
			data := bytes.Repeat([]byte{0xf1}, 512)
			tap.hook = func(op string, _ int64) error {
				got := make([]byte, 512)
				if _, err := inner.ReadAt(got, 9*512); op == "flush" && (err != nil || bytes.Equal(got, data)) {
					t.Errorf("the data of a flush are on the disk before it (%v)", err)
				}
				return nil
			}
			s := p.serve(d, attached{})
			ctx := deadlineData(t)
			if status, err := s.front.Flush(ctx); status != 0 || err != nil {
				t.Fatalf("flush: %d, %v", status, err)
			}
			if fl, all := tap.flushes.Load(), tap.all(); fl != 1 || all != 1 {
				t.Errorf("an empty flush made %d flushes of %d calls, want 1 of 1", fl, all)
			}
			status, err := s.front.Do(ctx, fakexen.Req{Op: fakexen.OpFlush, Sector: 9, Data: data})
			if status != 0 || err != nil || tap.flushes.Load() != 2 {
				t.Errorf("flush with data: %d, %v, %d flushes, want 2", status, err, tap.flushes.Load())
			}
			got := make([]byte, 512)
			if _, err := inner.ReadAt(got, 9*512); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the data of a flush are not on the disk (%v)", err)
			}
		})
	}
}

// TestReadOnlyDisk refuses what would write, and serves the rest.
func TestReadOnlyDisk(t *testing.T) {
	for _, f := range formats {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			d, want, _ := openDisk(t, f, 64, disk.Options{ReadOnly: true})
			s := p.serve(d, attached{})
			ctx, data := deadlineData(t), make([]byte, 4096)
			for _, c := range []struct {
				name string
				req  fakexen.Req
				want int16
			}{
				{"write", fakexen.Req{Op: fakexen.OpWrite, Data: data}, -1},
				{"flush with data", fakexen.Req{Op: fakexen.OpFlush, Data: data}, -1},
				{"barrier", fakexen.Req{Op: fakexen.OpBarrier, Data: data}, -2},
				{"discard", fakexen.Req{Op: fakexen.OpDiscard, NrSectors: 8}, -2},
				{"flush", fakexen.Req{Op: fakexen.OpFlush}, 0},
				{"read", fakexen.Req{Op: fakexen.OpRead, Data: data}, 0},
			} {
				if got, err := s.front.Do(ctx, c.req); got != c.want || err != nil {
					t.Errorf("%s: status %d, %v, want %d", c.name, got, err, c.want)
				}
			}
			if want != nil && !bytes.Equal(data, want[:4096]) {
				t.Error("the image has changed, or is read wrong")
			}
		})
	}
}

// TestStatsCount what was done and how.
func TestStatsCount(t *testing.T) {
	p := newPlane(t)
	inner, _, _ := openDisk(t, disk.Raw, 640, disk.Options{})
	d, _ := discarder(inner)
	s := p.serve(d, attached{})
	ctx := deadlineData(t)
	for _, r := range []fakexen.Req{
		{Op: fakexen.OpRead, Data: make([]byte, 512)},
		{Op: fakexen.OpRead, Data: make([]byte, 11*4096)},
		{Op: fakexen.OpWrite, Data: make([]byte, 4096+512)},
		{Op: fakexen.OpFlush, Data: make([]byte, 1024)},
		{Op: fakexen.OpFlush},
		{Op: fakexen.OpWrite, Data: make([]byte, 512), Sector: 640},
		{Op: fakexen.OpDiscard, NrSectors: 3},
		{Op: fakexen.OpDiscard, Sector: 630, NrSectors: 10},
		{Op: fakexen.OpDiscard},
		{Op: fakexen.OpDiscard, NrSectors: 641},
		{Op: fakexen.OpBarrier},
	} {
		if _, err := s.front.Do(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	s.detach()
	got := s.stats()
	want := Stats{Reads: 2, Writes: 2, Flushes: 2, Discards: 4, Other: 1, OK: 8, Errors: 2, Unsupported: 1,
		ReadBytes: 512 + 11*4096, WrittenBytes: 4096 + 512 + 1024, DiscardedBytes: 13 * 512, Notifications: 11}
	want.Occupancy[1] = 11
	want.Segments[1], want.Segments[2], want.Segments[11] = 1, 1, 1
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
