package blkback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"xen-disk/internal/fakexen"
	"xen-disk/reactor"
	"xen-disk/xs"
)

// patience is how long a test waits for what must come. It only matters when
// something is broken: nothing is measured against it.
const patience = 60 * time.Second

// guest is the domain that newRig boots.
const guest = 5

// A rig is a pretend Xen machine with a Backend in its dom0: all of a process
// that serves disks but the command line. Its cleanup proves that nothing is
// left: no node, mapping, port, door, watch, goroutine or descriptor.
type rig struct {
	t     *testing.T
	m     *fakexen.Machine
	store *fakexen.Xenstored
	dom0  *fakexen.Store // the toolstack
	conn  *xs.Conn
	loop  *reactor.Loop
	back  *Backend
	log   *logBuffer

	ended      chan error // the loop's end
	goroutines int        // before all of it
	fds        int
	before     string // the tree without vbds

	mu      sync.Mutex
	devices []*device
	fronts  []*fakexen.Blkfront
}

// newRig starts a machine, with one guest booted.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, log: &logBuffer{}, ended: make(chan error, 1)}
	r.goroutines, r.fds = runtime.NumGoroutine(), openFDs(t)
	r.m = made(fakexen.New())
	r.store = made(fakexen.NewXenstored(r.m))
	r.dom0 = r.store.Store(0)
	r.conn = made(xs.Open(r.store.Path()))
	r.loop = made(reactor.New())
	if err := r.loop.Add(r.conn.FD(), &rigPump{r.conn, r.loop}); err != nil {
		t.Fatal(err)
	}
	go func() { r.ended <- r.loop.Run() }() // cleanup stops it
	r.back = made(New(Config{
		Conn: r.conn, Loop: r.loop, Log: zerolog.New(r.log),
		OpenXen: func() (Xen, error) { return r.m.OpenDoor(0) },
	}))
	r.boot(guest)
	t.Cleanup(r.cleanup)
	return r
}

func made[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type rigPump struct {
	conn *xs.Conn
	loop *reactor.Loop
}

func (p *rigPump) Ready(uint32) {
	if p.conn.Pump() != nil {
		_ = p.loop.Remove(p.conn.FD())
	}
}

// boot starts another guest. It is called before its first vbd is attached.
func (r *rig) boot(domid uint32) *fakexen.Domain {
	r.t.Helper()
	d, err := r.m.Boot(domid, fmt.Sprintf("guest%d", domid), fmt.Sprintf("uuid-%d", domid))
	if err != nil {
		r.t.Fatal(err)
	}
	r.before = r.store.Dump()
	return d
}

// destroy is xl destroy. The nodes of the domain need not come back.
func (r *rig) destroy(domid uint32) {
	r.t.Helper()
	if err := r.m.DestroyDomain(domid); err != nil {
		r.t.Fatal(err)
	}
	r.forget(domid)
}

// forget takes a domain's nodes out of what the cleanup expects.
func (r *rig) forget(domid uint32) {
	var kept []string
	for _, line := range strings.SplitAfter(r.before, "\n") {
		path, _, _ := strings.Cut(line, " ")
		mine := false
		for _, dir := range []string{
			fmt.Sprintf("/local/domain/%d", domid), fmt.Sprintf("/libxl/%d", domid), fmt.Sprintf("/vm/uuid-%d", domid),
		} {
			mine = mine || path == dir || strings.HasPrefix(path, dir+"/")
		}
		if !mine {
			kept = append(kept, line)
		}
	}
	r.before = strings.Join(kept, "")
}

// ctx ends when patience does, or the test.
func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

// eventually waits until a condition holds that nothing announces.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

// node waits until a node has the value.
func (r *rig) node(path, want string) {
	r.t.Helper()
	if err := r.dom0.WaitValue(r.ctx(), path, want); err != nil {
		r.t.Fatal(err)
	}
}

// gone waits until a node is not there.
func (r *rig) gone(path string) {
	r.t.Helper()
	if err := r.dom0.WaitGone(r.ctx(), path); err != nil {
		r.t.Fatal(err)
	}
}

// read returns a node's value, "-" if there is none.
func (r *rig) read(path string) string {
	s, err := r.dom0.Read(path)
	if err != nil {
		return "-"
	}
	return s
}

// ok ends the test on an error.
func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// A device is an attached vbd with the events that it told.
type device struct {
	*VBD
	r *rig

	mu     sync.Mutex
	list   []Event
	change chan struct{} // closed at each event
}

// attach attaches a disk; domid and disk have defaults: guest, 1 MiB.
func (r *rig) attach(spec Spec) *device {
	r.t.Helper()
	d, err := r.tryAttach(spec)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) tryAttach(spec Spec) (*device, error) {
	d := &device{r: r, change: make(chan struct{})}
	if spec.Domid == 0 {
		spec.Domid = guest
	}
	if spec.Disk == nil {
		spec.Disk = newDisk(1 << 20)
	}
	spec.Events = d.event
	v, err := r.back.Attach(spec)
	if err != nil {
		return nil, err
	}
	d.VBD = v
	r.mu.Lock()
	defer r.mu.Unlock()
	r.devices = append(r.devices, d)
	return d, nil
}

func (d *device) event(e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, e)
	close(d.change)
	d.change = make(chan struct{})
}

// events returns what was told so far.
func (d *device) events() []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.list)
}

// count returns how many events of a kind were told so far.
func (d *device) count(kind EventKind) int {
	n := 0
	for _, e := range d.events() {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// await waits for the nth event of a kind, from 1.
func (d *device) await(kind EventKind, nth int) Event {
	d.r.t.Helper()
	giveUp := time.After(patience)
	for {
		d.mu.Lock()
		n, change := nth, d.change
		for _, e := range d.list {
			if e.Kind == kind {
				if n--; n == 0 {
					d.mu.Unlock()
					return e
				}
			}
		}
		d.mu.Unlock()
		select {
		case <-change:
		case <-giveUp:
			d.r.t.Fatalf("no event of kind %d; there were %v\n%s", kind, d.events(), d.r.log)
		}
	}
}

// state waits until the backend's state node has the value.
func (d *device) state(want string) {
	d.r.t.Helper()
	d.r.node(d.BackendPath()+"/state", want)
}

// front starts a frontend for the vbd, of 64 bits where opts say nothing.
func (d *device) front(opts fakexen.Options) *fakexen.Blkfront {
	d.r.t.Helper()
	if opts.ABI == "" && !opts.Native32 {
		opts.ABI = "x86_64-abi"
	}
	f, err := fakexen.NewBlkfront(d.r.m, d.spec.Domid, d.Devid(), opts)
	if err != nil {
		d.r.t.Fatal(err)
	}
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	d.r.fronts = append(d.r.fronts, f)
	return f
}

// connect starts a frontend and waits until both ends are connected.
func (d *device) connect(opts fakexen.Options) *fakexen.Blkfront {
	d.r.t.Helper()
	f := d.front(opts)
	if err := f.WaitConnected(d.r.ctx()); err != nil {
		d.r.t.Fatal(errors.Join(err, fmt.Errorf("log:\n%s", d.r.log)))
	}
	d.await(EventConnected, 1)
	return f
}

// wait waits for the vbd's end and returns its error.
func (d *device) wait() error {
	d.r.t.Helper()
	select {
	case <-d.Done():
	case <-time.After(patience):
		d.r.t.Fatalf("%s does not end; events %v\n%s\n%s", d.Name(), d.events(), d.r.log, d.r.store.Dump())
	}
	return d.Err()
}

// ends waits for the vbd's end, without an error, announced as kind.
func (d *device) ends(kind EventKind) {
	d.r.t.Helper()
	if err := d.wait(); err != nil {
		d.r.t.Errorf("%s ends with: %v", d.Name(), err)
	}
	if l := d.events(); len(l) == 0 || l[len(l)-1].Kind != kind {
		d.r.t.Errorf("%s: events %v, want the last of kind %d", d.Name(), l, kind)
	}
}

// stop ends a vbd in order.
func (d *device) stop() {
	d.r.t.Helper()
	d.Detach()
	d.ends(EventDetached)
}

func (r *rig) cleanup() {
	for _, d := range r.devices {
		select {
		case <-d.Done():
		default:
			if !r.t.Failed() {
				r.t.Errorf("%s of domain %d was not ended", d.Name(), d.spec.Domid)
			}
			d.Force()
			<-d.Done()
		}
	}
	for _, f := range r.fronts {
		err := f.Stop()
		if err = errors.Join(err, f.Violations()); err != nil && !r.t.Failed() {
			r.t.Errorf("frontend %s: %v", f.Dir(), err)
		}
	}
	if got := r.store.Dump(); got != r.before && !r.t.Failed() {
		r.t.Errorf("nodes are left or lost:\n%s", difference(r.before, got))
	}
	err := r.back.Close()
	if n := r.store.Watches(); n != 0 && r.conn.Err() == nil {
		err = errors.Join(err, fmt.Errorf("%d watches are left", n))
	}
	r.loop.Stop()
	err = errors.Join(err, <-r.ended, r.loop.Close(), r.conn.Close())
	r.dom0.Close()
	err = errors.Join(err, r.m.Close(), r.store.Close())
	if err != nil && !r.t.Failed() {
		r.t.Error(err)
	}
	if !r.t.Failed() {
		r.eventually("goroutines and descriptors are back to what they were", func() bool {
			return runtime.NumGoroutine() <= r.goroutines && openFDs(r.t) <= r.fds
		})
	}
}

// difference shows the lines that only one of two texts has.
func difference(before, after string) string {
	var b strings.Builder
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, l := range old {
		if !slices.Contains(now, l) {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range now {
		if !slices.Contains(old, l) {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}

func openFDs(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
