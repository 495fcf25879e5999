package blkback

import (
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"xen-disk/disk"
	"xen-disk/reactor"
	"xen-disk/ring"
)

const (
	// maxQueues bounds multi-queue-num-queues. One queue is offered today.
	maxQueues = 1
	// forcedDrain is how long a forced detach waits for requests that are
	// inside the disk. A disk that hangs (a dead network mount) must not
	// hold up the guest's destruction or the process' exit.
	forcedDrain = 5 * time.Second
)

// errBusy reports requests that did not come back from the disk in time.
var errBusy = errors.New("requests are still inside the disk")

// link is a connected vbd: the door to the hypervisor, the frontend's rings
// and the queues on them. It is made at Connected and closed when the
// frontend lets go. Ready and turns run on the loop; connectRing, stop, drain,
// sever and close are the control goroutine's.
type link struct {
	domid   uint16
	xen     Xen
	disk    disk.Disk
	limits  ring.Limits
	loop    *reactor.Loop
	pool    *reactor.Pool
	workers []*worker
	log     zerolog.Logger // rate-limited: a guest can make it speak
	report  func(error)    // tells the control goroutine; must not block

	rings  [][]byte
	queues []*queue
	ports  [maxQueues]uint32 // loop only: scratch for Pending
	again  []func()          // per queue: its next turn, made once
	parked []bool            // loop only: queues whose ring is broken
	posted []bool            // loop only: queues whose next turn is posted

	stopped bool          // loop only
	idleC   chan struct{} // capacity 1: some queue has become idle
}

// connectRing maps the rings that the frontend named, binds their event
// channels and begins to serve. On error nothing is left behind.
func (l *link) connectRing(nodes *frontNodes) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	l.idleC = make(chan struct{}, 1)
	for _, qn := range nodes.queues {
		mem, err := l.xen.Map(uint32(l.domid), qn.refs, true)
		if err != nil {
			return fmt.Errorf("map ring-ref %v: %w", qn.refs, err)
		}
		l.rings = append(l.rings, mem)
		back, err := ring.New(mem, nodes.abi)
		if err != nil {
			return err
		}
		port, err := l.xen.Bind(uint32(l.domid), qn.port)
		if err != nil {
			return fmt.Errorf("bind event-channel %d: %w", qn.port, err)
		}
		q := newQueue(l, back, port)
		l.queues = append(l.queues, q)
		l.parked = append(l.parked, false)
		l.posted = append(l.posted, false)
		n := len(l.queues) - 1
		l.again = append(l.again, func() {
			l.posted[n] = false
			l.turn(n)
		})
	}
	// The ports are pending from the bind on, so the first look at the ring
	// comes by itself.
	return l.loop.Add(l.xen.EventFD(), l)
}

// Ready serves the queues whose event channels fired (reactor.Handler).
func (l *link) Ready(uint32) {
	if l.stopped {
		return
	}
	n, err := l.xen.Pending(l.ports[:])
	if err != nil {
		l.stopEvents(fmt.Errorf("read event channels: %w", err))
		return
	}
	live := 0
	for _, port := range l.ports[:n] {
		for i, q := range l.queues {
			if q.port != port {
				continue
			}
			l.turn(i)
			// A parked queue's port stays masked: its guest may kick
			// as it likes.
			if !l.parked[i] {
				l.ports[live] = port
				live++
			}
		}
	}
	if live == 0 {
		return
	}
	if err := l.xen.Unmask(l.ports[:live]); err != nil {
		l.stopEvents(fmt.Errorf("unmask event channels: %w", err))
	}
}

// turn gives a queue its turn, and another one after the other devices had
// theirs if it has more to do. A turn that is posted already will see what an
// event announces: were it given another one, a guest that keeps its ring full
// and kicks would collect turns, each of which posts itself for ever.
func (l *link) turn(n int) {
	if l.stopped || l.parked[n] || l.posted[n] {
		return
	}
	more, err := l.queues[n].turn()
	if err != nil {
		l.parked[n] = true
		l.report(err)
		return
	}
	if more {
		l.posted[n] = true
		l.loop.Post(l.again[n])
	}
}

// stopEvents gives up on the event channels: without them no request arrives.
func (l *link) stopEvents(err error) {
	l.stopped = true
	l.report(errors.Join(err, l.loop.Remove(l.xen.EventFD())))
}

// notify sends the guest an event. Errors are the guest's: its port is gone.
func (l *link) notify(port uint32) {
	if err := l.xen.Notify(port); err != nil {
		l.log.Debug().Err(err).Uint32("port", port).Msg("cannot notify the guest")
	}
}

// idle is called by a queue whose last request has been answered.
func (l *link) idle() {
	select {
	case l.idleC <- struct{}{}:
	default:
	}
}

// stop ends the loop's half: when it returns, no request is pulled any more.
func (l *link) stop() {
	done := make(chan struct{})
	l.loop.Post(func() {
		defer close(done)
		if !l.stopped {
			l.stopped = true
			// Nothing to do about an error here: the fd is closed next.
			_ = l.loop.Remove(l.xen.EventFD())
		}
	})
	<-done
}

// drain waits until every pulled request is answered. It gives up when
// giveUp fires; nil never does.
func (l *link) drain(giveUp <-chan time.Time) error {
	for l.busy() > 0 {
		select {
		case <-l.idleC:
		case <-giveUp:
			return fmt.Errorf("%d %w", l.busy(), errBusy)
		}
	}
	return nil
}

func (l *link) busy() int {
	n := 0
	for _, q := range l.queues {
		n += int(q.busy.Load())
	}
	return n
}

// sever takes the rings away from the workers and unmaps them, so that a
// guest that died is not kept a zombie by a slow disk. stop came before.
func (l *link) sever() error {
	for _, q := range l.queues {
		q.sever()
	}
	return l.unmap()
}

func (l *link) unmap() error {
	var errs []error
	for _, mem := range l.rings {
		errs = append(errs, l.xen.Unmap(mem))
	}
	l.rings = nil
	return errors.Join(errs...)
}

// close gives everything back to the hypervisor. No worker is inside.
func (l *link) close() error {
	return errors.Join(l.unmap(), l.xen.Close())
}

// stats sums up the queues.
func (l *link) stats() Stats {
	var sum Stats
	for _, q := range l.queues {
		s := q.snapshot()
		sum.add(&s)
	}
	return sum
}
