package blkback

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
	"xen-disk/reactor"
	"xen-disk/ring"
)

// patienceData bounds how long a test of the data plane waits for what must
// happen; it is not reached unless the test fails.
const patienceData = 60 * time.Second

// A plane is the data plane without the control plane: a loop, a pool and
// links on a pretend machine. Who tests a state of the rings wants no
// handshake in between.
type plane struct {
	t       testing.TB
	m       *fakexen.Machine
	x       *fakexen.Xenstored
	store   *fakexen.Store
	loop    *reactor.Loop
	pool    *reactor.Pool
	workers []*worker
	still   bool // neither loop nor pool runs: the test is both
	devid   uint32
}

func newPlane(t testing.TB) *plane { return makePlane(t, false) }

// newStillPlane makes a plane on which nothing moves by itself: the test calls
// turn, Take and Run.
func newStillPlane(t testing.TB) *plane { return makePlane(t, true) }

func makePlane(t testing.TB, still bool) *plane {
	t.Helper()
	p := &plane{t: t, still: still, devid: 51712}
	var err error
	if p.m, err = fakexen.New(); err != nil {
		t.Fatal(err)
	}
	if p.x, err = fakexen.NewXenstored(p.m); err != nil {
		t.Fatal(err)
	}
	p.store = p.x.Store(0)
	if p.loop, err = reactor.New(); err != nil {
		t.Fatal(err)
	}
	for range Workers {
		w, err := newWorker()
		if err != nil {
			t.Fatal(err)
		}
		p.workers = append(p.workers, w)
	}
	p.pool = reactor.NewPool(Workers, nil)
	ran := make(chan error, 1)
	if still {
		p.pool.Close() // Schedule does nothing any more
		ran <- nil
	} else {
		go func() { ran <- p.loop.Run() }() // ends with Stop
	}
	t.Cleanup(func() {
		p.loop.Stop()
		must(t, <-ran)
		p.pool.Close()
		must(t, p.loop.Close())
		for _, w := range p.workers {
			must(t, w.close())
		}
		p.store.Close()
		must(t, p.x.Close())
		must(t, p.m.Close()) // names what was leaked
	})
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func deadlineData(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patienceData)
	t.Cleanup(cancel)
	return ctx
}

// guest boots a domain, or finds it booted.
func (p *plane) guest(domid uint32) *fakexen.Domain {
	p.t.Helper()
	if d := p.m.Domain(domid); d != nil {
		return d
	}
	d, err := p.m.Boot(domid, fmt.Sprint("guest", domid), fmt.Sprint("uuid-", domid))
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// served is a vbd on a plane: a frontend and the link that serves it.
type served struct {
	*link
	p       *plane
	front   *fakexen.Blkfront
	guest   *fakexen.Domain
	door    *fakexen.Door
	reports chan error
	closed  bool
}

// attached describes what serve makes. The zero value is an x86_64 Linux guest.
type attached struct {
	domid  uint32
	front  fakexen.Options
	xen    func(Xen) Xen      // wraps the door
	before func(*fakexen.Raw) // sees the ring before the backend does
}

// serve attaches a disk. It closes neither the disk nor what failed to.
func (p *plane) serve(d disk.Disk, a attached) *served {
	p.t.Helper()
	s, err := p.tryServe(d, a)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *plane) tryServe(d disk.Disk, a attached) (*served, error) {
	p.t.Helper()
	if a.domid == 0 {
		a.domid = 5
	}
	if a.front.ABI == "" {
		a.front.ABI = "x86_64-abi"
	}
	s := &served{p: p, guest: p.guest(a.domid), reports: make(chan error, 16)}
	p.devid += 16
	vbd := fakexen.Attach{DomID: a.domid, DevID: p.devid, Kind: kind}
	if err := p.m.AttachVBD(vbd); err != nil {
		return nil, err
	}
	var err error
	if s.front, err = fakexen.NewBlkfront(p.m, a.domid, p.devid, a.front); err != nil {
		return nil, err
	}
	p.t.Cleanup(s.end)
	if err := s.connect(d, a, vbd); err != nil {
		return nil, err
	}
	return s, nil
}

// connect plays the backend's half of the handshake with the pretend
// machine's own store.
func (s *served) connect(d disk.Disk, a attached, vbd fakexen.Attach) error {
	p, ctx, back := s.p, deadlineData(s.p.t), vbd.BackendPath()
	if err := p.store.Write(back+"/state", "2"); err != nil {
		return err
	}
	if err := p.store.WaitValue(ctx, s.front.Dir()+"/state", "3"); err != nil {
		return err
	}
	if a.before != nil {
		raw, err := s.front.Raw(0)
		if err != nil {
			return err
		}
		a.before(raw)
	}
	nodes, err := s.nodes(a)
	if err != nil {
		return err
	}
	if s.door, err = p.m.OpenDoor(0); err != nil {
		return err
	}
	var xen Xen = s.door
	if a.xen != nil {
		xen = a.xen(xen)
	}
	s.link = &link{
		domid: uint16(a.domid), xen: xen, disk: d, limits: limitsOf(d),
		loop: p.loop, pool: p.pool, workers: p.workers, log: zerolog.Nop(),
		report: func(err error) { s.reports <- err },
	}
	if err := s.connectRing(nodes); err != nil {
		s.closed = true
		return err
	}
	for name, value := range map[string]string{
		"sectors": fmt.Sprint(s.limits.Sectors), "info": "0", "sector-size": "512", "feature-flush-cache": "1",
	} {
		if err := p.store.Write(back+"/"+name, value); err != nil {
			return err
		}
	}
	if err := p.store.Write(back+"/state", "4"); err != nil {
		return err
	}
	return s.front.WaitConnected(ctx)
}

// nodes are what the frontend published. Rings of several pages are taken from
// its hands, since they are not offered.
func (s *served) nodes(a attached) (*frontNodes, error) {
	if a.front.RingOrder == 0 {
		return readFront(s.p.store, s.front.Dir())
	}
	raw, err := s.front.Raw(0)
	if err != nil {
		return nil, err
	}
	abi, err := ring.ParseABI(a.front.ABI)
	return &frontNodes{abi: abi, queues: []queueNodes{{refs: raw.Refs(), port: raw.Port()}}}, err
}

// queue is the only one.
func (s *served) queue() *queue { return s.queues[0] }

// detach ends the link in order: every request that was pulled is answered.
func (s *served) detach() {
	s.p.t.Helper()
	if s.closed || s.link == nil {
		return
	}
	s.closed = true
	if !s.p.still {
		s.stop()
		patience := time.NewTimer(patienceData)
		defer patience.Stop()
		must(s.p.t, s.drain(patience.C))
	}
	must(s.p.t, s.link.close())
}

// end is detach, and the frontend's own end, with what it complains of.
func (s *served) end() {
	s.p.t.Helper()
	s.detach()
	must(s.p.t, s.front.Stop())
	must(s.p.t, s.front.Violations())
}

// raw takes the ring into a liar's hands.
func (s *served) raw() *fakexen.Raw {
	s.p.t.Helper()
	r, err := s.front.Raw(0)
	if err != nil {
		s.p.t.Fatal(err)
	}
	return r
}

// onLoop runs f on the loop and waits for it: what was posted before is done.
func (p *plane) onLoop(f func()) {
	p.t.Helper()
	done := make(chan struct{})
	p.loop.Post(func() { defer close(done); f() })
	awaitData(p.t, done, "a function posted to the loop")
}

func awaitData[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patienceData):
		t.Fatalf("waited %v for %s", patienceData, what)
	}
	return v
}

// unharmed writes a sector to a disk, reads it back and flushes.
func (s *served) unharmed() {
	s.p.t.Helper()
	ctx := deadlineData(s.p.t)
	stamp := byte(stamps.Add(1))
	data := make([]byte, ring.SectorBytes)
	for i := range data {
		data[i] = stamp
	}
	if err := s.front.Write(ctx, 3, data); err != nil {
		s.p.t.Fatalf("other disk: write: %v", err)
	}
	got, err := s.front.Read(ctx, 3, 1)
	if err != nil || string(got) != string(data) {
		s.p.t.Fatalf("other disk: read %x, %v, want %x", got[:1], err, stamp)
	}
	if status, err := s.front.Flush(ctx); status != 0 || err != nil {
		s.p.t.Fatalf("other disk: flush %d, %v", status, err)
	}
}

// stamps makes what unharmed writes differ.
var stamps atomic.Uint32

// pulled is how many requests the link has taken off its ring.
func (s *served) pulled() uint64 {
	sum := s.stats()
	return sum.Requests()
}
