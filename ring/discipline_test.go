package ring_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"xen-disk/ring"
)

// bases are where the indices of a ring stand when a test begins: 2^32 lies
// ahead, under way, and behind.
var bases = []uint32{0, 7, math.MaxUint32 - 40, math.MaxUint32 - 3, math.MaxUint32}

func eachRing(t *testing.T, test func(t *testing.T, f *front, b *ring.Back)) {
	for _, abi := range abis {
		for _, base := range bases {
			f, b := pair(t, 1, abi, base)
			t.Run(abi.String(), func(t *testing.T) { test(t, f, b) })
		}
	}
}

// pullN has n requests made, pushed and pulled; their ids count from 0.
func pullN(t *testing.T, f *front, b *ring.Back, n int) {
	t.Helper()
	for i := range n {
		f.put(readWire(uint64(i)))
	}
	f.push()
	if got := pending(t, b); got != n {
		t.Fatalf("Pending: got %d, want %d", got, n)
	}
	for range n {
		b.Pull(new(ring.Request))
	}
}

func putN(b *ring.Back, n int) {
	for i := range n {
		b.Put(uint64(i), ring.OpRead, ring.StatusOK)
	}
}

// TestPublishHoldOff walks rsp_event through every place around one publish of
// n responses: exactly when rsp_prod passes it, a notification is owed.
func TestPublishHoldOff(t *testing.T) {
	for _, n := range []int{1, 2, 5, 32} {
		for ahead := -3; ahead <= n+3; ahead++ {
			eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
				pullN(t, f, b, n)
				putN(b, n)
				word(f.mem, 12).Store(f.rspCons + uint32(ahead))
				want := ahead >= 1 && ahead <= n
				if got := b.Publish(); got != want {
					t.Errorf("%d responses, rsp_event at %+d: got %v, want %v", n, ahead, got, want)
				}
			})
		}
	}
}

func TestPublishHoldOffFarAway(t *testing.T) {
	for _, far := range []uint32{1 << 31, 1<<31 - 1, 1<<31 + 1, 1 << 30, 3 << 30} {
		eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
			pullN(t, f, b, 3)
			putN(b, 3)
			word(f.mem, 12).Store(f.rspCons + far)
			if b.Publish() {
				t.Errorf("rsp_event %d away: notified", far)
			}
		})
	}
}

func TestPublishOfNothingIsSilent(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		for ahead := -1; ahead <= 1; ahead++ {
			word(f.mem, 12).Store(f.rspCons + uint32(ahead))
			if b.Publish() {
				t.Errorf("rsp_event at %+d: notified without a response", ahead)
			}
		}
		pullN(t, f, b, 2)
		putN(b, 2)
		word(f.mem, 12).Store(f.rspCons + 1)
		if !b.Publish() || b.Publish() {
			t.Error("want one notification, of the first publish")
		}
	})
}

// TestPublishInSteps: after one event the guest is not told again until it
// asks again.
func TestPublishInSteps(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		pullN(t, f, b, 6)
		f.arm()
		for i, want := range []bool{true, false, false} {
			putN(b, 1)
			if got := b.Publish(); got != want {
				t.Errorf("publish %d: got %v, want %v", i, got, want)
			}
		}
		if rs, err := f.take(); err != nil || len(rs) != 3 {
			t.Fatalf("took %d responses, %v, want 3", len(rs), err)
		}
		if f.arm() {
			t.Error("the frontend sees responses after it took all")
		}
		putN(b, 3)
		if !b.Publish() {
			t.Error("the frontend armed again and was not notified")
		}
	})
}

// TestRearm: req_event is one past what was consumed, so that the very next
// request notifies; and a request that came before it is reported.
func TestRearm(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		if b.Rearm() {
			t.Error("Rearm of an empty ring: got more")
		}
		f.put(readWire(1))
		if !f.push() {
			t.Error("the ring was armed; the frontend does not notify")
		}
		f.put(readWire(2))
		if f.push() {
			t.Error("one event was owed; the frontend sends another")
		}
		if !b.Rearm() {
			t.Error("Rearm with two requests waiting: got none")
		}
		for want := 2; want > 0; want-- {
			if got := pending(t, b); got != want {
				t.Fatalf("Pending: got %d, want %d", got, want)
			}
			b.Pull(new(ring.Request))
		}
		// This one comes between the last Pending and Rearm.
		f.put(readWire(3))
		if f.push() {
			t.Error("the ring is not armed; the frontend notifies")
		}
		if !b.Rearm() {
			t.Error("the final check missed a request: it would never be served")
		}
	})
}

func TestRearmSeesABrokenRing(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		pullN(t, f, b, 2)
		word(f.mem, 0).Add(^uint32(0))
		if !b.Rearm() {
			t.Error("Rearm would sleep on a ring whose req_prod moved backwards")
		}
	})
}

// TestPendingRefuses is CVE-2010-4247: whatever req_prod says, the loop over
// requests stays bounded by the ring.
func TestPendingRefuses(t *testing.T) {
	for _, pulled := range []uint32{0, 1, 31, 32} {
		for _, c := range lies {
			eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
				pullN(t, f, b, int(pulled))
				word(f.mem, 0).Store(f.rspCons + c.off)
				if n, err := b.Pending(); !errors.Is(err, ring.ErrBroken) || n != 0 {
					t.Errorf("%s, %d outstanding: got %d, %v, want ErrBroken", c.name, pulled, n, err)
				}
			})
		}
	}
}

// TestPendingRefusesARewind: req_prod is still ahead of rsp_prod, but behind
// what was pulled.
func TestPendingRefusesARewind(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		pullN(t, f, b, 10)
		for back := uint32(1); back <= 10; back++ {
			word(f.mem, 0).Store(f.rspCons + 10 - back)
			if n, err := b.Pending(); !errors.Is(err, ring.ErrBroken) {
				t.Errorf("rewound by %d: got %d, %v, want ErrBroken", back, n, err)
			}
		}
	})
}

// TestPendingCountsOutstanding: requests pulled and not answered need slots
// for their responses, so they count against the ring's size.
func TestPendingCountsOutstanding(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		pullN(t, f, b, 20)
		if got := b.Outstanding(); got != 20 {
			t.Errorf("Outstanding: got %d, want 20", got)
		}
		word(f.mem, 0).Store(f.rspCons + 32)
		if got := pending(t, b); got != 12 {
			t.Errorf("Pending: got %d, want 12", got)
		}
		word(f.mem, 0).Store(f.rspCons + 33)
		if _, err := b.Pending(); !errors.Is(err, ring.ErrBroken) {
			t.Errorf("13 more than 20 outstanding: got %v, want ErrBroken", err)
		}
		putN(b, 1)
		b.Publish()
		if got := pending(t, b); got != 13 {
			t.Errorf("Pending after a response: got %d, want 13", got)
		}
		if got := b.Outstanding(); got != 19 {
			t.Errorf("Outstanding after a response: got %d, want 19", got)
		}
	})
}

// TestOurIndicesArePrivate: the guest writes over what is ours; nothing of it
// is read back.
func TestOurIndicesArePrivate(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		start := f.rspCons
		for i := range uint32(100) {
			f.rspCons = f.reqPvt // this frontend knows by itself
			pullN(t, f, b, 1)
			liars := []uint32{i * 0x9e3779b9, start + i + 1, start + i + 2}
			word(f.mem, 8).Store(liars[i%3])
			word(f.mem, 4).Store(i * 0x85ebca6b)
			putN(b, 1)
			asked := i%2 == 0
			word(f.mem, 12).Store(start + i + i%2*2 + 1)
			if notify := b.Publish(); notify != asked {
				t.Fatalf("response %d: got notify %v, want %v", i, notify, asked)
			}
			if got, want := word(f.mem, 8).Load(), start+i+1; got != want {
				t.Fatalf("rsp_prod: got %d, want %d", got, want)
			}
			b.Rearm()
			if got, want := word(f.mem, 4).Load(), start+i+2; got != want {
				t.Fatalf("req_event: got %d, want %d", got, want)
			}
		}
	})
}

// TestResponsesSpareRequests: on a full ring, responses in any order go to the
// slots of requests that were pulled; those that wait keep every byte.
func TestResponsesSpareRequests(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		for i := range uint64(32) {
			f.put(elevenSegments(i))
		}
		f.push()
		before := bytes.Clone(f.mem)
		if got := pending(t, b); got != 32 {
			t.Fatalf("Pending: got %d, want 32", got)
		}
		var r ring.Request
		for i := range uint32(20) {
			b.Pull(&r)
			if r.ID != uint64(i) {
				t.Fatalf("request %d: got id %d", i, r.ID)
			}
		}
		for i := range uint64(20) {
			b.Put(19-i, ring.OpWrite, ring.StatusOK) // last pulled, first answered
			b.Publish()
		}
		for i := f.rspCons + 20; i != f.reqPvt; i++ {
			at := 64 + int(i%32)*f.slotBytes
			if !bytes.Equal(f.slot(i), before[at:at+f.slotBytes]) {
				t.Fatalf("slot %d waits and was written", i%32)
			}
		}
		rs, err := f.take()
		if err != nil || len(rs) != 20 || rs[0].id != 19 || rs[19].id != 0 {
			t.Errorf("responses: %v, %v", rs, err)
		}
	})
}

func TestPanicsOnOurOwnMistakes(t *testing.T) {
	eachRing(t, func(t *testing.T, f *front, b *ring.Back) {
		var r ring.Request
		wantPanic(t, "Put without a request", func() { putN(b, 1) })
		wantPanic(t, "Pull of an empty ring", func() { b.Pull(&r) })
		f.put(readWire(1))
		f.push()
		wantPanic(t, "Pull without Pending", func() { b.Pull(&r) })
		pending(t, b)
		b.Pull(&r)
		wantPanic(t, "Pull past Pending", func() { b.Pull(&r) })
		putN(b, 1)
		wantPanic(t, "a second response", func() { putN(b, 1) })
		b.Publish()
		if rs, err := f.take(); err != nil || len(rs) != 1 {
			t.Errorf("responses: %v, %v, want one", rs, err)
		}
	})
}
