package vhd

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"
)

var (
	// ErrReadOnly: a change to a disk that was opened read-only.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrRange: a range that is not whole sectors inside the disk.
	ErrRange = errors.New("range is not inside the disk")
	// ErrFailed: the image could not be made durable once. What the store
	// below has lost since is not known, so nothing is written any more.
	ErrFailed = errors.New("image has failed to become durable")
)

// Disk is what a chain of images shows: the leaf, over its parents.
//
// Offsets and lengths are bytes and multiples of 512. All methods may be
// called from many goroutines at once. Calls that overlap in time and place
// have no order, and any mix of their sectors may be found afterwards. After
// Close, methods that do I/O fail with an error that is fs.ErrClosed.
//
// After a crash each sector has the value of its last write before a Flush
// that succeeded, or of a later one.
type Disk struct {
	// mu is held shared during a call, and exclusively by who changes the
	// chain.
	mu        sync.RWMutex
	closed    bool
	sizeBytes int64
	layers    []*layer // the leaf first
	w         *writer  // of the leaf; nil when read-only
	// bitmaps is the cache that all layers share.
	bitmaps   *bitmaps
	options   Options
	snapshots sync.Mutex // held for a whole snapshot

	stopOnce sync.Once
	stop     chan struct{} // closed to end commitLater
	stopped  sync.WaitGroup
	wake     chan struct{}
}

// defaultCommitInterval bounds what the end of the process (not of the host)
// costs a guest that never flushes.
const defaultCommitInterval = time.Second

// Open opens an image and the chain of its parents. With write access it mends
// what a crash may leave behind: a footer that is missing, and space after the
// last block. Errors can be told apart by the Err values of this package and
// of io/fs.
func Open(path string, o Options) (*Disk, error) {
	chain, err := openChain(path, &o)
	if err != nil {
		return nil, err
	}
	d, err := newDisk(chain, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), closeChain(chain))
	}
	return d, nil
}

// newDisk shows a chain, the leaf first. The disk owns the files when there is
// no error.
func newDisk(chain []*image, o Options) (*Disk, error) {
	d := &Disk{
		sizeBytes: chain[0].sizeBytes, bitmaps: newBitmaps(), options: o,
		stop: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	for _, m := range chain {
		d.layers = append(d.layers, newLayer(m, d.bitmaps))
	}
	if o.ReadOnly {
		return d, nil
	}
	w, err := newWriter(d.layers[0], d.wake)
	if err != nil {
		return nil, err
	}
	d.w = w
	if interval := o.CommitInterval; interval >= 0 {
		if interval == 0 {
			interval = defaultCommitInterval
		}
		d.stopped.Add(1)
		go d.commitLater(interval)
	}
	return d, nil
}

// commitLater commits what nobody flushes, an interval after it was written.
// Close stops it.
func (d *Disk) commitLater(interval time.Duration) {
	defer d.stopped.Done()
	timer := time.NewTimer(interval)
	timer.Stop()
	for {
		select {
		case <-d.stop:
			timer.Stop()
			return
		case <-d.wake:
			timer.Reset(interval)
		case <-timer.C:
			d.mu.RLock()
			if err := d.w.commit(); err != nil && !errors.Is(err, ErrFailed) {
				timer.Reset(interval) // perhaps there is space by then
			}
			d.mu.RUnlock()
		}
	}
}

// SizeBytes is the length of the disk, a multiple of 512.
func (d *Disk) SizeBytes() int64 { return d.sizeBytes }

// ReadOnly says that nothing can be written.
func (d *Disk) ReadOnly() bool { return d.options.ReadOnly }

// Problems are what Open found in the images, the leaf's first.
func (d *Disk) Problems() (all []Problem) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, l := range d.layers {
		all = append(all, l.problems...)
	}
	return all
}

// Paths are the files of the chain, the leaf's first.
func (d *Disk) Paths() (all []string) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, l := range d.layers {
		all = append(all, l.path)
	}
	return all
}

// check is called with mu held.
func (d *Disk) check(n, off int64) error {
	if d.closed {
		return fs.ErrClosed
	}
	if off < 0 || n < 0 || off%SectorBytes != 0 || n%SectorBytes != 0 || off > d.sizeBytes || n > d.sizeBytes-off {
		return fmt.Errorf("%w of %d bytes", ErrRange, d.sizeBytes)
	}
	return nil
}

// checkWrite is check for what changes the disk.
func (d *Disk) checkWrite(n, off int64) error {
	if err := d.check(n, off); err != nil {
		return err
	}
	if d.w == nil {
		return ErrReadOnly
	}
	return d.w.failure()
}

// ReadAt fills all of p, or says why not; then the contents of p are
// undefined and the count is 0.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	err := d.check(int64(len(p)), off)
	if err == nil {
		err = readChain(d.layers, p, off)
	}
	if err != nil {
		return 0, fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return len(p), nil
}

// WriteAt writes all of p, or says why not; then any sector of the range may
// have been written and the count is 0. Out of space is syscall.ENOSPC, and
// the call may be tried again.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	err := d.checkWrite(int64(len(p)), off)
	if err == nil {
		err = d.w.write(d.layers, p, off)
	}
	if err != nil {
		return 0, fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return len(p), nil
}

// Flush returns nil when every change that had completed before the call is
// durable. Without the space for metadata it fails and may be tried again;
// when the store cannot make its bytes durable it fails with ErrFailed, for
// ever: Linux reports a lost page once and takes it for clean afterwards
// (https://lwn.net/Articles/752063/).
func (d *Disk) Flush() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return fmt.Errorf("flush: %w", fs.ErrClosed)
	}
	if d.w == nil {
		return nil
	}
	if err := d.w.commit(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Close waits for the calls in flight, makes a writable disk durable, cuts
// spare space off the leaf's file and releases all files whatever the rest
// says. Later calls return nil and do nothing.
func (d *Disk) Close() error {
	d.stopOnce.Do(func() { close(d.stop) })
	d.stopped.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	var err error
	if d.w != nil {
		err = d.w.rest()
	}
	for _, l := range d.layers {
		err = errors.Join(err, l.file.Close())
	}
	if err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}
