package nbd

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"xen-disk/disk"
)

// sink is a disk that costs nothing, so that what is measured is the server.
type sink struct{ *full }

func (sink) ReadAt(p []byte, _ int64) (int, error)   { return len(p), nil }
func (sink) WriteAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (sink) Flush() error                            { return nil }
func (sink) Discard(int64, int64) error              { return nil }
func (sink) WriteZeroes(int64, int64, bool) error    { return nil }
func (sink) NextExtent(o int64) (disk.Extent, error) { return disk.Extent{Off: o, Len: 4096}, nil }

// pump sends the same requests again and again, and reads as many bytes of
// replies as they have.
type pump struct {
	nc      net.Conn
	out, in []byte
}

func newPump(tb testing.TB, structured bool, requests ...req) *pump {
	s := serve(tb, sink{newFull(4 << 20)})
	c := connect(tb, s, structured)
	must(tb, c.nc.SetDeadline(time.Time{}))
	p, replies := &pump{nc: c.nc}, 0
	for _, q := range requests {
		p.out = append(p.out, q.bytes()...)
		replies += 16
		switch {
		case q.kind == 0 && structured:
			replies += 12 + int(q.length)
		case q.kind == 0:
			replies += int(q.length)
		case q.kind == 7:
			replies += 4 + 4 + 8
		}
	}
	p.in = make([]byte, replies)
	return p
}

func (p *pump) turn() error {
	if _, err := p.nc.Write(p.out); err != nil {
		return err
	}
	_, err := io.ReadFull(p.nc, p.in)
	return err
}

// TestNoAllocation counts those of all goroutines while batches are served.
func TestNoAllocation(t *testing.T) {
	small := make([]byte, 4096)
	for _, c := range []struct {
		name     string
		requests []req
	}{
		{"reads", []req{{kind: 0, length: 4096}, {kind: 0, length: 512}, {kind: 0, length: 65536}}},
		{"writes", []req{{kind: 1, length: 4096, data: small}, {kind: 1, flags: 1, length: 512, data: small[:512]}}},
		{"large", []req{{kind: 0, length: 1 << 20}, {kind: 1, length: 1 << 20, data: make([]byte, 1<<20)}}},
		{"others", []req{{kind: 3}, {kind: 4, length: 4096}, {kind: 6, flags: 2, length: 4096}, {kind: 7, length: 4096}}},
		{"refused", []req{{kind: 0, off: 1 << 40, length: 4096}, {kind: 9}, {kind: 1, off: 1 << 40, length: 4096, data: small}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			structured := c.name == "others"
			p := newPump(t, structured, c.requests...)
			if c.name == "refused" {
				p.in = p.in[:3*16] // a read that failed has no data
			}
			turn := func() {
				for range 10 {
					if err := p.turn(); err != nil {
						t.Fatal(err)
					}
				}
			}
			turn()
			// The garbage collector takes what sync.Pool keeps: fewer than one
			// in 100.
			if got := testing.AllocsPerRun(20, turn); got > float64(10*len(c.requests))/100 && !raceDetector {
				t.Errorf("%v allocations for %d requests", got, 10*len(c.requests))
			}
		})
	}
}

// BenchmarkServe is batches of requests through the socket, with a disk that
// costs nothing and a client that does little.
func BenchmarkServe(b *testing.B) {
	for _, kind := range []struct {
		name string
		kind uint16
	}{{"read", 0}, {"write", 1}} {
		for _, shape := range []struct{ length, depth int }{{4096, 1}, {4096, 32}, {64 << 10, 8}, {1 << 20, 4}} {
			b.Run(fmt.Sprintf("%s/%dk/%d", kind.name, shape.length>>10, shape.depth), func(b *testing.B) {
				q := req{kind: kind.kind, length: uint32(shape.length)}
				if q.kind == 1 {
					q.data = make([]byte, shape.length)
				}
				batch := make([]req, shape.depth)
				for i := range batch {
					batch[i] = q
				}
				p := newPump(b, true, batch...)
				b.SetBytes(int64(shape.length * shape.depth))
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					if err := p.turn(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*shape.depth)/b.Elapsed().Seconds(), "requests/s")
			})
		}
	}
}
