package fakexen

import (
	"os"

	"golang.org/x/sys/unix"
	"xen-disk/grant"
)

// GNTST_* (xen/include/public/grant_table.h).
const (
	statusBadDomain  = -2
	statusBadGref    = -3
	statusPermission = -8
)

// Flags of struct gntdev_grant_copy_segment.
const (
	sourceIsGref = 1
	destIsGref   = 2
)

// copyBatch is how many segments are moved with one system call; below the
// kernel's limit of 1024 pieces (UIO_MAXIOV).
const copyBatch = 64

// garbage is what statuses hold after a failed call: they are undefined then,
// and this is neither success nor any status that Xen has.
const garbage = 0x5a5a

// foreign is the half of a segment that names a grant:
// { grant_ref_t ref; __u16 offset; domid_t domid; }.
type foreign struct {
	ref    uint32
	offset uint16
	domid  uint16
}

func decodeForeign(v uint64) foreign {
	return foreign{ref: uint32(v), offset: uint16(v >> 32), domid: uint16(v >> 48)}
}

// piece is a checked segment: bytes of a guest's page and a local address.
type piece struct {
	entry *grantEntry
	guest []byte
	local uintptr
	read  bool // from the guest
}

// Copy does GNTDEV_GRANT_COPY: segments in order, each with its own status.
// An error means that the call as a whole failed, some segments may have been
// copied, and all statuses are garbage: EINVAL if a segment crosses the end of
// the foreign page or has not exactly one foreign side, EFAULT if a local
// address cannot be read or written.
func (d *Door) Copy(segs []grant.CopySegment) error {
	d.m.stats.copyCalls.Add(1)
	if err := d.m.injected("copy"); err != nil {
		scribble(segs)
		return err
	}
	for len(segs) > 0 {
		n := min(len(segs), copyBatch)
		if err := d.copyBatch(segs[:n]); err != nil {
			scribble(segs)
			return err
		}
		segs = segs[n:]
	}
	return nil
}

func scribble(segs []grant.CopySegment) {
	for i := range segs {
		segs[i].Status = garbage
	}
}

func (d *Door) copyBatch(segs []grant.CopySegment) error {
	pieces, err := d.acquire(segs)
	defer d.release(pieces)
	if err != nil {
		return err
	}
	// Runs of one direction go together; order between runs is kept, since a
	// later segment may read what an earlier one wrote.
	for len(pieces) > 0 {
		n := 1
		for n < len(pieces) && pieces[n].read == pieces[0].read {
			n++
		}
		if err := move(pieces[:n]); err != nil {
			return err
		}
		pieces = pieces[n:]
	}
	return nil
}

// acquire checks segments and holds the grants of the good ones.
func (d *Door) acquire(segs []grant.CopySegment) ([]piece, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.closed {
		return nil, unix.EBADF
	}
	pieces := make([]piece, 0, len(segs))
	for i := range segs {
		s := &segs[i]
		p := piece{read: s.Flags&sourceIsGref != 0}
		var f foreign
		switch s.Flags & (sourceIsGref | destIsGref) {
		case sourceIsGref:
			f, p.local = decodeForeign(s.Source), uintptr(s.Dest)
		case destIsGref:
			f, p.local = decodeForeign(s.Dest), uintptr(s.Source)
		default:
			return pieces, unix.EINVAL
		}
		if int(f.offset)+int(s.Len) > PageSize {
			return pieces, unix.EINVAL
		}
		s.Status = 0
		d.m.stats.copySegs.Add(1)
		if s.Len == 0 {
			continue
		}
		if h := d.m.copyStatus; h != nil {
			d.m.copied++
			if s.Status = h(d.m.copied - 1); s.Status != 0 {
				continue
			}
		}
		p.entry, s.Status = d.lookup(uint32(f.domid), f.ref, !p.read)
		if s.Status != 0 {
			continue
		}
		p.entry.hold()
		p.guest = p.entry.dom.Page(p.entry.page)[f.offset : int(f.offset)+int(s.Len)]
		d.m.stats.copyBytes.Add(uint64(s.Len))
		pieces = append(pieces, p)
	}
	return pieces, nil
}

func (d *Door) release(pieces []piece) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	for _, p := range pieces {
		p.entry.release()
	}
}

// move copies pieces of one direction. The local side is reached through
// process_vm_readv and process_vm_writev on our own pid, since it may be any
// address at all: a hole is EFAULT there, not a signal.
func move(pieces []piece) error {
	guest := make([]unix.Iovec, len(pieces))
	local := make([]unix.RemoteIovec, len(pieces))
	total := 0
	for i, p := range pieces {
		guest[i].Base = &p.guest[0]
		guest[i].SetLen(len(p.guest))
		local[i] = unix.RemoteIovec{Base: p.local, Len: len(p.guest)}
		total += len(p.guest)
	}
	transfer := unix.ProcessVMReadv // local to guest
	if pieces[0].read {
		transfer = unix.ProcessVMWritev
	}
	n, err := transfer(os.Getpid(), guest, local, 0)
	if err == nil && n == total {
		return nil
	}
	return unix.EFAULT
}
