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

// A copyWork is what one batch needs, kept so that Copy allocates nothing: the
// guard of the backend's data path counts allocations of the whole process.
type copyWork struct {
	pieces [copyBatch]piece
	guest  [copyBatch]unix.Iovec
	local  [copyBatch]unix.RemoteIovec
}

func (d *Door) copyBatch(segs []grant.CopySegment) error {
	w, n, err := d.acquire(segs)
	if w == nil {
		return err
	}
	// Runs of one direction go together; order between runs is kept, since a
	// later segment may read what an earlier one wrote.
	for i := 0; i < n && err == nil; {
		j := i + 1
		for j < n && w.pieces[j].read == w.pieces[i].read {
			j++
		}
		err = w.move(i, j)
		i = j
	}
	d.release(w, n)
	return err
}

// acquire checks segments and holds the grants of the n good ones. After an
// error these are to be released, and not copied.
func (d *Door) acquire(segs []grant.CopySegment) (w *copyWork, n int, err error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.closed {
		return nil, 0, unix.EBADF
	}
	if k := len(d.work); k > 0 {
		w, d.work = d.work[k-1], d.work[:k-1]
	} else {
		w = new(copyWork)
	}
	for i := range segs {
		p, err := d.check(&segs[i])
		if err != nil {
			return w, n, err
		}
		if p.entry != nil {
			p.entry.hold()
			w.pieces[n] = p
			n++
		}
	}
	return w, n, nil
}

// check looks at one segment and sets its status; there is nothing to copy if
// the piece has no entry.
func (d *Door) check(s *grant.CopySegment) (piece, error) {
	p := piece{read: s.Flags&sourceIsGref != 0}
	var f foreign
	switch s.Flags & (sourceIsGref | destIsGref) {
	case sourceIsGref:
		f, p.local = decodeForeign(s.Source), uintptr(s.Dest)
	case destIsGref:
		f, p.local = decodeForeign(s.Dest), uintptr(s.Source)
	default:
		return p, unix.EINVAL
	}
	if int(f.offset)+int(s.Len) > PageSize {
		return p, unix.EINVAL
	}
	s.Status = 0
	d.m.stats.copySegs.Add(1)
	if s.Len == 0 {
		return p, nil
	}
	if h := d.m.copyStatus; h != nil {
		d.m.copied++
		if s.Status = h(d.m.copied - 1); s.Status != 0 {
			return p, nil
		}
	}
	p.entry, s.Status = d.lookup(uint32(f.domid), f.ref, !p.read)
	if p.entry != nil {
		p.guest = p.entry.dom.Page(p.entry.page)[f.offset : int(f.offset)+int(s.Len)]
		d.m.stats.copyBytes.Add(uint64(s.Len))
	}
	return p, nil
}

func (d *Door) release(w *copyWork, n int) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	for i := range w.pieces[:n] {
		w.pieces[i].entry.release()
	}
	clear(w.pieces[:n])
	d.work = append(d.work, w)
}

// move copies pieces i to j-1, of one direction. The local side is reached
// through process_vm_readv and process_vm_writev on our own pid, since it may
// be any address at all: a hole is EFAULT there, not a signal.
func (w *copyWork) move(i, j int) error {
	total := 0
	for k := i; k < j; k++ {
		p := &w.pieces[k]
		w.guest[k].Base = &p.guest[0]
		w.guest[k].SetLen(len(p.guest))
		w.local[k] = unix.RemoteIovec{Base: p.local, Len: len(p.guest)}
		total += len(p.guest)
	}
	transfer := unix.ProcessVMReadv // local to guest
	if w.pieces[i].read {
		transfer = unix.ProcessVMWritev
	}
	n, err := transfer(os.Getpid(), w.guest[i:j], w.local[i:j], 0)
	if err == nil && n == total {
		return nil
	}
	return unix.EFAULT
}
