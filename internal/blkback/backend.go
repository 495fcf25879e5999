package blkback

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"xen-disk/reactor"
	"xen-disk/xs"
)

const (
	// Workers is the default size of the pool, few enough for a dom0 with
	// little memory (a worker costs its buffer and a thread's stack). Half
	// of them, enough to keep a device of moderate depth busy, is the most
	// that one queue gets at a time.
	Workers = 16

	// guestLogBurst lines a guestLogPeriod are logged of what a guest can
	// cause at will, so that it cannot fill dom0's disk.
	guestLogBurst  = 10
	guestLogPeriod = 10 * time.Second
)

// Config is what a Backend needs. All fields are required but Workers.
type Config struct {
	Conn    *xs.Conn      // pumped by Loop
	Loop    *reactor.Loop // running
	OpenXen func() (Xen, error)
	Log     zerolog.Logger
	Workers int
}

// Backend serves any number of vbds.
type Backend struct {
	conn    *xs.Conn
	loop    *reactor.Loop
	pool    *reactor.Pool
	workers []*worker
	openXen func() (Xen, error)
	log     zerolog.Logger
	own     uint32 // our domain
	release *xs.Watch

	forcedDrain time.Duration // a test's may be shorter
	late        atomic.Int32  // calls of await that have not returned

	mu   sync.Mutex
	vbds map[*VBD]struct{}
}

// New prepares a Backend without vbds. Close ends it.
func New(c Config) (*Backend, error) {
	if c.Workers == 0 {
		c.Workers = Workers
	}
	b := &Backend{conn: c.Conn, loop: c.Loop, openXen: c.OpenXen, log: c.Log, forcedDrain: forcedDrain, vbds: map[*VBD]struct{}{}}
	own, err := ownDomid(c.Conn)
	if err != nil {
		return nil, err
	}
	b.own = own
	for range c.Workers {
		w, err := newWorker()
		if err != nil {
			return nil, errors.Join(err, b.closeWorkers())
		}
		b.workers = append(b.workers, w)
	}
	b.release, err = c.Conn.Watch("@releaseDomain", func(string) { b.wakeAll() })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch for dying domains: %w", err), b.closeWorkers())
	}
	b.pool = reactor.NewPool(c.Workers, nil)
	return b, nil
}

// ownDomid is the domain that we run in: dom0, or a driver domain.
func ownDomid(conn *xs.Conn) (uint32, error) {
	// A relative path is below our own domain's directory.
	n, err := readUint(conn, "domid", 0, maxDomid, 0)
	if err != nil {
		return 0, fmt.Errorf("find our own domain: %w", err)
	}
	return uint32(n), nil
}

// Attach makes a vbd and begins to serve it. The Backend owns spec.Disk from
// here on, in success and in failure.
func (b *Backend) Attach(spec Spec) (*VBD, error) {
	devid, err := writeNodes(b.conn, b.own, &spec)
	if err != nil {
		return nil, errors.Join(err, spec.Disk.Close())
	}
	name := VdevName(devid)
	log := b.log.With().Uint32("domid", spec.Domid).Str("vdev", name).Logger()
	v := &VBD{
		b: b, spec: spec, devid: devid, paths: pathsOf(b.own, kind, spec.Domid, devid), log: log,
		guest: log.Sample(&zerolog.BurstSampler{Burst: guestLogBurst, Period: guestLogPeriod}),
		poke:  make(chan struct{}, 1), reports: make(chan error, 1),
		detach: make(chan struct{}), force: make(chan struct{}), done: make(chan struct{}),
	}
	wake := func(string) { v.wake() }
	for _, path := range []string{v.paths.front + "/state", v.paths.back, v.paths.frontErr} {
		w, err := b.conn.Watch(path, wake)
		if err != nil {
			return nil, errors.Join(err, v.undo())
		}
		v.watches = append(v.watches, w)
	}
	b.mu.Lock()
	b.vbds[v] = struct{}{}
	b.mu.Unlock()
	go v.run()
	return v, nil
}

// undo takes an attach back that did not come to run.
func (v *VBD) undo() error {
	for _, w := range v.watches {
		w.Close()
	}
	return errors.Join(removeNodes(v.b.conn, &v.paths), v.spec.Disk.Close())
}

func (b *Backend) remove(v *VBD) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.vbds, v)
}

func (b *Backend) wakeAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for v := range b.vbds {
		v.wake()
	}
}

// Close ends the Backend. Every VBD must be Done. A disk that a forced end
// left behind, still hanging, is an error: the pool and its buffers are left
// to the process' end then.
func (b *Backend) Close() error {
	b.release.Close()
	if n := b.late.Load(); n > 0 {
		return fmt.Errorf("%d disks hang: %w", n, errBusy)
	}
	b.pool.Close()
	return b.closeWorkers()
}

func (b *Backend) closeWorkers() error {
	var errs []error
	for _, w := range b.workers {
		errs = append(errs, w.close())
	}
	b.workers = nil
	return errors.Join(errs...)
}

// maxDomid is DOMID_FIRST_RESERVED - 1 (xen/include/public/xen.h).
const maxDomid = 0x7fef

func parseDomid(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxDomid && (s == "0" || !strings.HasPrefix(s, "0"))
}
