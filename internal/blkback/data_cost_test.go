package blkback

import (
	"context"
	"fmt"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// TestNoAllocationBetweenPullAndPublish counts those of a whole ring's
// requests, through both halves of a queue, in each of the three modes.
func TestNoAllocationBetweenPullAndPublish(t *testing.T) {
	ops := map[string]func(i int) uint8{
		"reads":  func(int) uint8 { return fakexen.OpRead },
		"writes": func(int) uint8 { return fakexen.OpWrite },
		"mixed": func(i int) uint8 {
			return []uint8{fakexen.OpRead, fakexen.OpWrite, fakexen.OpFlush, fakexen.OpDiscard}[i%4]
		},
		"discards": func(int) uint8 { return fakexen.OpDiscard },
	}
	for _, f := range formats {
		for name, op := range ops {
			t.Run(fmt.Sprintf("%v/%s", f, name), func(t *testing.T) {
				p := newStillPlane(t)
				inner, _, _ := openDisk(t, f, 32*88+1, disk.Options{})
				d, _ := discarder(inner)
				s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
				q, front := s.queue(), newRawFront(s, 11, op)
				defer front.end(t)
				served := 0
				round := func() {
					front.raw.SetRspEvent(front.cons + 1)
					front.push(32)
					s.Ready(0)
					for unit, _ := q.Take(); unit >= 0; unit, _ = q.Take() {
						q.Run(0, unit)
					}
					served += front.reap()
				}
				const rounds = 20
				if got := testing.AllocsPerRun(rounds, round); got != 0 {
					t.Errorf("%v allocations for 32 requests, want 0", got)
				}
				if want := 32 * (rounds + 1); served != want || front.bad > 0 {
					t.Errorf("%d requests answered, %d of them badly, want %d and 0", served, front.bad, want)
				}
			})
		}
	}
}

// BenchmarkQueue is requests through a queue on the pretend machine: what
// costs nothing there are hypercalls, and what a guest costs here is little.
// It shows what the code around the copies costs, not what Xen does.
func BenchmarkQueue(b *testing.B) {
	for _, f := range formats {
		for _, pages := range []int{1, 11} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%v/%dk/%d", f, 4*pages, depth), func(b *testing.B) {
					benchmarkQueue(b, f, pages, depth)
				})
			}
		}
	}
}

func benchmarkQueue(b *testing.B, f disk.Format, pages, depth int) {
	p := newPlane(b)
	d, _, _ := openDisk(b, f, 32*88+1, disk.Options{})
	s := p.serve(d, attached{front: fakexen.Options{Polled: true}})
	front := newRawFront(s, pages, func(i int) uint8 { return uint8(i % 2) }) // reads and writes
	defer front.end(b)
	before := p.m.Stats().ToGuest
	b.ReportAllocs()
	b.ResetTimer()
	err := front.run(context.Background(), b.N, depth)
	b.StopTimer()
	if err != nil || front.bad > 0 {
		b.Fatalf("%d bad responses, %v", front.bad, err)
	}
	n := float64(b.N)
	b.ReportMetric(n/b.Elapsed().Seconds(), "requests/s")
	b.ReportMetric(float64(p.m.Stats().ToGuest-before)/n, "notifies/request")
}
