package blkback

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// TestDiskFails: every nth call fails, and exactly the requests that made
// those calls are answered with an error.
func TestDiskFails(t *testing.T) {
	for _, failure := range []error{syscall.EIO, syscall.ENOSPC, disk.ErrRange} {
		for _, nth := range []int64{1, 2, 7} {
			t.Run(fmt.Sprintf("%v/%d", failure, nth), func(t *testing.T) {
				p := newPlane(t)
				inner, _, _ := openDisk(t, disk.Raw, 640, disk.Options{})
				d := &tapped{Disk: inner}
				var calls, failed atomic.Int64
				d.hook = func(string, int64) error {
					if calls.Add(1)%nth == 0 {
						failed.Add(1)
						return failure
					}
					return nil
				}
				o, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
				s, other := p.serve(d, attached{front: fakexen.Options{Polled: true}}), p.serve(o, attached{domid: 6})
				front := newRawFront(s, 1, func(i int) uint8 { return []uint8{0, 1, 3}[i%3] })
				const n = 1000
				if err := front.run(deadlineData(t), n, 32); err != nil {
					t.Fatal(err)
				}
				if got := failed.Load(); int64(front.bad) != got || calls.Load() != n {
					t.Errorf("%d of %d calls failed, but %d requests", got, calls.Load(), front.bad)
				}
				other.unharmed()
				front.end(t)
			})
		}
	}
}

// TestAFailedReadShowsNothing: a worker's buffer has held other guests' data.
func TestAFailedReadShowsNothing(t *testing.T) {
	p := newPlane(t)
	inner, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
	d := &tapped{Disk: inner, hook: func(string, int64) error { return syscall.EIO }}
	s := p.serve(d, attached{})
	data := make([]byte, 4096)
	ctx := deadlineData(t)
	page := s.guest.AllocPage()
	copy(s.guest.Page(page), bytes.Repeat([]byte{canary}, 4096))
	ref := s.guest.Grant(page, 0, false)
	status, err := s.front.Do(ctx, fakexen.Req{Op: fakexen.OpRead, Segs: []fakexen.Seg{{Ref: ref, Last: 7}}})
	copy(data, s.guest.Page(page))
	if status != -1 || err != nil || !bytes.Equal(data, bytes.Repeat([]byte{canary}, 4096)) {
		t.Errorf("status %d, %v, or the page was written", status, err)
	}
	s.guest.Revoke(ref)
}

// TestTruncatedImage: an mmap image that shrinks under load costs its own
// requests an error each, and works again when it has grown. The process and
// the other disks live.
func TestTruncatedImage(t *testing.T) {
	const sectors = 32 * 88
	p := newPlane(t)
	d, _, path := openDisk(t, disk.Mmap, sectors+1, disk.Options{})
	o, _, _ := openDisk(t, disk.Mmap, 64, disk.Options{})
	s, other := p.serve(d, attached{front: fakexen.Options{Polled: true}}), p.serve(o, attached{domid: 6})
	front, ctx := newRawFront(s, 11, func(i int) uint8 { return uint8(i % 2) }), deadlineData(t)
	defer front.end(t)
	run := func() (bad int) {
		t.Helper()
		before := front.bad
		if err := front.run(ctx, 320, 32); err != nil {
			t.Fatal(err)
		}
		return front.bad - before
	}
	if bad := run(); bad != 0 {
		t.Fatalf("%d of 320 failed on a whole image", bad)
	}
	for range 3 {
		// Under load first, when it matters not which requests fail.
		done := make(chan error, 1)
		var stop atomic.Bool
		go func() { // ends with stop
			var err error
			for n := 0; !stop.Load() && err == nil; n++ {
				err = os.Truncate(path, int64(n%2)*(sectors+1)*512)
			}
			done <- err
		}()
		for range 5 {
			run()
		}
		stop.Store(true)
		must(t, awaitData(t, done, "the one who truncates"))
		must(t, os.Truncate(path, sectors*512/2))
		// Now the first half of the requests is inside.
		if bad := run(); bad != 160 {
			t.Errorf("%d of 320 failed on half an image, want 160", bad)
		}
		other.unharmed()
		must(t, os.Truncate(path, (sectors+1)*512))
		if bad := run(); bad != 0 {
			t.Errorf("%d of 320 failed on an image that has grown again", bad)
		}
	}
}

// A stuck disk holds its calls until they are let go.
type stuck struct {
	inside atomic.Int64
	letGo  chan struct{}
	once   sync.Once
}

func newStuck(t *testing.T) *stuck {
	k := &stuck{letGo: make(chan struct{})}
	t.Cleanup(k.release)
	return k
}

func (k *stuck) hold(string, int64) error {
	k.inside.Add(1)
	defer k.inside.Add(-1)
	<-k.letGo
	return nil
}

func (k *stuck) release() { k.once.Do(func() { close(k.letGo) }) }

func (k *stuck) wait(t *testing.T, n int64) {
	t.Helper()
	for ctx := deadlineData(t); k.inside.Load() != n; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatalf("%d calls are inside the disk, want %d", k.inside.Load(), n)
		}
	}
}

// stuckDisks hold reads and writes, and for the one that is memory flushes.
func stuckDisks(t *testing.T, f disk.Format) (disk.Disk, *stuck) {
	inner, _, _ := openDisk(t, f, 32*88+1, disk.Options{})
	k := newStuck(t)
	if f == disk.Mmap {
		return &tappedMemory{tapped{Disk: inner, hook: k.hold}}, k
	}
	return &tapped{Disk: inner, hook: k.hold}, k
}

// TestDrainWaitsForTheDisk, or says how many it did not wait for.
func TestDrainWaitsForTheDisk(t *testing.T) {
	p := newPlane(t)
	d, k := stuckDisks(t, disk.Raw)
	s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
	front := newRawFront(s, 1, func(i int) uint8 { return uint8(i % 2) })
	front.push(5)
	k.wait(t, 5)
	s.stop()
	now := make(chan time.Time, 1)
	now <- time.Time{}
	if err := s.drain(now); !errors.Is(err, errBusy) || s.busy() != 5 {
		t.Errorf("out of time: %v, %d busy, want %v and 5", err, s.busy(), errBusy)
	}
	drained := make(chan error, 1)
	go func() { drained <- s.drain(nil) }() // ends with the disk
	if len(drained) > 0 {
		t.Error("drained with requests inside the disk")
	}
	front.push(3) // too late: nobody pulls
	raw := front.raw
	raw.Kick(1)
	k.release()
	must(t, awaitData(t, drained, "the drain"))
	if got := raw.RspProd(); got != 5 || s.busy() != 0 {
		t.Errorf("drained with rsp_prod %d and %d busy, want 5 and 0", got, s.busy())
	}
	s.detach()
	front.end(t)
}

// TestStuckDiskLeavesWorkers: a disk that hangs gets no more than its share of
// them, so another is served, and itself again once it wakes up.
func TestStuckDiskLeavesWorkers(t *testing.T) {
	p := newPlane(t)
	d, k := stuckDisks(t, disk.Raw)
	o, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
	s, other := p.serve(d, attached{front: fakexen.Options{Polled: true}}), p.serve(o, attached{domid: 6})
	front := newRawFront(s, 2, func(i int) uint8 { return uint8(i % 2) })
	front.push(32)
	k.wait(t, Workers/2)
	other.unharmed()
	k.wait(t, Workers/2)
	k.release()
	s.stop()
	must(t, s.drain(nil))
	if stats := s.stats(); stats.Answered() != 32 {
		t.Errorf("%d requests answered, want 32", stats.Answered())
	}
	s.detach()
	front.end(t)
}

// TestDeadGuestOfAStuckDisk: its pages are unmapped at once, whoever is still
// inside the disk; the late answers touch nothing. The pretend machine really
// unmaps the ring, so a touch is a SIGSEGV.
func TestDeadGuestOfAStuckDisk(t *testing.T) {
	for _, f := range []disk.Format{disk.Mmap, disk.Raw} {
		for _, dead := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/dead=%v", f, dead), func(t *testing.T) {
				p := newPlane(t)
				d, k := stuckDisks(t, f)
				o, _, _ := openDisk(t, disk.Raw, 64, disk.Options{})
				s, other := p.serve(d, attached{front: fakexen.Options{Polled: true}}), p.serve(o, attached{domid: 6})
				front := newRawFront(s, 2, func(i int) uint8 { return []uint8{3, 1, 0}[i%3] })
				front.push(20)
				k.wait(t, map[disk.Format]int64{disk.Mmap: 1, disk.Raw: Workers / 2}[f])
				was := front.raw.RspProd()
				s.stop()
				if dead {
					s.guest.Kill()
				}
				must(t, s.sever())
				if got := s.door.Mapped(); got != 0 || len(p.m.Zombies()) != 0 {
					t.Errorf("%d pages mapped, zombies %v, want none", got, p.m.Zombies())
				}
				notified := p.m.Stats().ToGuest
				k.release()
				must(t, s.drain(nil))
				if got := front.raw.RspProd(); got != was {
					t.Errorf("rsp_prod went from %d to %d after the ring was taken away", was, got)
				}
				if got := p.m.Stats().ToGuest; got != notified {
					t.Errorf("%d notifications after the ring was taken away", got-notified)
				}
				if stats := s.stats(); stats.Requests() != 20 || stats.Answered() != 20 {
					t.Errorf("%d pulled, %d ended, want 20 each", stats.Requests(), stats.Answered())
				}
				s.detach()
				if !dead {
					front.end(t)
				}
				other.unharmed()
			})
		}
	}
}

// TestSeverInTheMiddle takes the ring away while workers answer and the guest
// kicks (XSA-331): wherever they are, none touches it afterwards.
func TestSeverInTheMiddle(t *testing.T) {
	for _, f := range formats {
		t.Run(f.String(), func(t *testing.T) {
			p := newPlane(t)
			d, _, _ := openDisk(t, f, 32*88+1, disk.Options{})
			for round := range 60 {
				s := p.serve(d, attached{front: fakexen.Options{Polled: true, ABI: abis[round%2]}})
				front := newRawFront(s, 1, func(i int) uint8 { return uint8(i % 2) })
				front.push(32)
				kicked := make(chan struct{})
				go func() { // ends by itself
					defer close(kicked)
					front.raw.Kick(500)
				}()
				for front.raw.RspProd() < uint32(round%8) {
					runtime.Gosched()
				}
				s.stop()
				must(t, s.sever())
				must(t, s.drain(nil))
				must(t, s.link.close())
				s.closed = true
				awaitData(t, kicked, "the guest's last kick")
				front.end(t)
			}
		})
	}
}
