package ring_test

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"xen-disk/ring"
)

// deadline bounds a wait for another goroutine. It is no measure of speed.
const deadline = 60 * time.Second

// mutator is a guest that rewrites its request as long as the test runs. It
// touches mapped memory and an atomic only.
type mutator struct {
	turns atomic.Uint64
	stop  atomic.Bool
	done  chan struct{}
}

// mutate starts a goroutine that ends when the test does.
func mutate(t *testing.T, turn func(turn uint64)) *mutator {
	m := &mutator{done: make(chan struct{})}
	go func() {
		defer close(m.done)
		for !m.stop.Load() {
			turn(m.turns.Add(1))
		}
	}()
	t.Cleanup(func() {
		m.stop.Store(true)
		<-m.done
	})
	return m
}

// wait returns when the mutator has told all its lies again.
func (m *mutator) wait(t *testing.T) {
	end := time.Now().Add(deadline)
	for seen := m.turns.Load(); m.turns.Load() < seen+8; {
		if time.Now().After(end) {
			t.Fatal("the mutator does not run")
		}
		runtime.Gosched()
	}
}

// pick is honest in one turn and lies in another.
func pick(bit uint64, honest, lie byte) byte {
	if bit&1 == 0 {
		return honest
	}
	return lie
}

// TestDoubleFetch is XSA-155: the guest flips what was checked between the
// check and the use.
func TestDoubleFetch(t *testing.T) {
	for _, abi := range abis {
		t.Run(abi.String(), func(t *testing.T) {
			// The id of the response lies over operation and nr_segments:
			// a write of one segment, where the mutator has not been since.
			doubleFetch(t, abi, elevenSegments(0), 0x0101, func(f *front, slot []byte, turn uint64) {
				slot[1] = pick(turn, 1, 255)
				slot[f.sectAt+7] = pick(turn>>2, 0, 255)
				for i := range 11 {
					slot[f.segAt+8*i+5] = pick(turn>>1, 7, 255)
				}
			})
		})
	}
}

// TestDiscardDoubleFetch: nothing bounds the length of a discard but its
// check, and half of a length is another length.
func TestDiscardDoubleFetch(t *testing.T) {
	for _, abi := range abis {
		t.Run(abi.String(), func(t *testing.T) {
			doubleFetch(t, abi, discard(1<<16, 1<<16), 0x0105, func(f *front, slot []byte, turn uint64) {
				slot[0] = pick(turn>>4, 5, 1)
				slot[1] = pick(turn>>3, 0, 255)
				slot[f.sectAt+7] = pick(turn>>2, 0, 255)
				for i := range 8 {
					slot[f.segAt+i] = pick(turn, 0, 255)
				}
				slot[f.segAt+7] = pick(turn>>1, 0, 0x80)
			})
		})
	}
}

// doubleFetch pulls one request again and again while flip rewrites its slot.
// id is that of its responses, the first bytes of the slot when flip is slow.
func doubleFetch(t *testing.T, abi ring.ABI, w wire, id uint64, flip func(f *front, slot []byte, turn uint64)) {
	f, b := pair(t, 1, abi, 0)
	for i := range f.size {
		f.encode(f.slot(i), w)
	}
	slot := f.slot(0)
	m := mutate(t, func(turn uint64) { flip(f, slot, turn) })
	limits := ring.Limits{Sectors: 1 << 20, Discard: true}
	passed, failed := 0, 0
	end := time.Now().Add(deadline)
	for turn := 0; turn < 2000 || passed == 0 || failed == 0; turn++ {
		if time.Now().After(end) {
			t.Fatalf("%d passed and %d did not: the flips are not seen", passed, failed)
		}
		// Only slot 0 is of interest; the others let the ring go round.
		f.reqPvt += f.size
		f.push()
		if n := pending(t, b); n != int(f.size) {
			t.Fatalf("Pending: got %d, want %d", n, f.size)
		}
		var r, other ring.Request
		b.Pull(&r)
		copied := r
		status := ring.Check(&r, &limits)
		if turn%100 == 0 {
			m.wait(t)
		}
		if r != copied {
			t.Fatalf("the copy changed:\n%+v\n%+v", copied, r)
		}
		if status == ring.StatusOK {
			passed++
			wantInBounds(t, &r, &limits)
		} else {
			failed++
		}
		for range f.size - 1 {
			b.Pull(&other)
		}
		for range f.size {
			b.Put(id, ring.OpWrite, ring.StatusOK)
		}
		b.Publish()
		if _, err := f.take(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d passed, %d did not", passed, failed)
}

// TestProducerFlips: the guest moves req_prod while the backend reads it. A
// count that Pending returned is good whatever comes after.
func TestProducerFlips(t *testing.T) {
	f, b := pair(t, 1, ring.X86_64, 0)
	for i := range f.size {
		f.encode(f.slot(i), readWire(uint64(i)))
	}
	prod := word(f.mem, 0)
	var cons atomic.Uint32 // where the liar lies from
	mutate(t, func(turn uint64) {
		at := cons.Load()
		if turn%2 == 1 {
			prod.Store(at + 5)
			return
		}
		prod.Store(at + 1<<31)
	})
	pulled, broken := 0, 0
	end := time.Now().Add(deadline)
	for pulled < 5000 || broken == 0 {
		if time.Now().After(end) {
			t.Fatalf("pulled %d, broken %d times: the flips are not seen", pulled, broken)
		}
		n, err := b.Pending()
		if err != nil {
			broken++
			runtime.Gosched()
			continue
		}
		if n > int(f.size) {
			t.Fatalf("Pending: got %d on a ring of %d", n, f.size)
		}
		var r ring.Request
		for range n {
			b.Pull(&r)
			b.Put(r.ID, r.Op, ring.StatusOK)
		}
		b.Publish()
		b.Rearm()
		pulled += n
		cons.Add(uint32(n))
		if n == 0 {
			runtime.Gosched()
		}
	}
}

// TestPulledRequestNeedsNoRing takes the pages away: Check and all that is
// asked of a request work on the copy, or this test dies of SIGSEGV.
func TestPulledRequestNeedsNoRing(t *testing.T) {
	for _, abi := range abis {
		f, b := pair(t, 1, abi, 0)
		for i := range uint64(f.size) - 1 {
			f.put(elevenSegments(i))
		}
		f.put(wire{op: 5, b1: 1, id: 31, sector: 4096, nrSectors: 1})
		f.push()
		reqs := make([]ring.Request, pending(t, b))
		for i := range reqs {
			b.Pull(&reqs[i])
		}
		if err := syscall.Mprotect(f.mem, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
		for i := range reqs {
			r := &reqs[i]
			if got := ring.Check(r, &offered); got != ring.StatusOK {
				t.Errorf("Check: got %d", got)
			}
			op := ring.OpWrite
			if i == 31 {
				op = ring.OpDiscard
			}
			if r.ID != uint64(i) || r.AnswerOp() != op || r.Offset() != 4096*512 {
				t.Errorf("request %d: %+v", i, r)
			}
			wantInBounds(t, r, &offered)
		}
		if got := b.Outstanding(); got != len(reqs) {
			t.Errorf("Outstanding: got %d, want %d", got, len(reqs))
		}
	}
}
