package fakexen

import (
	"errors"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"
)

// firstRef is the lowest grant reference: 0-7 are reserved for the console,
// xenstore and others (xen/include/public/grant_table.h).
const firstRef = 8

// A Domain is a guest: memory that it can grant, and event channels. Methods
// are what a guest kernel does with hypercalls.
type Domain struct {
	m    *Machine
	id   uint32
	fd   int // memfd with the RAM, -1 for none
	mem  []byte
	free []int // pages, the last one freed on top

	grants   map[uint32]*grantEntry
	nextRef  uint32
	ports    map[uint32]*port
	nextPort uint32
	dying    bool
	pins     int // pages mapped or being copied by backends
}

type grantEntry struct {
	dom      *Domain
	ref      uint32
	page     int
	to       uint32
	readonly bool
	uses     int  // mappings and copies under way
	ended    bool // the guest revoked it while in use: goes with the last use
}

func newDomain(m *Machine, id uint32) *Domain {
	return &Domain{
		m: m, id: id, fd: -1,
		grants: make(map[uint32]*grantEntry), nextRef: firstRef,
		ports: make(map[uint32]*port), nextPort: 1,
	}
}

// addMemory makes the RAM. It is sealed against shrinking, so that no access
// to a mapping of it can be a SIGBUS.
func (d *Domain) addMemory(pages int) error {
	if pages == 0 {
		return nil
	}
	fd, err := unix.MemfdCreate(fmt.Sprintf("fakexen-dom%d", d.id),
		unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("create memfd: %w", err)
	}
	d.fd = fd
	if err := unix.Ftruncate(fd, int64(pages)*PageSize); err != nil {
		return errors.Join(fmt.Errorf("size memfd: %w", err), d.destroy())
	}
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return errors.Join(fmt.Errorf("seal memfd: %w", err), d.destroy())
	}
	d.mem, err = unix.Mmap(fd, 0, pages*PageSize,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return errors.Join(fmt.Errorf("map memfd: %w", err), d.destroy())
	}
	d.free = make([]int, 0, pages)
	for p := pages - 1; p >= 0; p-- {
		d.free = append(d.free, p)
	}
	return nil
}

// destroy gives the memory and the eventfds back. Idempotent.
func (d *Domain) destroy() error {
	var errs []error
	for _, p := range d.sortedPorts() {
		errs = append(errs, p.close())
	}
	if d.mem != nil {
		errs = append(errs, unix.Munmap(d.mem))
		d.mem = nil
	}
	if d.fd >= 0 {
		errs = append(errs, unix.Close(d.fd))
		d.fd = -1
	}
	return errors.Join(errs...)
}

func (d *Domain) sortedPorts() []*port {
	ps := make([]*port, 0, len(d.ports))
	for _, p := range d.ports {
		ps = append(ps, p)
	}
	sort.Slice(ps, func(i, j int) bool { return ps[i].num < ps[j].num })
	return ps
}

// ID returns the domid.
func (d *Domain) ID() uint32 { return d.id }

// Page returns the guest's own view of a page of its RAM.
func (d *Domain) Page(page int) []byte {
	return d.mem[page*PageSize : (page+1)*PageSize : (page+1)*PageSize]
}

// AllocPage takes an unused page. It panics when the guest is out of memory.
func (d *Domain) AllocPage() int {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if len(d.free) == 0 {
		panic(fmt.Sprintf("fakexen: domain %d is out of memory", d.id))
	}
	p := d.free[len(d.free)-1]
	d.free = d.free[:len(d.free)-1]
	return p
}

// FreePage gives a page of AllocPage back.
func (d *Domain) FreePage(page int) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.free = append(d.free, page)
}

// FreePages returns how many pages are unused.
func (d *Domain) FreePages() int {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return len(d.free)
}

// Grant lets a domain use a page. A reference is never used twice, so that a
// stale one is noticed.
func (d *Domain) Grant(page int, to uint32, readonly bool) uint32 {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if page < 0 || (page+1)*PageSize > len(d.mem) {
		panic(fmt.Sprintf("fakexen: domain %d has no page %d", d.id, page))
	}
	ref := d.nextRef
	d.nextRef++
	d.grants[ref] = &grantEntry{dom: d, ref: ref, page: page, to: to,
		readonly: readonly}
	return ref
}

// Revoke ends a grant and reports whether the backend still used it. If so
// the grant stays good until the last mapping of it is dropped, and only then
// ends, as Linux' gnttab_end_foreign_access does. Revoking nothing is false.
func (d *Domain) Revoke(ref uint32) (inUse bool) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g := d.grants[ref]
	if g == nil {
		return false
	}
	if g.uses > 0 {
		g.ended = true
		return true
	}
	delete(d.grants, ref)
	return false
}

// Grants returns how many grants are in the table.
func (d *Domain) Grants() int {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return len(d.grants)
}

// InUse reports whether a backend maps the grant, or copies with it just now.
func (d *Domain) InUse(ref uint32) bool {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g := d.grants[ref]
	return g != nil && g.uses > 0
}

// Kill destroys the domain: its ports go, and nothing of it can be mapped or
// copied any more. What backends map of it stays mapped; until they drop it
// the domain is a zombie. Kill twice is once.
func (d *Domain) Kill() {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.dying {
		return
	}
	d.dying = true
	for _, p := range d.sortedPorts() {
		p.unbind()
	}
	if d.m.domains[d.id] == d {
		delete(d.m.domains, d.id)
	}
	d.m.dead = append(d.m.dead, d)
}

func (g *grantEntry) hold() {
	g.uses++
	g.dom.pins++
}

func (g *grantEntry) release() {
	g.uses--
	g.dom.pins--
	if g.uses == 0 && g.ended {
		delete(g.dom.grants, g.ref)
	}
}
