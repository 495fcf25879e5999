package fakexen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Xenstored is the store of the machine. It behaves as C xenstored 4.17:
// errors, implicit parents, permissions, generations, which watches fire.
type Xenstored struct {
	mu          sync.Mutex
	tree        map[string]*node
	gen         uint64
	sessions    []*session
	introduced  map[uint32]bool
	failCommits int
	requests    map[string]int
	onRequest   func(kind, path string)
	closed      bool

	dir       string
	listeners map[uint32]*listener
	serving   sync.WaitGroup // acceptors, and two goroutines a connection
}

type listener struct {
	path string
	l    *net.UnixListener
}

// NewXenstored starts a store with domain 0 in it, on a socket in a directory
// of its own. m may be nil; else Boot and DestroyDomain of m use the store.
func NewXenstored(m *Machine) (*Xenstored, error) {
	dir, err := os.MkdirTemp("", "fakexen")
	if err != nil {
		return nil, err
	}
	x := &Xenstored{
		tree:       map[string]*node{"/": {perms: []perm{{}}}},
		introduced: map[uint32]bool{0: true},
		requests:   make(map[string]int),
		dir:        dir,
		listeners:  make(map[uint32]*listener),
	}
	dom0 := x.Store(0)
	for _, kv := range [][2]string{
		{"/tool/xenstored", ""}, {"/local/domain/0/domid", "0"},
		{"/local/domain/0/name", "Domain-0"},
	} {
		if err := dom0.Write(kv[0], kv[1]); err != nil {
			return nil, errors.Join(err, x.Close())
		}
	}
	dom0.Close()
	if _, err := x.PathAs(0); err != nil {
		return nil, errors.Join(err, x.Close())
	}
	if m != nil {
		m.mu.Lock()
		m.store = x
		m.mu.Unlock()
	}
	return x, nil
}

// Path is the socket whose clients are domain 0.
func (x *Xenstored) Path() string { return filepath.Join(x.dir, "socket") }

// PathAs is a socket whose clients have that domain's rights and paths; it is
// made when first asked for. On Xen that client would use /dev/xen/xenbus.
func (x *Xenstored) PathAs(domid uint32) (string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return "", net.ErrClosed
	}
	if l := x.listeners[domid]; l != nil {
		return l.path, nil
	}
	path := x.Path()
	if domid != 0 {
		path += "-" + strconv.FormatUint(uint64(domid), 10)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return "", err
	}
	x.listeners[domid] = &listener{path, l}
	x.serving.Add(1)
	go x.accept(l, domid) // ends when Close closes l
	return path, nil
}

// ConnectAs connects to the socket of PathAs.
func (x *Xenstored) ConnectAs(domid uint32) (net.Conn, error) {
	path, err := x.PathAs(domid)
	if err != nil {
		return nil, err
	}
	return net.Dial("unix", path)
}

func (x *Xenstored) accept(l *net.UnixListener, domid uint32) {
	defer x.serving.Done()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		x.serve(c, domid)
	}
}

func (x *Xenstored) addSession(s *session) {
	s.x = x
	s.txs = make(map[uint32]*txn)
	x.sessions = append(x.sessions, s)
}

func (x *Xenstored) removeSession(s *session) {
	x.sessions = slices.DeleteFunc(x.sessions, func(o *session) bool { return o == s })
}

// FailCommits lets the next n commits fail with EAGAIN.
func (x *Xenstored) FailCommits(n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failCommits = n
}

// OnRequest installs a hook that sees each request of a socket before it is
// served: its type as xenstored's trace spells it, and its path. The hook may
// use a Store: no lock is held. Nil removes it.
func (x *Xenstored) OnRequest(f func(kind, path string)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.onRequest = f
}

// Requests returns how many requests of each type came over sockets.
func (x *Xenstored) Requests() map[string]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := make(map[string]int, len(x.requests))
	for k, n := range x.requests {
		r[k] = n
	}
	return r
}

// Watches returns how many watches all sockets have registered.
func (x *Xenstored) Watches() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for _, s := range x.sessions {
		if s.client != nil {
			n += len(s.watches)
		}
	}
	return n
}

// Introduce makes a domain known, as xl does when it builds one, and fires
// @introduceDomain.
func (x *Xenstored) Introduce(domid uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.introduced[domid] {
		x.introduced[domid] = true
		x.deliver(event{path: "@introduceDomain"})
	}
}

// Release forgets a domain: its connections end, the nodes it owns anywhere
// are removed (XSA-419), and @releaseDomain fires.
func (x *Xenstored) Release(domid uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.introduced[domid] || domid == 0 {
		return
	}
	delete(x.introduced, domid)
	dom0 := &session{x: x}
	v := view{x: x}
	for path, n := range x.tree {
		if n.perms[0].domid == domid && x.tree[path] != nil {
			_ = dom0.rm(v, path)
		}
	}
	for _, s := range slices.Clone(x.sessions) {
		if s.domid == domid {
			s.watches = nil
			if s.client != nil {
				s.client.close()
			}
		}
	}
	x.deliver(event{path: "@releaseDomain"})
}

// FireRelease fires @releaseDomain though no domain is gone, as happens when
// any guest shuts down (XSA-325).
func (x *Xenstored) FireRelease() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deliver(event{path: "@releaseDomain"})
}

// Flood fires n spurious events for the path. It goes on only as fast as each
// client reads, so that it is the client's memory that is tested.
func (x *Xenstored) Flood(path string, n int) {
	for i := 0; i < n; i += floodStep {
		x.mu.Lock()
		if x.closed {
			x.mu.Unlock()
			return
		}
		for range min(floodStep, n-i) {
			x.deliver(event{path: path})
		}
		var wait []*client
		for _, s := range x.sessions {
			if s.client != nil {
				wait = append(wait, s.client)
			}
		}
		x.mu.Unlock()
		for _, c := range wait {
			c.waitShort()
		}
	}
}

// Drop ends all connections, as a dead xenstored does. New ones are accepted.
func (x *Xenstored) Drop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range slices.Clone(x.sessions) {
		if s.client != nil {
			s.client.close()
		}
	}
}

// Close ends the store with all its goroutines. Idempotent.
func (x *Xenstored) Close() error {
	x.mu.Lock()
	x.closed = true
	for _, l := range x.listeners {
		_ = l.l.Close()
	}
	x.mu.Unlock()
	x.Drop()
	x.serving.Wait()
	if err := os.RemoveAll(x.dir); err != nil {
		return fmt.Errorf("remove socket: %w", err)
	}
	return nil
}

// handle serves one request of a socket. Replies and events are queued in the
// order that C xenstored does: a client's own change fires before the reply,
// a new watch after it.
func (x *Xenstored) handle(s *session, q message, send func(message)) {
	path, _, _ := strings.Cut(string(q.payload), "\x00")
	x.mu.Lock()
	hook := x.onRequest
	x.requests[kindNames[q.kind]]++
	x.mu.Unlock()
	if hook != nil {
		hook(kindNames[q.kind], path)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if q.kind == xsWatch {
		ss := manyStrings(q.payload)
		if len(ss) != 2 {
			send(reply(q, nil, unix.EINVAL))
			return
		}
		w, err := s.watch(ss[0], ss[1])
		send(reply(q, nulStrings("OK"), err))
		if err == nil {
			s.fireOnce(w)
		}
		return
	}
	payload, err := x.dispatch(s, q)
	send(reply(q, payload, err))
}
