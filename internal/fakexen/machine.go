package fakexen

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// PageSize is the size of a grant: 4096 bytes on every architecture
// (XEN_PAGE_SIZE), whatever the page size of the kernel is.
const PageSize = 4096

// A Machine is the hypervisor: domains with memory, grant tables and event
// channels. All its state is under one lock; data is copied outside of it.
type Machine struct {
	mu      sync.Mutex
	domains map[uint32]*Domain
	dead    []*Domain // destroyed; a zombie for as long as it is mapped
	doors   map[*Door]struct{}
	store   *Xenstored // nil: none was made for this machine

	fault      func(op string, n int) error
	copyStatus func(n int) int16
	calls      map[string]int
	copied     int // segments seen by copyStatus
	word       [8]byte

	stats counters
}

type counters struct {
	toGuest, toBackend                 atomic.Uint64
	copyCalls, copySegs, copyBytes     atomic.Uint64
	mapCalls, mapPages                 atomic.Uint64
	unmapCalls, unmapPages             atomic.Uint64
	notifyCalls, pendingCalls, unmasks atomic.Uint64
	calls                              atomic.Uint64
}

// Stats are the counts since New. On Xen each of Calls is a system call.
type Stats struct {
	ToGuest      uint64 // notifications a backend sent with Notify
	ToBackend    uint64 // notifications a guest sent with Kick
	CopyCalls    uint64
	CopySegments uint64
	CopyBytes    uint64
	MapCalls     uint64
	MapPages     uint64
	UnmapCalls   uint64
	UnmapPages   uint64
	NotifyCalls  uint64
	PendingCalls uint64
	UnmaskCalls  uint64
	Calls        uint64 // all methods of all doors
}

// New makes a machine that has only dom0, which has no memory to grant.
func New() (*Machine, error) {
	m := &Machine{
		domains: make(map[uint32]*Domain),
		doors:   make(map[*Door]struct{}),
		calls:   make(map[string]int),
	}
	m.domains[0] = newDomain(m, 0)
	return m, nil
}

// SetFault installs a hook that each call of a door asks first: op is "map",
// "unmap", "copy", "bind", "unbind", "notify", "pending" or "unmask", n counts
// the calls of that op from 0 since the hook was set. An error is returned in
// place of the call. Nil removes the hook.
func (m *Machine) SetFault(f func(op string, n int) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
	clear(m.calls)
}

// SetCopyStatus installs a hook that each grant copy segment asks: a status
// other than 0 is set in the segment, and nothing is copied for it. n counts
// segments from 0 since the hook was set. Nil removes the hook.
func (m *Machine) SetCopyStatus(f func(n int) int16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.copyStatus = f
	m.copied = 0
}

// FailCopies gives the next n segments the status, for example -12 (eagain).
func (m *Machine) FailCopies(status int16, n int) {
	m.SetCopyStatus(func(i int) int16 {
		if i < n {
			return status
		}
		return 0
	})
}

func (m *Machine) injected(op string) error {
	m.stats.calls.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault == nil {
		return nil
	}
	n := m.calls[op]
	m.calls[op]++
	return m.fault(op, n)
}

// Stats returns the counts so far.
func (m *Machine) Stats() Stats {
	c := &m.stats
	return Stats{
		ToGuest: c.toGuest.Load(), ToBackend: c.toBackend.Load(),
		CopyCalls: c.copyCalls.Load(), CopySegments: c.copySegs.Load(),
		CopyBytes: c.copyBytes.Load(),
		MapCalls:  c.mapCalls.Load(), MapPages: c.mapPages.Load(),
		UnmapCalls: c.unmapCalls.Load(), UnmapPages: c.unmapPages.Load(),
		NotifyCalls: c.notifyCalls.Load(), PendingCalls: c.pendingCalls.Load(),
		UnmaskCalls: c.unmasks.Load(), Calls: c.calls.Load(),
	}
}

// Mapped returns how many pages backends have mapped now.
func (m *Machine) Mapped() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for d := range m.doors {
		for _, mp := range d.maps {
			n += len(mp.grants)
		}
	}
	return n
}

// Zombies lists the domains that were killed and cannot go because a backend
// still maps their memory.
func (m *Machine) Zombies() []uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []uint32
	for _, d := range m.dead {
		if d.pins > 0 {
			ids = append(ids, d.id)
		}
	}
	return ids
}

// Domain returns the living domain, or nil.
func (m *Machine) Domain(domid uint32) *Domain {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.domains[domid]
}

// AddDomain builds a domain with that many pages of RAM. It panics if the
// domid is taken: domids are the test's to choose.
func (m *Machine) AddDomain(domid uint32, pages int) *Domain {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.domains[domid] != nil {
		if domid != 0 || m.domains[0].mem != nil {
			panic(fmt.Sprintf("fakexen: domain %d exists", domid))
		}
	}
	d := m.domains[domid]
	if d == nil {
		d = newDomain(m, domid)
	}
	if err := d.addMemory(pages); err != nil {
		panic(fmt.Sprintf("fakexen: memory of domain %d: %v", domid, err))
	}
	m.domains[domid] = d
	return d
}

// Close ends the machine. Its error lists what backends leaked: open doors,
// and in them grants still mapped and ports still bound. A second Close does
// nothing. Memory of the domains is unmapped: frontends must have stopped.
func (m *Machine) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for d := range m.doors {
		pages := 0
		for _, mp := range d.maps {
			pages += len(mp.grants)
		}
		errs = append(errs, fmt.Errorf(
			"leak: door of domain %d is open: %d pages mapped, %d ports bound",
			d.dom.id, pages, len(d.ports)))
		errs = append(errs, d.closeLocked())
	}
	for _, d := range m.dead {
		errs = append(errs, d.destroy())
	}
	for id, d := range m.domains {
		errs = append(errs, d.destroy())
		delete(m.domains, id)
	}
	m.dead = nil
	return errors.Join(errs...)
}

// pollIn waits until fd is readable. A negative timeout waits for ever.
func pollIn(fds []unix.PollFd, timeoutMS int) (int, error) {
	for {
		n, err := unix.Poll(fds, timeoutMS)
		if err != unix.EINTR {
			return n, err
		}
	}
}
