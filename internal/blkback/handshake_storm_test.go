package blkback

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"xen-disk/internal/fakexen"
)

var stormSeed = flag.Uint64("storm-seed", 0, "seed of the storm tests; 0 takes the time")

func seeded(t *testing.T) *rand.Rand {
	seed := *stormSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-storm-seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// A storm is a frontend that writes anything at any time.
type storm struct {
	r    *rig
	rng  *rand.Rand
	evil *fakexen.Store // the guest
	d    *device
	f    *fakexen.Blkfront
}

var stormStates = []string{"1", "1", "2", "3", "3", "3", "4", "4", "5", "5", "6", "6", "7", "8", "0", "", "99", "x"}

// toggle does one thing that a guest can do. Its errors are its own.
func (s *storm) toggle() {
	dir := s.d.paths.front
	names := []string{"ring-ref", "ring-ref0", "event-channel", "protocol", "ring-page-order", "multi-queue-num-queues", "backend"}
	name := names[s.rng.IntN(len(names))]
	switch n := s.rng.IntN(200); {
	case n < 120:
		_ = s.evil.Write(dir+"/state", stormStates[s.rng.IntN(len(stormStates))])
	case n < 140: // an honest ring, at whatever state
		for _, name := range []string{"ring-page-order", "multi-queue-num-queues"} {
			_ = s.f.Node(name)
		}
		_ = s.f.Publish()
	case n < 165:
		_ = s.evil.Write(dir+"/"+name, []string{"", "8", "-1", "x86_64-abi", strings.Repeat("9", 500)}[s.rng.IntN(5)])
	case n < 190:
		_ = s.evil.Rm(dir + "/" + name)
	case n < 194: // gone for a moment
		_ = s.evil.Rm(dir + "/state")
		_ = s.evil.Write(dir+"/state", "3")
	case n < 195: // the end of the vbd
		_ = s.evil.Rm(dir)
	}
	if s.rng.IntN(4) == 0 {
		s.seen()
	}
}

// seen waits until the backend has looked at what is there.
func (s *storm) seen() {
	const look = "IS_DOMAIN_INTRODUCED"
	before := s.r.store.Requests()[look]
	s.r.store.Flood(s.d.paths.front+"/state", 1)
	s.r.eventually("the backend looks", func() bool {
		select {
		case <-s.d.Done():
			return true
		default:
			return s.r.store.Requests()[look] > before
		}
	})
}

// fresh attaches another vbd where the guest has ended the one before.
func (s *storm) fresh() {
	if s.d != nil {
		select {
		case <-s.d.Done():
			s.r.ok(s.d.Err())
		default:
			return
		}
	}
	s.d = s.r.attach(Spec{})
	s.f = s.d.front(fakexen.Options{Manual: true})
}

func TestFrontendThatTogglesAtRandomHarmsOnlyItself(t *testing.T) {
	r := newRig(t)
	r.boot(6)
	other := r.attach(Spec{Domid: 6})
	witness := other.connect(fakexen.Options{})
	s := &storm{r: r, rng: seeded(t), evil: r.store.Store(guest)}
	defer s.evil.Close()
	const toggles = 10000
	for i := range toggles {
		s.fresh()
		s.toggle()
		if i%500 == 0 {
			r.works(witness)
		}
	}
	connects, refusals := 0, 0
	for _, d := range r.devices[1:] {
		connects += d.count(EventConnected)
		refusals += d.count(EventRefused)
	}
	t.Logf("%d vbds, %d connects, %d refusals", len(r.devices), connects, refusals)
	s.fresh()
	d := s.honestAgain()
	d.stop()
	r.works(witness)
	expect(t, "connects of the other", other.count(EventConnected), 1)
	expect(t, "pages mapped", r.m.Mapped(), 1)
	other.stop()
}

// honestAgain starts the driver anew after the storm, as a reboot of the
// guest's kernel does, and ends at a vbd that serves.
func (s *storm) honestAgain() *device {
	for {
		for _, name := range []string{"ring-page-order", "multi-queue-num-queues", "ring-ref0"} {
			_ = s.f.Node(name)
		}
		_ = s.f.SetState("6")
		if !s.backend("6") {
			continue
		}
		_ = s.f.SetState("1")
		if !s.backend("2") {
			continue
		}
		s.f.Auto()
		s.r.ok(s.f.WaitConnected(s.r.ctx()))
		s.r.works(s.f)
		return s.d
	}
}

// backend waits for a state of the backend. It reports false, with a fresh vbd,
// where the storm's last word was still on its way, and was the end.
func (s *storm) backend(want string) bool {
	gone := false
	err := s.r.dom0.WaitFor(s.r.ctx(), s.d.paths.back+"/state", func(v string, exists bool) bool {
		gone = !exists
		return gone || v == want
	})
	s.r.ok(err)
	if gone {
		<-s.d.Done()
		s.fresh()
	}
	return !gone
}

func TestDetachAfterAStormEnds(t *testing.T) {
	r := newRig(t)
	s := &storm{r: r, rng: seeded(t), evil: r.store.Store(guest)}
	defer s.evil.Close()
	const storms, toggles = 30, 100
	for i := range storms {
		s.d = nil
		s.fresh()
		for range toggles {
			s.toggle()
		}
		switch i % 3 {
		case 0:
			s.d.Force()
		case 1:
			s.d.Detach()
			_ = s.f.SetState("6")
		case 2:
			s.d.Detach()
			_ = r.dom0.Rm(s.d.paths.front) // xl block-detach --force
		}
		r.ok(s.d.wait())
	}
	expect(t, "pages mapped", r.m.Mapped(), 0)
}

func TestFloodOfWatchEventsCostsNoMemory(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	measure := func() (goroutines int, heap int64) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), int64(m.HeapAlloc)
	}
	const events, allowed = 100000, 8 << 20
	r.store.Flood(d.paths.front+"/state", events/10) // buffers grow once
	goroutines, heap := measure()
	r.store.Flood(d.paths.front+"/state", events)
	r.works(f)
	g, h := measure()
	if g > goroutines || h > heap+allowed {
		t.Errorf("goroutines %d -> %d, heap %d -> %d bytes", goroutines, g, heap, h)
	}
	expect(t, "connects", d.count(EventConnected), 1)
	d.stop()
}

func TestGuestCannotFillTheLog(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	f := d.connect(fakexen.Options{})
	const times = 3 * guestLogBurst
	for i := range times {
		r.ok(f.Reset())
		d.await(EventConnected, i+2)
	}
	// The test may take longer than one period of the limit.
	if n := r.log.count(`"level":"info"`); n >= times {
		t.Errorf("%d lines for %d connects", n, times)
	}
	d.stop()
}

func TestThousandCyclesLeaveNothing(t *testing.T) {
	r := newRig(t)
	const cycles, warm = 1000, 20
	goroutines, fds := 0, 0
	for i := range cycles {
		d := r.attach(Spec{})
		f := d.connect(fakexen.Options{})
		switch i % 4 {
		case 0, 1:
			d.stop()
			r.ok(f.WaitClosed(r.ctx()))
		case 2:
			r.ok(f.Close(r.ctx()))
			r.libxlDetach(d)
			d.ends(EventDetached)
		case 3:
			d.Force()
			d.ends(EventForced)
		}
		r.ok(f.Stop())
		r.devices, r.fronts = r.devices[:0], r.fronts[:0]
		expect(t, "pages mapped", r.m.Mapped(), 0)
		if i == warm {
			goroutines, fds = runtime.NumGoroutine(), openFDs(t)
		}
	}
	r.eventually(fmt.Sprintf("goroutines are %d and descriptors %d", goroutines, fds), func() bool {
		return runtime.NumGoroutine() <= goroutines && openFDs(t) <= fds
	})
	expect(t, "watches", r.store.Watches(), 1)
}
