package ring_test

import (
	"bytes"
	"flag"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"xen-disk/ring"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 takes a new one")

func newRand(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (run again with -seed)", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// model is an honest frontend and a backend that answers when it likes and in
// the order it likes, with what each must believe about the other.
type model struct {
	t    *testing.T
	rnd  *rand.Rand
	f    *front
	b    *ring.Back
	sent map[uint64]wire // made and not answered
	made uint64

	waiting []uint64       // pushed and not pulled, in order
	pulled  []ring.Request // pulled and not answered
	put     []response     // put and not taken, in order
	slots   map[uint32][]byte

	pushed, published uint32
	frontSleeps       bool // until a notification
	backSleeps        bool
	answered          int
}

func newModel(t *testing.T, rnd *rand.Rand, pages int, abi ring.ABI, start uint32) *model {
	f, b := pair(t, pages, abi, start)
	return &model{
		t: t, rnd: rnd, f: f, b: b, sent: map[uint64]wire{}, slots: map[uint32][]byte{},
		pushed: start, published: start,
	}
}

// crosses says, index by index, whether a move from old to now passes event.
func crosses(old, now, event uint32) bool {
	for i := old; i != now; {
		i++
		if i == event {
			return true
		}
	}
	return false
}

// request makes an honest request.
func (m *model) request() wire {
	m.made++
	ops := []uint8{0, 1, 2, 3, 5}
	w := wire{op: ops[m.rnd.IntN(len(ops))], id: m.made * 0x9e3779b97f4a7c15, sector: m.rnd.Uint64N(1 << 20)}
	if w.op == 5 {
		w.b1, w.b2, w.nrSectors = uint8(m.rnd.IntN(2)), uint16(m.rnd.Uint32()), m.rnd.Uint64()
		return w
	}
	if w.op < 2 || m.rnd.IntN(4) == 0 {
		w.b1 = uint8(1 + m.rnd.IntN(11))
	}
	w.b2 = uint16(m.rnd.Uint32())
	for range w.b1 {
		first := uint8(m.rnd.IntN(8))
		last := first + uint8(m.rnd.IntN(int(8-first)))
		w.segs = append(w.segs, wireSegment{m.rnd.Uint32(), first, last})
	}
	return w
}

func (m *model) frontPush() {
	n := m.rnd.IntN(int(m.f.free()) + 1)
	for range n {
		w := m.request()
		m.sent[w.id] = w
		m.waiting = append(m.waiting, w.id)
		at := m.f.reqPvt
		m.f.put(w)
		m.slots[at%m.f.size] = bytes.Clone(m.f.slot(at))
	}
	want := crosses(m.pushed, m.f.reqPvt, word(m.f.mem, 4).Load())
	m.pushed = m.f.reqPvt
	notify := m.f.push()
	if notify != want {
		m.t.Fatalf("the frontend's own notify: got %v, want %v", notify, want)
	}
	if m.backSleeps && n > 0 && !notify {
		m.t.Fatal("the backend sleeps and is not woken")
	}
	m.backSleeps = m.backSleeps && n == 0
}

func (m *model) backPull() {
	n := pending(m.t, m.b)
	if n != len(m.waiting) {
		m.t.Fatalf("Pending: got %d, want %d", n, len(m.waiting))
	}
	if n > 0 {
		n = m.rnd.IntN(n + 1)
	}
	for range n {
		var r ring.Request
		m.b.Pull(&r)
		m.wantRequest(&r)
		m.waiting = m.waiting[1:]
		m.pulled = append(m.pulled, r)
	}
	if got := m.b.Outstanding(); got != len(m.pulled) {
		m.t.Fatalf("Outstanding: got %d, want %d", got, len(m.pulled))
	}
}

func (m *model) wantRequest(r *ring.Request) {
	w, ok := m.sent[r.ID]
	if !ok || m.waiting[0] != r.ID {
		m.t.Fatalf("pulled id %#x, want %#x", r.ID, m.waiting[0])
	}
	nrSegs, flag := uint16(w.b1), uint8(0)
	if w.op == 5 {
		nrSegs, flag = 0, w.b1
	}
	if uint8(r.Op) != w.op || r.Sector != w.sector || r.NrSegs != nrSegs || r.Flag != flag || r.NrSectors != w.nrSectors {
		m.t.Fatalf("got %+v, want %+v", r, w)
	}
	for i, s := range w.segs {
		if want := (ring.Segment{Ref: s.gref, First: s.first, Last: s.last}); r.Segs[i] != want {
			m.t.Fatalf("segment %d: got %+v, want %+v", i, r.Segs[i], want)
		}
	}
}

func (m *model) backPut() {
	for range m.rnd.IntN(len(m.pulled) + 1) {
		i := m.rnd.IntN(len(m.pulled))
		r := m.pulled[i]
		m.pulled[i] = m.pulled[len(m.pulled)-1]
		m.pulled = m.pulled[:len(m.pulled)-1]
		status := ring.Status(-m.rnd.IntN(3))
		m.b.Put(r.ID, r.AnswerOp(), status)
		m.put = append(m.put, response{r.ID, uint8(r.Op), int16(status)})
	}
	// Whatever was put, requests that wait are as the guest wrote them.
	for i := range uint32(len(m.waiting)) {
		at := m.f.reqPvt - uint32(len(m.waiting)) + i
		if !bytes.Equal(m.f.slot(at), m.slots[at%m.f.size]) {
			m.t.Fatalf("request %d waits and its slot was written", at)
		}
	}
}

func (m *model) backPublish() {
	now := m.f.rspCons + uint32(len(m.put))
	want := crosses(m.published, now, word(m.f.mem, 12).Load())
	owed := m.frontSleeps && now != m.published
	m.published = now
	notify := m.b.Publish()
	if notify != want {
		m.t.Fatalf("Publish: got %v, want %v", notify, want)
	}
	if owed && !notify {
		m.t.Fatal("the frontend sleeps and is not woken")
	}
	m.frontSleeps = m.frontSleeps && !notify
}

func (m *model) frontTake() {
	rs, err := m.f.take()
	if err != nil {
		m.t.Fatal(err)
	}
	for i, r := range rs {
		if r != m.put[i] {
			m.t.Fatalf("response: got %+v, want %+v", r, m.put[i])
		}
		if _, ok := m.sent[r.id]; !ok {
			m.t.Fatalf("id %#x was answered before", r.id)
		}
		delete(m.sent, r.id)
	}
	m.put = m.put[len(rs):]
	m.answered += len(rs)
	m.frontSleeps = !m.f.arm()
}

func (m *model) backRearm() {
	more := m.b.Rearm()
	if more != (len(m.waiting) > 0) {
		m.t.Fatalf("Rearm: got %v with %d waiting", more, len(m.waiting))
	}
	m.backSleeps = !more
}

func (m *model) run(answers int) {
	steps := []func(){m.frontPush, m.backPull, m.backPut, m.backPublish, m.frontTake, m.backRearm}
	for m.answered < answers {
		steps[m.rnd.IntN(len(steps))]()
	}
	for len(m.sent) > 0 {
		m.backPull()
		m.backPut()
		m.backPublish()
		m.frontTake()
	}
}

// TestHonestFrontend runs rings round some thousand times, over 2^32 at
// different places.
func TestHonestFrontend(t *testing.T) {
	rnd := newRand(t)
	const wraps = 1000
	for _, abi := range abis {
		for _, start := range []uint32{0, math.MaxUint32 - 20000} {
			m := newModel(t, rnd, 1, abi, start)
			m.run(wraps * int(m.f.size))
		}
		for _, pages := range []int{2, 4, 8, 16} {
			m := newModel(t, rnd, pages, abi, rnd.Uint32())
			m.run(100 * int(m.f.size))
		}
	}
}
