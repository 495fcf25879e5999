package blkback

import (
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"xen-disk/disk"
	"xen-disk/xs"
)

// recheck is how often a vbd asks whether its domain still lives. A domain's
// death is announced by @releaseDomain, but that can be lost (XSA-325).
const recheck = 30 * time.Second

// retry is how long a vbd waits after xenstore refused a request (short of
// memory, or a transaction that others did not let through) before another.
const retry = time.Second

// Spec says what to attach where.
type Spec struct {
	Domid uint32
	Devid uint32 // 0: the next free xvd
	Disk  disk.Disk
	// Events hears what happens to the vbd, in order, from its control
	// goroutine. It must not block for long. It may be nil.
	Events func(Event)
}

// VBD is an attached virtual block device. Its methods may be called by any
// goroutine.
type VBD struct {
	b     *Backend
	spec  Spec
	devid uint32
	paths paths
	log   zerolog.Logger
	guest zerolog.Logger // rate-limited: for what a guest can cause at will

	poke      chan struct{} // capacity 1: look at the nodes again
	detach    chan struct{} // closed: ask the guest to let go
	force     chan struct{} // closed: let go without it
	reports   chan error    // capacity 1: the loop gave up on the ring
	closeOnce [2]sync.Once
	done      chan struct{}
	err       error // valid when done is closed

	// The control goroutine's own.
	watches  []*xs.Watch
	asked    bool // detach was carried out
	gone     bool // look saw it once: what a guest makes anew is not ours
	link     *link
	nodes    *frontNodes // the rings that link serves
	lastWait string

	mu    sync.Mutex
	total Stats // of links that are closed
	live  *link // == link, for Stats
}

// Devid is the vbd's virtual device number.
func (v *VBD) Devid() uint32 { return v.devid }

// Name is what a Linux guest calls the device, such as xvdb.
func (v *VBD) Name() string { return VdevName(v.devid) }

// BackendPath is the vbd's directory in xenstore.
func (v *VBD) BackendPath() string { return v.paths.back }

// Detach asks the guest to let go of the device, and ends the vbd when it
// has.
func (v *VBD) Detach() { v.closeOnce[0].Do(func() { close(v.detach) }) }

// Force ends the vbd without asking: the guest sees I/O errors or worse.
func (v *VBD) Force() { v.closeOnce[1].Do(func() { close(v.force) }) }

// Done is closed when the vbd has ended and nothing of it is left.
func (v *VBD) Done() <-chan struct{} { return v.done }

// Err says why the vbd ended, nil when it was detached in order. It is valid
// after Done.
func (v *VBD) Err() error { return v.err }

// Stats counts what the vbd has done so far.
func (v *VBD) Stats() Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	sum := v.total
	if v.live != nil {
		s := v.live.stats()
		sum.add(&s)
	}
	return sum
}

// wake makes the control goroutine look again. It never blocks, and a
// thousand calls are as good as one: a guest that writes its nodes in a loop
// costs no memory (XSA-349).
func (v *VBD) wake() {
	select {
	case v.poke <- struct{}{}:
	default:
	}
}

func (v *VBD) emit(e Event) {
	if v.spec.Events != nil {
		v.spec.Events(e)
	}
}

// run is the control goroutine. Finish stops it.
func (v *VBD) run() {
	err := v.control()
	v.b.remove(v)
	for _, w := range v.watches {
		w.Close()
	}
	v.err = errors.Join(err, v.release())
	close(v.done)
}

func (v *VBD) control() error {
	timer := time.NewTicker(recheck)
	defer timer.Stop()
	for {
		now, err := v.look()
		if err == nil {
			st := decide(now)
			if st == stepFinish {
				return v.finish(now)
			}
			if st == stepWait {
				v.waiting(now)
				err = v.wait(timer.C)
			} else {
				err = v.take(st, now.back)
			}
		}
		if v.b.conn.Err() != nil {
			return v.abandon(v.b.conn.Err())
		}
		if err != nil {
			// Nothing is lost: the nodes say what is to be done yet.
			v.guest.Error().Err(err).Msg("xenstore refuses; trying again")
			v.pause()
		}
	}
}

// pause waits before xenstore is asked again.
func (v *VBD) pause() {
	timer := time.NewTimer(retry)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-v.force:
	case <-v.b.conn.Done():
	}
}

// wait returns when there may be something new to look at.
func (v *VBD) wait(tick <-chan time.Time) error {
	detach := v.detach
	if v.asked {
		detach = nil
	}
	select {
	case <-v.poke:
	case <-tick:
	case <-v.force:
	case <-v.b.conn.Done():
	case err := <-v.reports:
		return v.fatal(err)
	case <-detach:
		return v.requestDetach()
	}
	return nil
}

// look reads everything that decide wants to know.
func (v *VBD) look() (view, error) {
	now := view{connected: v.link != nil}
	select {
	case <-v.force:
		now.forced = true
		return now, nil
	default:
	}
	conn := v.b.conn
	front, frontExists, err := readState(conn, v.paths.front)
	if err != nil {
		return now, err
	}
	back, backExists, err := readState(conn, v.paths.back)
	if err != nil {
		return now, err
	}
	alive, err := isAlive(conn, v.spec.Domid)
	if err != nil {
		return now, err
	}
	online, err := readOptional(conn, v.paths.back+"/online", "0")
	if err != nil {
		return now, err
	}
	now.front, now.back, now.online = front, back, online == "1"
	v.gone = v.gone || !frontExists || !backExists || !alive
	now.gone = v.gone
	if v.link != nil && (front == xs.StateInitialised || front == xs.StateConnected) && !now.gone {
		nodes, err := readFront(conn, v.paths.front)
		// A frontend with bad nodes has not published another ring.
		now.moved = err == nil && !nodes.equal(v.nodes)
	}
	return now, nil
}

// take takes a step; back is our state as look saw it. An error is xenstore's.
func (v *VBD) take(st step, back xs.State) error {
	switch st {
	case stepConnect:
		return v.connect(back)
	case stepClosing:
		moved, err := v.move(back, xs.StateClosing)
		if moved {
			v.emit(Event{Kind: EventClosing})
		}
		return err
	}
	// The other steps drop the ring first.
	if !v.disconnect() {
		return nil
	}
	var err error
	switch st {
	case stepOffer:
		err = v.offer(back)
	case stepClosed:
		_, err = v.move(back, xs.StateClosed)
	}
	return err
}

// offer writes what frontends read before they publish a ring, then InitWait.
// Indirect segments, larger rings and more queues will be offered here.
func (v *VBD) offer(back xs.State) error {
	_, err := v.move(back, xs.StateInitWait)
	return err
}

// connect maps the frontend's ring and starts to serve it.
func (v *VBD) connect(back xs.State) error {
	if err := v.describe(); err != nil {
		return err
	}
	nodes, err := readFront(v.b.conn, v.paths.front)
	if err != nil {
		return v.fatal(err)
	}
	door, err := v.b.openXen()
	if err != nil {
		return v.fatal(err)
	}
	l := &link{
		domid: uint16(v.spec.Domid), xen: door, disk: v.spec.Disk, limits: limitsOf(v.spec.Disk),
		loop: v.b.loop, pool: v.b.pool, workers: v.b.workers,
		log: v.guest, report: v.report,
	}
	if err := l.connectRing(nodes); err != nil {
		return v.fatal(err)
	}
	v.setLink(l, nodes)
	moved, err := v.move(back, xs.StateConnected)
	if err != nil {
		v.disconnect()
	}
	if !moved {
		return err
	}
	// A guest can come and go as often as it likes.
	v.guest.Info().Stringer("protocol", nodes.abi).Msg("connected")
	v.emit(Event{Kind: EventConnected, Protocol: nodes.abi.String(), Slots: l.queues[0].back.Size()})
	return nil
}

// describe writes, in one transaction, what the frontend reads at Connected.
func (v *VBD) describe() error {
	nodes := features(v.spec.Disk)
	return v.b.conn.Transaction(func(tx *xs.Tx) error {
		return writeAll(tx, v.paths.back, nodes)
	})
}

// move writes our state node, which the frontend watches, unless it is no
// longer what look saw. The toolstack writes it too, to detach: Closing must
// not be lost under our Connected, nor a directory that was removed be made
// anew by a write into it.
func (v *VBD) move(from, to xs.State) (moved bool, err error) {
	err = v.b.conn.Transaction(func(tx *xs.Tx) error {
		moved = false
		now, exists, err := readState(tx, v.paths.back)
		if err != nil || !exists || now != from {
			return err
		}
		moved = true
		return tx.Write(v.paths.back+"/state", to.Value())
	})
	moved = moved && err == nil
	v.log.Debug().Stringer("state", to).Bool("moved", moved).Msg("backend state")
	return moved, err
}

// report is how the loop says that it gave up on the ring.
func (v *VBD) report(err error) {
	select {
	case v.reports <- err:
	default:
	}
}

func (v *VBD) setLink(l *link, nodes *frontNodes) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.live != nil {
		s := v.live.stats()
		v.total.add(&s)
	}
	v.link, v.nodes, v.live = l, nodes, l
	if l != nil {
		return // it may have reported already
	}
	select {
	case <-v.reports: // of the link that is no more
	default:
	}
}
