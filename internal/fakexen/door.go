package fakexen

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxMapRefs is how many grants one call may map (gntdev's module parameter
// "limit").
const maxMapRefs = 64 << 10

// A Door is one open handle on /dev/xen/gntdev and one on /dev/xen/evtchn, as
// a backend in domain domid has them. Its methods can be called at the same
// time from many goroutines.
type Door struct {
	m      *Machine
	dom    *Domain
	fd     int // eventfd: readable while queue is not empty
	closed bool
	maps   map[uintptr]*mapping
	ports  map[uint32]*port
	queue  []*port // fired, enabled and not yet read
	work   []*copyWork
}

type mapping struct {
	mem    []byte
	grants []*grantEntry
}

// OpenDoor opens the kernel's doors for a backend that runs in domain domid,
// which is made, without memory, if there is none.
func (m *Machine) OpenDoor(domid uint32) (*Door, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	dom := m.domains[domid]
	if dom == nil {
		dom = newDomain(m, domid)
		m.domains[domid] = dom
	}
	d := &Door{m: m, dom: dom, fd: fd,
		maps: make(map[uintptr]*mapping), ports: make(map[uint32]*port)}
	m.doors[d] = struct{}{}
	return d, nil
}

// Map maps grants of a domain, one after the other. One bad reference fails
// the whole call with EINVAL, and nothing is mapped.
func (d *Door) Map(domid uint32, refs []uint32, writable bool) ([]byte, error) {
	d.m.stats.mapCalls.Add(1)
	if err := d.m.injected("map"); err != nil {
		return nil, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.closed {
		return nil, unix.EBADF
	}
	if len(refs) == 0 || len(refs) > maxMapRefs {
		return nil, unix.EINVAL
	}
	grants := make([]*grantEntry, 0, len(refs))
	for _, ref := range refs {
		g, status := d.lookup(domid, ref, writable)
		if status != 0 {
			return nil, unix.EINVAL
		}
		grants = append(grants, g)
	}
	mem, err := mapPages(grants, writable)
	if err != nil {
		return nil, err
	}
	for _, g := range grants {
		g.hold()
	}
	d.m.stats.mapPages.Add(uint64(len(refs)))
	d.maps[addressOf(mem)] = &mapping{mem: mem, grants: grants}
	return mem, nil
}

// lookup finds a grant that this door's domain may use. The caller holds the
// lock. Status values are GNTST_* of xen/include/public/grant_table.h.
func (d *Door) lookup(domid, ref uint32, write bool) (*grantEntry, int16) {
	dom := d.m.domains[domid]
	if dom == nil {
		for _, z := range d.m.dead {
			if z.id == domid && z.pins > 0 {
				return nil, statusBadGref
			}
		}
		return nil, statusBadDomain
	}
	g := dom.grants[ref]
	switch {
	case g == nil:
		return nil, statusBadGref
	case g.to != d.dom.id:
		return nil, statusPermission
	case write && g.readonly:
		return nil, statusPermission
	}
	return g, 0
}

// Unmap drops what one Map returned, all of it; anything else is EINVAL. An
// access to it afterwards is a SIGSEGV.
func (d *Door) Unmap(mem []byte) error {
	d.m.stats.unmapCalls.Add(1)
	if err := d.m.injected("unmap"); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.closed {
		return unix.EBADF
	}
	if len(mem) == 0 {
		return unix.EINVAL
	}
	mp := d.maps[addressOf(mem)]
	if mp == nil || len(mp.mem) != len(mem) {
		return unix.EINVAL
	}
	return d.drop(mp)
}

func (d *Door) drop(mp *mapping) error {
	delete(d.maps, addressOf(mp.mem))
	err := unmapPages(mp.mem)
	for _, g := range mp.grants {
		g.release()
	}
	d.m.stats.unmapPages.Add(uint64(len(mp.grants)))
	return err
}

// EventFD is readable, for poll and epoll, while Pending has a port to give.
func (d *Door) EventFD() int { return d.fd }

// Bind connects to a port that a guest allocated for us. Ours is pending once
// from the start, as Xen makes it, so the first wake-up is free.
func (d *Door) Bind(domid, remotePort uint32) (uint32, error) {
	if err := d.m.injected("bind"); err != nil {
		return 0, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.closed {
		return 0, unix.EBADF
	}
	dom := d.m.domains[domid]
	if dom == nil {
		return 0, unix.ESRCH
	}
	rp := dom.ports[remotePort]
	if rp == nil || rp.peer != nil || rp.remote != d.dom.id {
		return 0, unix.EINVAL
	}
	p := d.dom.allocPort(domid)
	p.door, p.peer, rp.peer = d, rp, p
	d.ports[p.num] = p
	d.fire(p)
	return p.num, nil
}

// Unbind closes our end; the guest's becomes unbound.
func (d *Door) Unbind(num uint32) error {
	if err := d.m.injected("unbind"); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	p := d.ports[num]
	if p == nil {
		return unix.ENOTCONN
	}
	p.unbind()
	return nil
}

// Notify sends an event to the guest. ENOTCONN if the port is not bound here;
// if the guest has closed its end the event is dropped.
func (d *Door) Notify(num uint32) error {
	d.m.stats.notifyCalls.Add(1)
	if err := d.m.injected("notify"); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	p := d.ports[num]
	if p == nil {
		return unix.ENOTCONN
	}
	d.m.stats.toGuest.Add(1)
	p.send()
	return nil
}

// fire makes a port pending: queued if it is enabled, else it fires again when
// it is unmasked. The caller holds the lock.
func (d *Door) fire(p *port) {
	switch {
	case p.masked:
		p.pending = true
	case !p.queued:
		p.queued = true
		d.queue = append(d.queue, p)
		if len(d.queue) == 1 {
			d.m.signal(d.fd)
		}
	}
}

func (d *Door) unqueue(p *port) {
	for i, q := range d.queue {
		if q == p {
			d.queue = append(d.queue[:i], d.queue[i+1:]...)
			if len(d.queue) == 0 {
				d.m.drain(d.fd)
			}
			break
		}
	}
	p.queued = false
}

// Pending reads ports that fired into ports; each is masked until Unmask. 0
// and no error if there is none.
func (d *Door) Pending(ports []uint32) (int, error) {
	d.m.stats.pendingCalls.Add(1)
	if err := d.m.injected("pending"); err != nil {
		return 0, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.closed {
		return 0, unix.EBADF
	}
	n := min(len(ports), len(d.queue))
	for i, p := range d.queue[:n] {
		p.queued, p.masked = false, true
		ports[i] = p.num
	}
	d.queue = append(d.queue[:0], d.queue[n:]...)
	if n > 0 && len(d.queue) == 0 {
		d.m.drain(d.fd)
	}
	return n, nil
}

// Unmask lets ports fire again; one that fired meanwhile does at once. Ports
// that are not ours, or not masked, are passed over, as the kernel does.
func (d *Door) Unmask(ports []uint32) error {
	d.m.stats.unmasks.Add(1)
	if err := d.m.injected("unmask"); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.closed {
		return unix.EBADF
	}
	for _, num := range ports {
		p := d.ports[num]
		if p == nil || !p.masked {
			continue
		}
		p.masked = false
		if p.pending {
			p.pending = false
			d.fire(p)
		}
	}
	return nil
}

// Close unbinds all ports and drops all mappings. Idempotent.
func (d *Door) Close() error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return d.closeLocked()
}

func (d *Door) closeLocked() error {
	if d.closed {
		return nil
	}
	d.closed = true
	var errs []error
	for _, p := range d.ports {
		p.unbind()
	}
	for _, mp := range d.maps {
		errs = append(errs, d.drop(mp))
	}
	errs = append(errs, unix.Close(d.fd))
	delete(d.m.doors, d)
	return errors.Join(errs...)
}

// Mapped returns how many pages this door has mapped.
func (d *Door) Mapped() int {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	n := 0
	for _, mp := range d.maps {
		n += len(mp.grants)
	}
	return n
}

// BoundPorts returns how many ports this door has bound.
func (d *Door) BoundPorts() int {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return len(d.ports)
}
