package fakexen

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
)

// Xenbus states (xen/include/public/io/xenbus.h).
const (
	stateInitialising = "1"
	stateInitWait     = "2"
	stateInitialised  = "3"
	stateConnected    = "4"
	stateClosing      = "5"
	stateClosed       = "6"
)

// Options make a frontend like one that exists. The zero value is Linux with
// one queue and one page, that says nothing of persistent grants.
type Options struct {
	ABI           string // of the protocol node; "" writes none
	Native32      bool   // 32-bit slots whatever ABI says: gnumach writes none
	RingOrder     int    // at most max-ring-page-order
	WriteOrder    bool   // write ring-page-order and ring-ref0 for one page too
	Queues        int    // at most multi-queue-max-queues; 0 is 1
	WriteQueues   bool   // write multi-queue-num-queues for one too: winvbd
	IgnoreLimits  bool   // take RingOrder and Queues though not advertised
	Persistent    bool   // write feature-persistent 1
	Indirect      int    // segments of Read and Write, if advertised; 0 is none
	WideIDs       bool   // ids are 64 bits, as winvbd's pointers
	Polled        bool   // never asks to be notified: GRUB
	FirstSect     int    // where Read and Write begin in a page
	StateReady    int    // 0 is 3; 4 is MiniOS, which does not wait for InitWait
	RefuseClose   bool   // "Device in use": stays at 5 until Close, as before 5.15
	Manual        bool   // does nothing by itself
	MissingIsFine bool   // connects though sectors and so on are missing
	Extra         map[string]string
}

// Info is what the backend said when the frontend connected.
type Info struct {
	Sectors, SectorSize, PhysicalSectorSize, Bits           uint64
	FlushCache, Barrier, Persistent, Discard, DiscardSecure bool
	DiscardGranularity, DiscardAlignment                    uint64
	MaxIndirect, MaxRingOrder, MaxQueues                    uint64
}

// A Blkfront is the frontend of one vbd. A goroutine watches the backend and
// does the handshake of Linux' blkfront; Stop ends it.
type Blkfront struct {
	dom       *Domain
	store     *Store
	opts      Options
	devid     uint32
	backendID uint32
	dir       string
	lay       layout

	persist atomic.Bool

	mu        sync.Mutex
	auto      bool
	state     string
	backend   string // its directory
	queues    []*queue
	info      Info
	connects  int
	connected bool
	changed   chan struct{}

	vmu        sync.Mutex
	violations []error

	stop chan struct{}
	done chan struct{}
}

// NewBlkfront starts the driver for the vbd whose frontend directory is there.
func NewBlkfront(m *Machine, domid, devid uint32, opts Options) (*Blkfront, error) {
	x, dom := m.Store(), m.Domain(domid)
	if x == nil || dom == nil {
		return nil, fmt.Errorf("no domain %d, or no xenstored", domid)
	}
	b := &Blkfront{dom: dom, store: x.Store(domid), opts: opts, devid: devid,
		dir: fmt.Sprintf("%s/device/vbd/%d", domainPath(domid), devid),
		lay: layoutOf(opts.ABI), auto: !opts.Manual, state: stateInitialising,
		changed: make(chan struct{}),
		stop:    make(chan struct{}), done: make(chan struct{})}
	if opts.Native32 {
		b.lay = layout32
	}
	id, err := b.store.ReadUint(b.dir + "/backend-id")
	if err != nil {
		return nil, err
	}
	b.backendID = uint32(id)
	if b.backend, err = b.store.Read(b.dir + "/backend"); err != nil {
		return nil, fmt.Errorf("read backend: %w", err)
	}
	if err := b.store.Watch(b.backend, "backend"); err != nil {
		return nil, fmt.Errorf("watch backend: %w", err)
	}
	go b.run() // ends when Stop closes b.stop
	return b, nil
}

func (b *Blkfront) run() {
	defer close(b.done)
	for {
		select {
		case <-b.stop:
			return
		case <-b.store.Changed():
		}
		b.store.Events()
		b.Step()
	}
}

// Stop ends the frontend without a handshake and gives back what it has of
// the guest. Idempotent. What a backend still has mapped is an error.
func (b *Blkfront) Stop() error {
	b.mu.Lock()
	select {
	case <-b.stop:
	default:
		close(b.stop)
	}
	b.auto = false
	b.mu.Unlock()
	<-b.done
	b.store.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freeQueues()
}

// Step looks at the backend's state and does what it calls for.
func (b *Blkfront) Step() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.auto {
		return
	}
	state, err := b.store.Read(b.backend + "/state")
	if err != nil { // gone: the toolstack will remove our directory too
		if b.state == stateClosed {
			b.report(b.freeQueues())
		}
		return
	}
	switch state {
	case stateInitialising, stateInitWait, stateInitialised, stateConnected:
		if b.state == stateInitialising && (state != stateInitialising || b.opts.StateReady == 4) {
			b.report(b.talk())
		}
		if state == stateConnected && b.state != stateInitialising && b.state != stateClosed {
			b.report(b.connect())
		}
	case stateClosing, stateClosed:
		if state == stateClosing && b.opts.RefuseClose {
			b.refuse()
			break
		}
		if b.state != stateClosed {
			b.report(b.setState(stateClosing))
			b.closeQueues()
			b.report(b.setState(stateClosed))
		}
		if state == stateClosed {
			b.report(b.freeQueues())
		}
	}
}

func (b *Blkfront) report(err error) {
	if err != nil {
		_ = b.violate(err)
	}
}

func (b *Blkfront) refuse() {
	if b.state == stateClosing {
		return
	}
	path := fmt.Sprintf("error/device/vbd/%d/error", b.devid)
	b.report(b.store.Write(path, "16 Device in use; refusing to close"))
	b.report(b.setState(stateClosing))
}

// setState writes our state. The caller holds b.mu.
func (b *Blkfront) setState(s string) error {
	b.state = s
	if s == stateClosed || s == stateInitialising {
		b.connected = false
	}
	b.tell()
	return b.store.Write(b.dir+"/state", s)
}

// tell wakes those who wait for a change of the frontend.
func (b *Blkfront) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// number reads a node of the backend; missing is 0.
func (b *Blkfront) number(name string) uint64 {
	n, _ := b.store.ReadUint(b.backend + "/" + name)
	return n
}

// talk makes rings and tells the backend of them, then is Initialised.
func (b *Blkfront) talk() error {
	order, n := b.opts.RingOrder, max(b.opts.Queues, 1)
	if !b.opts.IgnoreLimits {
		order = min(order, int(b.number("max-ring-page-order")))
		n = min(n, max(int(b.number("multi-queue-max-queues")), 1))
	}
	_ = b.freeQueues() // a reset: the backend may have the old ones mapped
	for i := range n {
		q, err := newQueue(b, i, order)
		if err != nil {
			return err
		}
		b.queues = append(b.queues, q)
	}
	if err := b.store.Tx(func(t *Store) error { return b.publish(t, order) }); err != nil {
		return fmt.Errorf("publish ring: %w", err)
	}
	ready := stateInitialised
	if b.opts.StateReady == 4 {
		ready = stateConnected
	}
	return b.setState(ready)
}

func (b *Blkfront) publish(t *Store, order int) error {
	var errs []error
	put := func(name string, v uint64) {
		errs = append(errs, t.Write(b.dir+"/"+name, strconv.FormatUint(v, 10)))
	}
	withOrder := order > 0 || b.opts.WriteOrder
	if withOrder {
		put("ring-page-order", uint64(order))
	}
	if len(b.queues) > 1 || b.opts.WriteQueues {
		put("multi-queue-num-queues", uint64(len(b.queues)))
	}
	for i, q := range b.queues {
		prefix := ""
		if len(b.queues) > 1 {
			prefix = fmt.Sprintf("queue-%d/", i)
		}
		for j, ref := range q.refs {
			name := "ring-ref"
			if withOrder {
				name = fmt.Sprintf("ring-ref%d", j)
			}
			put(prefix+name, uint64(ref))
		}
		put(prefix+"event-channel", uint64(q.port))
	}
	if b.opts.ABI != "" {
		errs = append(errs, t.Write(b.dir+"/protocol", b.opts.ABI))
	}
	if b.opts.Persistent {
		put("feature-persistent", 1)
	}
	for k, v := range b.opts.Extra {
		errs = append(errs, t.Write(b.dir+"/"+k, v))
	}
	return errors.Join(errs...)
}

// connect reads what the backend offers and is Connected; a second time it
// only reads the size again.
func (b *Blkfront) connect() error {
	if b.state == stateClosing {
		return nil
	}
	if b.connected {
		b.info.Sectors = b.number("sectors")
		b.tell()
		return nil
	}
	for _, name := range []string{"sectors", "info", "sector-size"} {
		if _, err := b.store.ReadUint(b.backend + "/" + name); err != nil && !b.opts.MissingIsFine {
			return fmt.Errorf("backend is Connected: %w", err)
		}
	}
	flag := func(name string) bool { return b.number(name) == 1 }
	b.info = Info{
		Sectors: b.number("sectors"), SectorSize: b.number("sector-size"),
		PhysicalSectorSize: b.number("physical-sector-size"), Bits: b.number("info"),
		FlushCache: flag("feature-flush-cache"), Barrier: flag("feature-barrier"),
		Persistent: flag("feature-persistent"),
		Discard:    flag("feature-discard"), DiscardSecure: flag("discard-secure"),
		DiscardGranularity: b.number("discard-granularity"),
		DiscardAlignment:   b.number("discard-alignment"),
		MaxIndirect:        b.number("feature-max-indirect-segments"),
		MaxRingOrder:       b.number("max-ring-page-order"),
		MaxQueues:          b.number("multi-queue-max-queues"),
	}
	b.persist.Store(b.opts.Persistent && b.info.Persistent)
	b.connected = true
	b.connects++
	return b.setState(stateConnected)
}

func (b *Blkfront) closeQueues() {
	for _, q := range b.queues {
		q.close()
	}
}

func (b *Blkfront) freeQueues() error {
	var errs []error
	for _, q := range b.queues {
		errs = append(errs, q.free())
	}
	b.queues = nil
	b.persist.Store(false)
	b.tell()
	return errors.Join(errs...)
}

func (b *Blkfront) persistent() bool { return b.persist.Load() }

func (b *Blkfront) idBase() uint64 {
	if b.opts.WideIDs {
		return 0xffff_f800_1234_5000
	}
	return 0
}

// revoke ends a grant and frees its page, unless a backend still uses it.
func (b *Blkfront) revoke(g granted) error {
	if b.dom.Revoke(g.ref) {
		return fmt.Errorf("backend still uses grant %d", g.ref)
	}
	b.dom.FreePage(g.page)
	return nil
}

func (b *Blkfront) violate(err error) error {
	b.vmu.Lock()
	defer b.vmu.Unlock()
	const enough = 100 // a broken backend repeats itself
	if len(b.violations) < enough {
		b.violations = append(b.violations, err)
	}
	return err
}

// Violations lists what the backend did that it may not do.
func (b *Blkfront) Violations() error {
	b.vmu.Lock()
	defer b.vmu.Unlock()
	return errors.Join(b.violations...)
}

// waitUntil waits until ok is true of the frontend.
func (b *Blkfront) waitUntil(ctx context.Context, ok func() bool) error {
	for {
		b.mu.Lock()
		fine, changed := ok(), b.changed
		b.mu.Unlock()
		if fine {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("frontend is in state %s: %w", b.State(), ctx.Err()), b.Violations())
		}
	}
}

// WaitConnected waits until the handshake is done.
func (b *Blkfront) WaitConnected(ctx context.Context) error {
	return b.waitUntil(ctx, func() bool { return b.connected })
}

// WaitSectors waits until a resize has arrived.
func (b *Blkfront) WaitSectors(ctx context.Context, sectors uint64) error {
	return b.waitUntil(ctx, func() bool { return b.connected && b.info.Sectors == sectors })
}

// WaitClosed waits until the backend has closed the device and all of the
// frontend is freed.
func (b *Blkfront) WaitClosed(ctx context.Context) error {
	return b.waitUntil(ctx, func() bool { return b.state == stateClosed && len(b.queues) == 0 })
}

// Info returns what the backend offers.
func (b *Blkfront) Info() Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.info
}

// State returns the frontend's own state.
func (b *Blkfront) State() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// Connects counts how often the frontend became Connected.
func (b *Blkfront) Connects() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connects
}

func (b *Blkfront) allQueues() []*queue {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*queue(nil), b.queues...)
}

func (b *Blkfront) queue(i int) (*queue, error) {
	qs := b.allQueues()
	if i < 0 || i >= len(qs) {
		return nil, fmt.Errorf("queue %d of %d: %w", i, len(qs), ErrClosed)
	}
	return qs[i], nil
}
