package fakexen

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// A port is one end of an event channel. It belongs to a guest, which has an
// eventfd for each, or to a door, which has one for all.
//
//	unbound: remote may bind to it (peer nil)
//	interdomain: peer is the other end
type port struct {
	dom    *Domain
	door   *Door // nil: a guest's own
	num    uint32
	remote uint32
	peer   *port
	fd     int // guest's eventfd, else -1

	queued  bool // door: in its queue
	masked  bool // door: delivered, and not unmasked since
	pending bool // door: fired while masked
}

// allocPort takes the lowest port number that was never used in this life of
// the domain. The caller holds the lock.
func (d *Domain) allocPort(remote uint32) *port {
	p := &port{dom: d, num: d.nextPort, remote: remote, fd: -1}
	d.nextPort++
	d.ports[p.num] = p
	return p
}

// unbind frees the port; its peer becomes unbound again, for the same domain
// to bind anew (xen/common/event_channel.c, ECS_INTERDOMAIN -> ECS_UNBOUND).
func (p *port) unbind() {
	if p.peer != nil {
		p.peer.peer = nil
		p.peer = nil
	}
	delete(p.dom.ports, p.num)
	if p.door != nil {
		delete(p.door.ports, p.num)
		p.door.unqueue(p)
	}
	_ = p.close()
}

func (p *port) close() error {
	if p.fd < 0 {
		return nil
	}
	err := unix.Close(p.fd)
	p.fd = -1
	return err
}

// send notifies the other end. To an unbound port it is dropped silently.
func (p *port) send() {
	switch q := p.peer; {
	case q == nil:
	case q.door != nil:
		q.door.fire(q)
	case q.fd >= 0:
		p.dom.m.signal(q.fd)
	}
}

// signal makes an eventfd readable; a full counter already is. The caller
// holds the lock, which guards the word: under -race one on the stack would be
// an allocation.
func (m *Machine) signal(fd int) {
	binary.NativeEndian.PutUint64(m.word[:], 1)
	_, _ = unix.Write(fd, m.word[:])
}

// drain makes an eventfd unreadable and reports whether it was readable. The
// caller holds the lock.
func (m *Machine) drain(fd int) bool {
	_, err := unix.Read(fd, m.word[:])
	return err == nil
}

// AllocUnbound makes a port that domain remote may bind to.
func (d *Domain) AllocUnbound(remote uint32) uint32 {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.dying {
		return 0
	}
	p := d.allocPort(remote)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		panic("fakexen: eventfd: " + err.Error())
	}
	p.fd = fd
	return p.num
}

// ClosePort ends a port of the guest. The backend's end becomes unbound, and
// its notifications are dropped.
func (d *Domain) ClosePort(num uint32) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if p := d.ports[num]; p != nil && p.door == nil {
		p.unbind()
	}
}

// Bound reports whether a backend is bound to the guest's port.
func (d *Domain) Bound(num uint32) bool {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	p := d.ports[num]
	return p != nil && p.peer != nil
}

// Kick notifies the backend at the other end of the guest's port.
func (d *Domain) Kick(num uint32) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if p := d.ports[num]; p != nil {
		d.m.stats.toBackend.Add(1)
		p.send()
	}
}

// PortFD returns the eventfd of a guest's port: readable once it was notified.
// It lives until ClosePort or Kill; -1 if there is no such port.
func (d *Domain) PortFD(num uint32) int {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if p := d.ports[num]; p != nil {
		return p.fd
	}
	return -1
}

// Pending takes a notification of the guest's port, if there is one.
func (d *Domain) Pending(num uint32) bool {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	p := d.ports[num]
	return p != nil && p.fd >= 0 && d.m.drain(p.fd)
}

// ErrNoPort is returned for a wait on a port that the guest does not have.
var ErrNoPort = errors.New("no such port")

// Wait waits for a notification of the guest's port and takes it.
func (d *Domain) Wait(ctx context.Context, num uint32) error {
	const slice = 20 * time.Millisecond // how soon a cancelled ctx is noticed
	for {
		fd := d.PortFD(num)
		if fd < 0 {
			return ErrNoPort
		}
		if d.Pending(num) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := pollIn(fds, int(slice/time.Millisecond)); err != nil {
			return err
		}
	}
}
