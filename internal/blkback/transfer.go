package blkback

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"xen-disk/disk"
	"xen-disk/grant"
	"xen-disk/ring"
)

const (
	// eagainTries and eagainPause bound the wait for a guest page that Xen
	// has paged out or shares (GNTST_eagain): 100 ms in all.
	eagainTries = 100
	eagainPause = time.Millisecond
)

// worker is what one of the pool's workers needs to serve a request. It is
// used by any vbd, one unit of work at a time, so memory is bounded by the
// number of workers and not by that of disks.
type worker struct {
	// buf holds the data of one request. It is outside the Go heap: the
	// kernel gets its address as a number.
	buf    []byte
	segs   [batchRequests * ring.MaxSegments]grant.CopySegment
	batch  [batchRequests]uint16
	status [batchRequests]ring.Status
}

func newWorker() (*worker, error) {
	buf, err := syscall.Mmap(-1, 0, ring.MaxRequestBytes,
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a worker's buffer: %w", err)
	}
	return &worker{buf: buf}, nil
}

func (w *worker) close() error { return syscall.Munmap(w.buf) }

// serve carries out one request through the worker's buffer.
func (l *link) serve(w *worker, r *ring.Request) ring.Status {
	buf := w.buf[:r.DataBytes()]
	switch r.Op {
	case ring.OpRead:
		if _, err := l.disk.ReadAt(buf, r.Offset()); err != nil {
			return l.diskFailed(r, err)
		}
		return l.copy(w, r, buf, true)
	case ring.OpDiscard:
		return l.discard(r)
	case ring.OpFlush:
		if err := l.disk.Flush(); err != nil {
			return l.diskFailed(r, err)
		}
		if len(buf) == 0 {
			return ring.StatusOK
		}
	}
	if status := l.copy(w, r, buf, false); status != ring.StatusOK {
		return status
	}
	if _, err := l.disk.WriteAt(buf, r.Offset()); err != nil {
		return l.diskFailed(r, err)
	}
	return ring.StatusOK
}

// discard gives space of the disk back. One request may be of the whole disk,
// and holds its worker as long as the disk needs for that (a file system may
// have millions of blocks to free); it is not cut up, since a piece that ends
// inside of a granule frees nothing of it. The queue's share of workers keeps
// it from other disks.
func (l *link) discard(r *ring.Request) ring.Status {
	if r.NrSectors == 0 {
		return ring.StatusOK
	}
	if err := l.disk.(disk.Discarder).Discard(r.Offset(), r.DiscardBytes()); err != nil {
		return l.diskFailed(r, err)
	}
	return ring.StatusOK
}

// copy moves the data of one request between the guest and mem.
func (l *link) copy(w *worker, r *ring.Request, mem []byte, toGuest bool) ring.Status {
	n := copySegments(w.segs[:], l.domid, r, address(mem), toGuest)
	if err := l.copyAll(w.segs[:n]); err != nil {
		return l.copyFailed(r, err)
	}
	return l.verdict(r, w.segs[:n])
}

// copyAll is one call for many segments. Copying is idempotent, so all of
// them are tried again while one is told to.
func (l *link) copyAll(segs []grant.CopySegment) error {
	for try := 0; ; try++ {
		if err := l.xen.Copy(segs); err != nil {
			return err
		}
		again := false
		for i := range segs {
			again = again || segs[i].Status == grant.StatusEagain
		}
		if !again || try == eagainTries {
			return nil
		}
		time.Sleep(eagainPause)
	}
}

// verdict turns the statuses of a request's segments into its answer. Every
// one is looked at: a success after a failure must not hide it (XSA-365).
func (l *link) verdict(r *ring.Request, segs []grant.CopySegment) ring.Status {
	for i := range segs {
		if s := segs[i].Status; s != grant.StatusOKAY {
			l.log.Warn().Stringer("op", r.Op).Int("segment", i).Uint32("gref", r.Segs[i].Ref).
				Str("status", grant.StatusText(s)).Msg("cannot copy a granted page")
			return ring.StatusError
		}
	}
	return ring.StatusOK
}

// serveMemory carries out requests on a disk that is memory: one grant copy
// moves the data of all of them straight between disk and guest.
func (l *link) serveMemory(w *worker, reqs []ring.Request, batch []uint16, status []ring.Status) {
	mem := l.disk.(disk.Memory)
	total := 0
	for n, i := range batch {
		status[n] = l.beginMemory(mem, &reqs[i])
		if status[n] == ring.StatusOK {
			total += l.describe(w.segs[total:], mem, &reqs[i])
		}
	}
	if total == 0 {
		return
	}
	err := l.copyAll(w.segs[:total])
	at := 0
	for n, i := range batch {
		r := &reqs[i]
		if status[n] != ring.StatusOK {
			continue
		}
		segs := w.segs[at : at+int(r.NrSegs)]
		at += int(r.NrSegs)
		if err != nil {
			// A fault in one image page fails the whole call. Alone,
			// each request gets the answer that it deserves.
			l.describe(segs, mem, r)
			status[n] = l.copyOne(r, segs)
			continue
		}
		status[n] = l.verdict(r, segs)
	}
}

// beginMemory does what a request wants done before its data moves, and all
// of one that moves none.
func (l *link) beginMemory(mem disk.Memory, r *ring.Request) ring.Status {
	switch r.Op {
	case ring.OpDiscard:
		return l.discard(r)
	case ring.OpFlush:
		if err := l.disk.Flush(); err != nil {
			return l.diskFailed(r, err)
		}
	}
	if r.NrSegs > 0 && mem.Bytes(r.Offset(), r.DataBytes()) == nil {
		return l.diskFailed(r, disk.ErrRange)
	}
	return ring.StatusOK
}

func (l *link) describe(segs []grant.CopySegment, mem disk.Memory, r *ring.Request) int {
	if r.NrSegs == 0 {
		return 0
	}
	bytes := mem.Bytes(r.Offset(), r.DataBytes())
	return copySegments(segs, l.domid, r, address(bytes), r.Op == ring.OpRead)
}

func (l *link) copyOne(r *ring.Request, segs []grant.CopySegment) ring.Status {
	if len(segs) == 0 {
		return ring.StatusOK
	}
	if err := l.copyAll(segs); err != nil {
		return l.copyFailed(r, err)
	}
	return l.verdict(r, segs)
}

func (l *link) copyFailed(r *ring.Request, err error) ring.Status {
	if errors.Is(err, syscall.EFAULT) {
		// Only memory of a disk can fault: the worker's buffer cannot.
		return l.diskFailed(r, fmt.Errorf("image page cannot be read or written: %w", err))
	}
	l.log.Error().Err(err).Stringer("op", r.Op).Msg("grant copy failed")
	return ring.StatusError
}

func (l *link) diskFailed(r *ring.Request, err error) ring.Status {
	l.log.Error().Err(err).Stringer("op", r.Op).Uint64("sector", r.Sector).Msg("disk failed a request")
	return ring.StatusError
}
