package blkback

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
	"xen-disk/ring"
)

// canary is what a page holds where no request may write.
const canary = 0x5c

// A shaped request has segments of any shape, each in a page of its own.
type shaped struct {
	guest *fakexen.Domain
	pages []int
	segs  []fakexen.Seg
}

// newShaped makes up to most segments at random, of at most sectors in all.
// Every page is canary all over.
func newShaped(rng *rand.Rand, guest *fakexen.Domain, sectors int) *shaped {
	s := &shaped{guest: guest}
	for n := 1 + rng.IntN(ring.MaxSegments); n > 0 && sectors > 0; n-- {
		first := rng.IntN(8)
		last := first + rng.IntN(8-first)
		if rng.IntN(3) == 0 {
			first, last = 0, 7
		}
		last = min(last, first+sectors-1)
		sectors -= last - first + 1
		page := guest.AllocPage()
		b := guest.Page(page)
		for i := range b {
			b[i] = canary
		}
		s.pages = append(s.pages, page)
		s.segs = append(s.segs, fakexen.Seg{First: uint8(first), Last: uint8(last)})
	}
	return s
}

func (s *shaped) sectors() int {
	n := 0
	for _, g := range s.segs {
		n += int(g.Last) - int(g.First) + 1
	}
	return n
}

// each calls f with the bytes of every segment.
func (s *shaped) each(f func(part []byte)) {
	for i, g := range s.segs {
		f(s.guest.Page(s.pages[i])[int(g.First)*512 : (int(g.Last)+1)*512])
	}
}

// grant lets the backend at the pages; a write's are read-only to it.
func (s *shaped) grant(readonly bool) {
	for i, page := range s.pages {
		s.segs[i].Ref = s.guest.Grant(page, 0, readonly)
	}
}

// end revokes the grants and frees the pages, after a look at the canaries.
func (s *shaped) end() error {
	var err error
	for i, g := range s.segs {
		for at, c := range s.guest.Page(s.pages[i]) {
			if (at < int(g.First)*512 || at >= (int(g.Last)+1)*512) && c != canary {
				err = fmt.Errorf("segment %d [%d, %d]: byte %d of its page was written", i, g.First, g.Last, at)
			}
		}
		if s.guest.Revoke(g.Ref) {
			err = fmt.Errorf("segment %d: its grant is in use after the response", i)
		}
		s.guest.FreePage(s.pages[i])
	}
	return err
}

// A region is a part of a disk that one goroutine reads and writes, and what
// it holds; nil where the disk keeps nothing.
type region struct {
	s     *served
	first uint64
	model []byte
	rng   *rand.Rand
	keeps bool
}

// op does one random request and compares what comes back.
func (r *region) op(ctx context.Context) error {
	total := len(r.model) / 512
	if r.rng.IntN(8) == 0 {
		return r.discard(ctx, total)
	}
	sh := newShaped(r.rng, r.s.guest, total)
	n := sh.sectors()
	at := r.rng.IntN(total - n + 1)
	switch r.rng.IntN(4) { // the ends are where sums go wrong
	case 0:
		at = 0
	case 1:
		at = total - n
	}
	want := r.model[at*512 : (at+n)*512]
	req := fakexen.Req{Op: fakexen.OpRead, Sector: r.first + uint64(at)}
	if r.rng.IntN(2) == 0 {
		req.Op = fakexen.OpWrite
		if r.rng.IntN(8) == 0 {
			req.Op = fakexen.OpFlush // with data
		}
		left := want
		sh.each(func(part []byte) {
			for i := range part {
				part[i] = byte(r.rng.Uint32())
			}
			left = left[copy(left, part):]
		})
	}
	sh.grant(req.Op != fakexen.OpRead)
	req.Segs = sh.segs
	status, err := r.s.front.Do(ctx, req)
	what := fmt.Sprintf("op %d of sectors %d to %d", req.Op, req.Sector, req.Sector+uint64(n)-1)
	if err != nil || status != fakexen.StatusOkay {
		return fmt.Errorf("%s: status %d, %v", what, status, err)
	}
	left := want
	sh.each(func(part []byte) {
		if r.keeps && !bytes.Equal(part, left[:len(part)]) && err == nil {
			err = fmt.Errorf("%s: data differ", what)
		}
		left = left[len(part):]
	})
	if endErr := sh.end(); endErr != nil {
		return fmt.Errorf("%s: %w", what, endErr)
	}
	return err
}

// discard gives some of the region back, or all or nothing of it.
func (r *region) discard(ctx context.Context, total int) error {
	at := r.rng.IntN(total + 1)
	n := r.rng.IntN(total - at + 1)
	if r.rng.IntN(8) == 0 {
		at, n = 0, total
	}
	status, err := r.s.front.Discard(ctx, r.first+uint64(at), uint64(n))
	if err != nil || status != fakexen.StatusOkay {
		return fmt.Errorf("discard of %d sectors: status %d, %v", n, status, err)
	}
	clear(r.model[at*512 : (at+n)*512])
	return nil
}

// churn has depth goroutines do ops each, every one in its own region of the
// disk; together the regions are the disk, whose contents data become.
func churn(t *testing.T, s *served, data []byte, depth, ops int, seed uint64) *sync.WaitGroup {
	ctx := deadlineData(t)
	sectors := int(min(s.limits.Sectors, 1<<13))
	keeps := data != nil
	if !keeps {
		data = make([]byte, sectors*512)
	}
	var wg sync.WaitGroup
	for i := range depth {
		from, to := i*sectors/depth, (i+1)*sectors/depth
		r := &region{s: s, first: uint64(from), model: data[from*512 : to*512],
			rng: rand.New(rand.NewPCG(seed, uint64(i))), keeps: keeps}
		if !keeps && i == depth-1 { // the model is not as long as the disk
			r.first = s.limits.Sectors - uint64(to-from)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range ops {
				if err := r.op(ctx); err != nil {
					t.Errorf("seed %d, goroutine %d: %v", seed, i, err)
					return
				}
			}
		}()
	}
	return &wg
}

// TestEveryShapeAgainstAModel runs random requests on every kind of disk and
// ring, two disks at once, and compares the images with the models.
func TestEveryShapeAgainstAModel(t *testing.T) {
	const sectors, ops = 32*97 + 5, 320
	for _, f := range formats {
		for _, abi := range abis {
			for _, depth := range []int{1, 4, 32} {
				t.Run(fmt.Sprintf("%v/%s/%d", f, abi, depth), func(t *testing.T) {
					seed := rand.Uint64()
					p := newPlane(t)
					var all []*sync.WaitGroup
					var check []func()
					for n := range 2 {
						inner, data, path := openDisk(t, f, sectors+n, disk.Options{})
						d, _ := discarder(inner)
						s := p.serve(d, attached{front: fakexen.Options{ABI: abi, WideIDs: n == 1}})
						all = append(all, churn(t, s, data, depth, ops/depth, seed+uint64(n)))
						check = append(check, func() { checkImage(t, s, path, data) })
					}
					for n, wg := range all {
						wg.Wait()
						check[n]()
					}
				})
			}
		}
	}
}

// checkImage ends the vbd and compares the file with what it should hold.
func checkImage(t *testing.T, s *served, path string, want []byte) {
	t.Helper()
	s.end()
	stats := s.stats()
	if stats.Requests() != stats.Answered() || stats.Errors+stats.Unsupported > 0 || s.busy() != 0 {
		t.Errorf("stats %d pulled, %d answered, %d errors, %d busy",
			stats.Requests(), stats.Answered(), stats.Errors+stats.Unsupported, s.busy())
	}
	checkFile(t, path, want)
}

// checkFile compares an image with what it should hold.
func checkFile(t *testing.T, path string, want []byte) {
	t.Helper()
	if path == "" {
		return
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("image differs from the model (%v)", err)
	}
}
