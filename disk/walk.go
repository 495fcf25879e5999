package disk

import (
	"context"
	"fmt"
	"math"
	"sync"
)

const (
	// chunkBytes is what is read at once. With inFlight of them a disk that
	// answers in 1 ms (a network filesystem) still gives 4 GB/s.
	chunkBytes = 1 << 20
	// inFlight bounds the requests under way, and with them the memory: one
	// chunk each, two when comparing.
	inFlight = 4
	// holeBytes bounds a piece that nobody reads. A store may have to write
	// each byte of it, and between pieces a walk can be stopped.
	holeBytes = 64 << 20
)

// piece is a part of all disks of a walk.
type piece struct {
	off, n int64
	hole   bool // all of them say that it is zeros
}

// walk goes over one disk, or over several side by side, in pieces: holes and
// chunks of data. A disk is followed by zeros without end.
type walk struct {
	sides    []*side
	end      int64
	progress func(doneBytes, totalBytes int64)

	mu   sync.Mutex
	off  int64 // where the next piece begins
	done int64 // bytes of pieces that are finished
}

// side is one disk of a walk, and the extent that the walk is in.
type side struct {
	Disk
	cur Extent
}

func newWalk(end int64, progress func(doneBytes, totalBytes int64), disks ...Disk) *walk {
	w := &walk{end: end, progress: progress}
	for _, d := range disks {
		w.sides = append(w.sides, &side{Disk: d})
	}
	return w
}

// run calls do for each piece, inFlight of them at a time, with a buffer of one
// chunk for each disk. It ends when all pieces are done, at the first error, or
// with ctx; a piece that was begun is finished. It starts goroutines and
// returns when they have ended.
func (w *walk) run(ctx context.Context, do func(p piece, buf []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	for range inFlight {
		workers.Add(1)
		go func() {
			defer workers.Done()
			buf := make([]byte, len(w.sides)*chunkBytes)
			for ctx.Err() == nil {
				p, err := w.next()
				if err == nil && p.n == 0 {
					return
				}
				if err == nil {
					err = do(p, buf)
				}
				if err != nil {
					cancel(err)
					return
				}
				w.finished(p)
			}
		}()
	}
	workers.Wait()
	return context.Cause(ctx)
}

// next takes the next piece; one of no bytes is the end.
func (w *walk) next() (piece, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.off == w.end {
		return piece{}, nil
	}
	p := piece{off: w.off, hole: true}
	stop := w.end
	for _, s := range w.sides {
		x, err := s.extent(p.off)
		if err != nil {
			return piece{}, err
		}
		p.hole = p.hole && x.Zero
		stop = min(stop, x.Off+x.Len)
	}
	most := int64(chunkBytes)
	if p.hole {
		most = holeBytes
	}
	// Cut where the disks' own blocks end, which are powers of two.
	stop = min(stop, p.off-p.off%most+most)
	p.n = stop - p.off
	w.off = stop
	return p, nil
}

// stop makes next return no more pieces.
func (w *walk) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.off = w.end
}

func (w *walk) finished(p piece) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done += p.n
	if w.progress != nil {
		w.progress(w.done, w.end)
	}
}

// extent returns what is left at off of the extent that off lies in.
func (s *side) extent(off int64) (Extent, error) {
	size := s.Info().SizeBytes
	if off >= size {
		return Extent{Off: off, Len: math.MaxInt64 - off, Zero: true}, nil
	}
	if off < s.cur.Off+s.cur.Len {
		return s.cur, nil
	}
	s.cur = Extent{Off: off, Len: size - off}
	if m, ok := s.Disk.(Mapper); ok {
		x, err := m.NextExtent(off)
		if err != nil {
			return Extent{}, err
		}
		if x.Off != off || x.Len <= 0 || x.Len > size-off || x.Len%sectorBytes != 0 {
			panic(fmt.Sprintf("disk: extent of %s at %d: got %+v, want one there that ends by %d",
				s.Info().Path, off, x, size))
		}
		s.cur = x
	}
	return s.cur, nil
}

// read fills p from off on, with zeros past the end of the disk.
func (s *side) read(p []byte, off int64) error {
	n := max(min(int64(len(p)), s.Info().SizeBytes-off), 0)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	_, err := s.ReadAt(p[:n], off)
	return err
}
