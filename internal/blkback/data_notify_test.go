package blkback

import (
	"fmt"
	"sync"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// TestHoldOff: the guest is notified when rsp_prod passes its rsp_event, and
// never else.
func TestHoldOff(t *testing.T) {
	for _, c := range []struct {
		name  string
		event uint32 // rsp_event, of 8 responses in one batch
		want  uint64
	}{
		{"at the first", 1, 1},
		{"in the middle", 5, 1},
		{"at the last", 8, 1},
		{"one past the last", 9, 0},
		{"a ring ahead", 33, 0},
		{"behind", 0, 0},
		{"half the index space away", 1 << 31, 0},
	} {
		for _, f := range formats {
			t.Run(fmt.Sprintf("%s/%v", c.name, f), func(t *testing.T) {
				p := newStillPlane(t)
				d, _, _ := openDisk(t, f, 64, disk.Options{ReadOnly: true})
				s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
				raw, q := s.raw(), s.queue()
				raw.SetRspEvent(c.event)
				raw.Push(flushes(8)...)
				// As if a worker with another answer stood behind.
				q.finishing.Add(1)
				s.Ready(0)
				for unit, _ := q.Take(); unit >= 0; unit, _ = q.Take() {
					q.Run(0, unit)
				}
				q.finishing.Add(-1)
				q.running++ // that worker
				q.answer(nil, nil)
				if got := raw.RspProd(); got != 8 {
					t.Fatalf("rsp_prod %d, want 8", got)
				}
				if got := p.m.Stats().ToGuest; got != c.want {
					t.Errorf("%d notifications, want %d", got, c.want)
				}
			})
		}
	}
}

// TestTheLastOnePublishesForAll: an answer that is put while another worker
// stands behind is shown by that one, and once.
func TestTheLastOnePublishesForAll(t *testing.T) {
	p := newStillPlane(t)
	d, _, _ := openDisk(t, disk.Raw, 64, disk.Options{ReadOnly: true})
	s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
	raw, q := s.raw(), s.queue()
	raw.SetRspEvent(1)
	raw.Push(flushes(3)...)
	s.Ready(0)
	for want := range 3 {
		unit, _ := q.Take()
		if want < 2 {
			q.finishing.Add(1)
			q.Run(0, unit)
			q.finishing.Add(-1)
			if got := raw.RspProd(); got != 0 {
				t.Fatalf("rsp_prod %d while a worker stood behind, want 0", got)
			}
			continue
		}
		q.Run(0, unit)
	}
	if got, sent := raw.RspProd(), p.m.Stats().ToGuest; got != 3 || sent != 1 {
		t.Errorf("rsp_prod %d, %d notifications, want 3 and 1", got, sent)
	}
}

// TestOneNotificationForAFullRing: what is served inline, or as one batch, is
// published at once.
func TestOneNotificationForAFullRing(t *testing.T) {
	for _, f := range []disk.Format{disk.Discard, disk.Mmap} {
		t.Run(f.String(), func(t *testing.T) {
			p := newStillPlane(t)
			d, _, _ := openDisk(t, f, 640, disk.Options{})
			s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
			front := newRawFront(s, 1, func(i int) uint8 { return uint8(i % 2) })
			defer front.end(t)
			front.raw.SetRspEvent(1)
			front.push(32)
			s.Ready(0)
			if unit, more := s.queue().Take(); unit >= 0 {
				if s.queue().Run(0, unit); more {
					t.Error("a batch left something behind")
				}
			}
			if got, sent := front.reap(), p.m.Stats().ToGuest; got != 32 || sent != 1 {
				t.Errorf("%d responses, %d notifications, want 32 and 1", got, sent)
			}
			if stats := s.stats(); stats.Notifications != 1 || stats.Occupancy[32] != 1 {
				t.Errorf("stats: %d notifications, %d pulls of a full ring, want 1 and 1",
					stats.Notifications, stats.Occupancy[32])
			}
		})
	}
}

// TestEachIsAnsweredOnce has a frontend as distrustful as blkfront count the
// answers.
func TestEachIsAnsweredOnce(t *testing.T) {
	const n = 5000
	for _, f := range formats {
		for _, polled := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/polled=%v", f, polled), func(t *testing.T) {
				p := newPlane(t)
				d, _, _ := openDisk(t, f, 64, disk.Options{ReadOnly: true})
				s := p.serve(d, attached{front: fakexen.Options{Polled: polled, WideIDs: true}})
				submitFlushes(t, s, n, 32)
				s.detach()
				stats := s.stats()
				if stats.OK != n || stats.Answered() != n {
					t.Errorf("%d requests answered, %d OK, want %d", stats.Answered(), stats.OK, n)
				}
				// A ring begins with rsp_event 1, also that of one who polls.
				if sent := p.m.Stats().ToGuest; sent != stats.Notifications || polled && sent > 1 {
					t.Errorf("%d notifications, %d counted", sent, stats.Notifications)
				}
			})
		}
	}
}

// submitFlushes does n of them in batches of depth, each after the other.
func submitFlushes(t *testing.T, s *served, n, depth int) {
	t.Helper()
	ctx := deadlineData(t)
	reqs := make([]fakexen.Req, depth)
	for i := range reqs {
		reqs[i].Op = fakexen.OpFlush
	}
	for n > 0 {
		pending, err := s.front.Submit(reqs[:min(n, depth)]...)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pending {
			if status, err := p.Wait(ctx); status != 0 || err != nil {
				t.Fatalf("status %d, %v, with %d left", status, err, n)
			}
		}
		n -= len(pending)
	}
}

// TestNoWakeUpIsLost: a hundred thousand requests of frontends that poll, and
// that sleep as blkfront does, on four disks at once and at every depth that
// makes a difference. One lost event would hang the last of them.
func TestNoWakeUpIsLost(t *testing.T) {
	for _, f := range formats {
		for _, polled := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/polled=%v", f, polled), func(t *testing.T) {
				p := newPlane(t)
				total := 100_000
				if f != disk.Discard {
					total /= 10
				}
				var wg sync.WaitGroup
				for n, depth := range []int{1, 2, 31, 32} {
					d, _, _ := openDisk(t, f, 640+n, disk.Options{})
					s := p.serve(d, attached{front: fakexen.Options{Polled: true, ABI: abis[n%2]}})
					front := newRawFront(s, 2, func(i int) uint8 { return uint8(i % 2) })
					front.polls = polled
					defer front.end(t)
					ctx := deadlineData(t)
					wg.Add(1)
					go func() {
						defer wg.Done()
						if err := front.run(ctx, total*depth/66, depth); err != nil || front.bad > 0 {
							t.Errorf("depth %d: %d bad responses, %v", depth, front.bad, err)
						}
					}()
				}
				wg.Wait()
			})
		}
	}
}
