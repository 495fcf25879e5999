package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
)

// MaxOrder is the largest ring a backend need offer: 16 pages, 512 slots.
// Linux' xen-blkback and QEMU have the same limit.
const MaxOrder = 4

// ErrBroken reports indices that no honest frontend can produce: more
// requests outstanding than the ring has slots. Nothing on such a ring can be
// trusted any more; the caller stops serving it.
var ErrBroken = errors.New("ring is broken: req_prod is further ahead than the ring is long")

// Back is the backend's end of one ring.
//
// Pending, Pull and Rearm belong to the one goroutine that consumes; Put and
// Publish to whoever holds the caller's lock for responses. The two halves
// may run at the same time.
type Back struct {
	mem     []byte
	layout  *layout
	reqProd *atomic.Uint32 // the guest's
	reqEv   *atomic.Uint32
	rspProd *atomic.Uint32
	rspEv   *atomic.Uint32 // the guest's

	size, mask uint32
	reqCons    uint32
	// checked is req_prod as Pending last found it in bounds. Nothing past
	// it may be pulled, or answered.
	checked atomic.Uint32
	// rspPvt counts the responses put. Pending reads it while another
	// goroutine puts; it is raised before rsp_prod is, so a req_prod that
	// the guest wrote after it saw rsp_prod is never held against an older
	// count.
	rspPvt    atomic.Uint32
	published uint32 // what Publish stored last: rsp_prod is never read back
}

// New takes a ring of 1, 2, 4, 8 or 16 pages into use, from where its indices
// stand. On a fresh ring all are zero. On one that another backend served
// before (after it drained it) the next request is the one at rsp_prod.
func New(mem []byte, abi ABI) (*Back, error) {
	pages := len(mem) / PageBytes
	if len(mem)%PageBytes != 0 || pages == 0 || pages > 1<<MaxOrder || pages&(pages-1) != 0 {
		return nil, fmt.Errorf("ring of %d bytes: want 1, 2, 4, 8 or 16 pages", len(mem))
	}
	b := &Back{mem: mem, layout: abi.layout()}
	b.reqProd, b.reqEv = index(mem, 0), index(mem, 4)
	b.rspProd, b.rspEv = index(mem, 8), index(mem, 12)
	b.size = Slots(pages, abi)
	b.mask = b.size - 1
	start := b.rspProd.Load()
	b.reqCons, b.published = start, start
	b.rspPvt.Store(start)
	b.checked.Store(start)
	if b.reqProd.Load()-start > b.size {
		return nil, ErrBroken
	}
	return b, nil
}

// Slots is how many requests a ring of this many pages holds: the largest
// power of two that fits behind the header (ring.h, __RING_SIZE).
func Slots(pages int, abi ABI) uint32 {
	n := (pages*PageBytes - headerBytes) / abi.layout().slot
	if n < 1 {
		return 0
	}
	return 1 << (bits.Len(uint(n)) - 1)
}

// Size is how many slots the ring has.
func (b *Back) Size() int { return int(b.size) }

// Outstanding is how many requests were pulled and not answered. Only the
// consuming goroutine may call it.
func (b *Back) Outstanding() int { return int(b.reqCons - b.rspPvt.Load()) }

// Pending returns how many requests wait to be pulled, or ErrBroken. It loads
// req_prod once; whatever the guest writes there later does not change the
// count that was checked.
func (b *Back) Pending() (int, error) {
	// The load orders the reads of slots after it (xen_rmb).
	prod := b.reqProd.Load()
	// As RING_REQUEST_PROD_OVERFLOW: every request that is outstanding,
	// pulled or not, must have a slot.
	if prod-b.rspPvt.Load() > b.size {
		return 0, ErrBroken
	}
	n := prod - b.reqCons
	if n > b.size { // req_prod moved backwards, behind what was pulled
		return 0, ErrBroken
	}
	if b.checked.Load() != prod {
		b.checked.Store(prod)
	}
	return int(n), nil
}

// Pull copies the next request to r. The caller has been told by Pending that
// there is one; it panics if not.
func (b *Back) Pull(r *Request) {
	if checked := b.checked.Load(); b.reqCons == checked {
		panic(fmt.Sprintf("ring: pull of request %d, want one before %d", b.reqCons, checked))
	}
	var slot [maxSlotBytes]byte
	at := headerBytes + int(b.reqCons&b.mask)*b.layout.slot
	copy(slot[:], b.mem[at:at+b.layout.slot])
	b.reqCons++
	decode(&slot, b.layout, r)
}

// Put writes a response into the next slot, where the guest does not look
// until Publish. Padding is left alone: writing it would show the guest bytes
// of ours (XSA-216). It panics if every request that Pending has counted is
// answered: one more would lie where a new request may be.
func (b *Back) Put(id uint64, op Op, s Status) {
	pvt := b.rspPvt.Load()
	if checked := b.checked.Load(); pvt == checked {
		panic(fmt.Sprintf("ring: response %d, want one before %d", pvt, checked))
	}
	at := headerBytes + int(pvt&b.mask)*b.layout.slot
	slot := b.mem[at : at+responseBytes : at+responseBytes]
	binary.LittleEndian.PutUint64(slot, id)
	slot[8] = byte(op)
	binary.LittleEndian.PutUint16(slot[10:], uint16(s))
	b.rspPvt.Store(pvt + 1)
}

// Publish shows the guest every response put so far. It reports whether the
// guest must be notified: it asked for an event at rsp_event, and it is owed
// one only when rsp_prod passes that (ring.h,
// RING_PUSH_RESPONSES_AND_CHECK_NOTIFY).
func (b *Back) Publish() (notify bool) {
	old, now := b.published, b.rspPvt.Load()
	if old == now {
		return false
	}
	b.published = now
	// xen_wmb before the store, and xen_mb between it and the load of
	// rsp_event: Go's atomics are sequentially consistent (go.dev/ref/mem).
	// Swap is what Store is on amd64 (XCHG); a Store of a -race build is a
	// plain MOV there, which the load may overtake: a lost notification.
	b.rspProd.Swap(now)
	return now-b.rspEv.Load() < now-old
}

// Rearm asks the guest for an event with its next request, and reports
// whether one is there already, in which case no event may come and the
// caller must look again (ring.h, RING_FINAL_CHECK_FOR_REQUESTS).
func (b *Back) Rearm() (more bool) {
	b.reqEv.Swap(b.reqCons + 1) // xen_mb, as in Publish
	return b.reqProd.Load() != b.reqCons
}
