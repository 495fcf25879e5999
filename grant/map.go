package grant

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// pageBytes is the size of a granted page. Xen's ABI has no other.
	pageBytes = 4096

	// maxMapRefs bounds one Map: the default of gntdev's parameter "limit".
	maxMapRefs = 64 << 10
)

// Map maps pages that domid has granted to us, in the order of refs, as one
// contiguous piece of memory of 4096 bytes each. It is all or nothing: one bad
// reference fails the call (EINVAL) and nothing says which; map them one by one
// to find out. Without writable a store into the memory is a fault, and a grant
// that the guest made read-only can be mapped.
//
// It costs two system calls, a hypercall for each batch of pages and one of
// the process's vm.max_map_count, so it is for what stays mapped. For data in
// passing there is Copy.
func (d *Door) Map(domid uint32, refs []uint32, writable bool) ([]byte, error) {
	if len(refs) == 0 || len(refs) > maxMapRefs {
		return nil, fmt.Errorf("map %d grants, want 1 to %d: %w", len(refs), maxMapRefs, unix.EINVAL)
	}
	if err := checkDomid(domid); err != nil {
		return nil, err
	}
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.use.RUnlock()

	index, errno := d.sys.mapRefs(d.gntdev, domid, refs)
	for errno == unix.EINTR {
		index, errno = d.sys.mapRefs(d.gntdev, domid, refs)
	}
	if errno != 0 {
		return nil, fmt.Errorf("register %d grants of domain %d: %w", len(refs), domid, errno)
	}
	m := mapping{index: index, count: uint32(len(refs))}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	// Registering has not asked Xen yet: that is what mmap does.
	mem, err := d.sys.mmap(d.gntdev, int64(index), len(refs)*pageBytes, prot, unix.MAP_SHARED)
	for err == unix.EINTR {
		mem, err = d.sys.mmap(d.gntdev, int64(index), len(refs)*pageBytes, prot, unix.MAP_SHARED)
	}
	if err != nil {
		err = fmt.Errorf("map %d grants of domain %d: %w", len(refs), domid, err)
		return nil, errors.Join(err, d.unregister(m))
	}
	m.mem = mem
	d.keepMapping(m)
	return mem, nil
}

// Unmap undoes one Map. mem is what Map returned, all of it; anything else, or
// the same a second time, is EINVAL and unmaps nothing. While the kernel still
// uses pages for I/O, it gives them back to the guest when that ends.
func (d *Door) Unmap(mem []byte) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.use.RUnlock()
	m, ok := d.takeMapping(mem)
	if !ok {
		return fmt.Errorf("unmap %d bytes that this door has not mapped: %w", len(mem), unix.EINVAL)
	}
	if err := d.sys.munmap(m.mem); err != nil {
		d.keepMapping(m) // still there, so Close has to try again
		return fmt.Errorf("unmap %d grants: %w", m.count, err)
	}
	return d.unregister(m)
}

func (d *Door) keepMapping(m mapping) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.maps[&m.mem[0]] = m
}

// takeMapping takes a mapping out of the table, so that of two Unmaps only one
// gets it.
func (d *Door) takeMapping(mem []byte) (mapping, bool) {
	if len(mem) == 0 {
		return mapping{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.maps[&mem[0]]
	if !ok || len(m.mem) != len(mem) {
		return mapping{}, false
	}
	delete(d.maps, &mem[0])
	return m, true
}

// unmapAll is Close's: it goes on after errors. The caller holds d.use.
func (d *Door) unmapAll() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, m := range d.maps {
		if err := d.sys.munmap(m.mem); err != nil {
			errs = append(errs, fmt.Errorf("unmap %d grants: %w", m.count, err))
		}
		errs = append(errs, d.unregister(m))
	}
	clear(d.maps)
	return errors.Join(errs...)
}

func (d *Door) unregister(m mapping) error {
	errno := d.sys.unmapRefs(d.gntdev, m.index, m.count)
	for errno == unix.EINTR {
		errno = d.sys.unmapRefs(d.gntdev, m.index, m.count)
	}
	if errno != 0 {
		return fmt.Errorf("unregister %d grants: %w", m.count, errno)
	}
	return nil
}

// Copy moves bytes between this process and granted pages, all segments in one
// ioctl; Xen does it in batches of 16. With a nil error each segment's Status
// says how it went (see StatusText), StatusEagain included: repeating that is
// the caller's decision. With an error no Status means anything, and any part
// of the data may have been moved.
//
// A segment's foreign side must not cross its page, else the whole call is
// EINVAL; the local side may cross pages. Bad local memory is EFAULT, not a
// signal, also where it is a truncated file.
//
// The caller keeps the local memory alive and in place until Copy returns: the
// garbage collector does not see an address in a Source or Dest. Copy does not
// allocate.
func (d *Door) Copy(segs []CopySegment) error {
	if len(segs) == 0 {
		return nil
	}
	if err := d.enter(); err != nil {
		return err
	}
	defer d.use.RUnlock()
	errno := d.sys.copy(d.gntdev, segs)
	for errno == unix.EINTR {
		errno = d.sys.copy(d.gntdev, segs)
	}
	if errno != 0 {
		return fmt.Errorf("copy %d segments: %w", len(segs), errno)
	}
	return nil
}
