package blkback

import (
	"fmt"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// TestAnswerPutBeforeAndPublishedAfterSever: a worker leaves its answer to the
// one behind it, and that one comes when the ring is gone.
func TestAnswerPutBeforeAndPublishedAfterSever(t *testing.T) {
	p := newStillPlane(t)
	d, _, _ := openDisk(t, disk.Raw, 64, disk.Options{ReadOnly: true})
	s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
	raw, q := s.raw(), s.queue()
	raw.SetRspEvent(1)
	raw.Push(flushes(2)...)
	s.Ready(0)
	one, _ := q.Take()
	two, _ := q.Take()
	q.finishing.Add(1)
	q.Run(0, one)
	q.finishing.Add(-1)
	must(t, s.sever())
	q.Run(1, two)
	if got, sent := raw.RspProd(), p.m.Stats().ToGuest; got != 0 || sent != 0 || s.busy() != 0 {
		t.Errorf("rsp_prod %d, %d notifications, %d busy, want none", got, sent, s.busy())
	}
}

// TestStopEndsPostedTurns: when stop returns nothing is pulled any more, also
// from a ring that always has more.
func TestStopEndsPostedTurns(t *testing.T) {
	p := newPlane(t)
	d, _, _ := openDisk(t, disk.Discard, 0, disk.Options{})
	door := &refill{}
	s := p.serve(d, attached{
		xen: func(x Xen) Xen { door.Xen = x; return door },
		before: func(raw *fakexen.Raw) {
			door.more = func() {
				raw.SetRspEvent(raw.RspProd() + 1)
				raw.SetReqProd(raw.ReqProd() + 1)
			}
			raw.Push(flushes(1)...)
		},
	})
	for ctx := deadlineData(t); s.pulled() < 100; {
		if ctx.Err() != nil {
			t.Fatal("the ring is not served")
		}
	}
	s.stop()
	pulled := s.pulled()
	for range 5 {
		p.onLoop(func() {})
	}
	if got := s.pulled(); got != pulled {
		t.Errorf("%d requests were pulled after stop", got-pulled)
	}
}

// TestLargeRings are not offered yet, but the queue is ready for them: more
// than one batch of a disk that is memory, and more slots than workers.
func TestLargeRings(t *testing.T) {
	for _, f := range formats {
		for order := 1; order <= 4; order++ {
			t.Run(fmt.Sprintf("%v/order %d", f, order), func(t *testing.T) {
				p := newPlane(t)
				d, _, _ := openDisk(t, f, 32*88+1, disk.Options{})
				s := p.serve(d, attached{front: fakexen.Options{Polled: true, RingOrder: order, IgnoreLimits: true}})
				slots := 32 << order
				front := newRawFront(s, 1, func(i int) uint8 { return uint8(i % 2) })
				defer front.end(t)
				if len(front.slots) != slots {
					t.Fatalf("%d slots, want %d", len(front.slots), slots)
				}
				for _, depth := range []int{slots, slots/2 + 1, slots} {
					if err := front.run(deadlineData(t), 4*depth, depth); err != nil || front.bad > 0 {
						t.Fatalf("depth %d: %d bad responses, %v", depth, front.bad, err)
					}
				}
				if stats := s.stats(); f == disk.Discard && stats.Occupancy[slots] == 0 {
					t.Error("no pull found the ring full")
				}
			})
		}
	}
}
