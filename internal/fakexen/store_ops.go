package fakexen

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A session is one client of xenstored: a connection, or a Store in process.
// Everything of it is under Xenstored.mu.
type session struct {
	x       *Xenstored
	domid   uint32
	watches []*watch
	txs     map[uint32]*txn
	nextTx  uint32
	event   func(path, token string) // must not block
	client  *client                  // nil in process
}

type watch struct {
	path, token string
	relative    bool
}

// event is a change to tell watches of. Who may know it is decided by the
// permissions that the node and its parent had.
type event struct {
	path  string
	exact bool // only watches of this very path
	perms [][]perm
}

func domainPath(domid uint32) string {
	return "/local/domain/" + strconv.FormatUint(uint64(domid), 10)
}

// absolute makes a path absolute: relative ones begin in the client's own
// directory, for a socket in that of domain 0.
func (s *session) absolute(path string) string {
	if strings.HasPrefix(path, "/") || strings.HasPrefix(path, "@") {
		return path
	}
	return domainPath(s.domid) + "/" + path
}

func (s *session) view(txid uint32) (view, error) {
	if txid == 0 {
		return view{x: s.x}, nil
	}
	tx := s.txs[txid]
	if tx == nil {
		return view{}, unix.ENOENT
	}
	return view{s.x, tx}, nil
}

// lookup finds a node that the client may use so. A client that may not see
// what is around the node is told EACCES, whether it exists or not.
func (s *session) lookup(v view, path string, need permBits) (string, *node, error) {
	path = s.absolute(path)
	if !validPath(path) {
		return path, nil, unix.EINVAL
	}
	n := v.get(path)
	if n != nil && allowed(s.domid, n.perms)&need == need {
		return path, n, nil
	}
	if n != nil {
		return path, nil, unix.EACCES
	}
	for p := path; p != "/"; {
		p = parentOf(p)
		if up := v.get(p); up != nil {
			if allowed(s.domid, up.perms)&need != 0 {
				return path, nil, unix.ENOENT
			}
			break
		}
	}
	return path, nil, unix.EACCES
}

func (s *session) read(v view, path string) ([]byte, error) {
	_, n, err := s.lookup(v, path, permRead)
	if err != nil {
		return nil, err
	}
	return n.value, nil
}

func (s *session) directory(v view, path string) ([]string, uint64, error) {
	_, n, err := s.lookup(v, path, permRead)
	if err != nil {
		return nil, 0, err
	}
	return n.children, n.gen, nil
}

func (s *session) getPerms(v view, path string) ([]perm, error) {
	_, n, err := s.lookup(v, path, permRead)
	if err != nil {
		return nil, err
	}
	return n.perms, nil
}

func (s *session) write(v view, path string, value []byte) error {
	path, n, err := s.lookup(v, path, permWrite)
	switch err {
	case nil:
		c := n.clone()
		c.value = slices.Clone(value)
		if s.domid != 0 && c.entrySize() >= quotaEntry {
			return unix.ENOSPC
		}
		v.put(path, c)
	case unix.ENOENT:
		if err := s.create(v, path, slices.Clone(value)); err != nil {
			return err
		}
	default:
		return err
	}
	v.fire(path, false)
	return nil
}

func (s *session) mkdir(v view, path string) error {
	path, _, err := s.lookup(v, path, permWrite)
	if err != unix.ENOENT {
		return err
	}
	if err := s.create(v, path, nil); err != nil {
		return err
	}
	v.fire(path, false)
	return nil
}

// create makes a node and the parents that are missing. Each inherits the
// permissions of its parent; a guest owns what it makes.
func (s *session) create(v view, path string, value []byte) error {
	missing := []string{path}
	p := parentOf(path)
	for v.get(p) == nil {
		missing = append(missing, p)
		p = parentOf(p)
	}
	if s.domid != 0 {
		if len(value)+8 >= quotaEntry || s.x.owned(s.domid)+len(missing) > quotaNodes {
			return unix.ENOSPC
		}
	}
	for i := len(missing) - 1; i >= 0; i-- {
		child := missing[i]
		up := v.get(p).clone()
		up.children = append(up.children, baseOf(child))
		v.put(p, up)
		n := &node{perms: slices.Clone(up.perms)}
		if s.domid != 0 {
			n.perms[0].domid = s.domid
		}
		if i == 0 {
			n.value = value
		}
		v.put(child, n)
		p = child
	}
	return nil
}

func (x *Xenstored) owned(domid uint32) int {
	n := 0
	for _, nd := range x.tree {
		if nd.perms[0].domid == domid {
			n++
		}
	}
	return n
}

// rm removes a node with all that is below. A missing node is no error while
// its parent exists.
func (s *session) rm(v view, path string) error {
	path, n, err := s.lookup(v, path, permWrite)
	if err == unix.ENOENT && v.get(parentOf(path)) != nil {
		return nil
	}
	if err != nil {
		return err
	}
	if path == "/" {
		return unix.EINVAL
	}
	v.fire(path, false)
	s.remove(v, path, n)
	parent := parentOf(path)
	up := v.get(parent).clone()
	base := baseOf(path)
	up.children = slices.DeleteFunc(up.children, func(c string) bool { return c == base })
	v.put(parent, up)
	return nil
}

// remove takes out children first, and tells watches of exactly each node.
func (s *session) remove(v view, path string, n *node) {
	for _, c := range n.children {
		child := join(path, c)
		if cn := v.get(child); cn != nil {
			s.remove(v, child, cn)
		}
	}
	v.fire(path, true)
	v.put(path, nil)
}

func (s *session) setPerms(v view, path string, ps []perm) error {
	if s.domid != 0 && len(ps) > quotaPerms {
		return unix.ENOSPC
	}
	path, n, err := s.lookup(v, path, permWrite|permOwner)
	if err != nil {
		return err
	}
	if s.domid != 0 && ps[0].domid != n.perms[0].domid {
		return unix.EPERM
	}
	old := n.perms
	c := n.clone()
	c.perms = ps
	v.put(path, c)
	v.fire(path, false, old)
	return nil
}

// fire tells watches of a change, or queues it until the commit; there each
// path is told of once.
func (v view) fire(path string, exact bool, more ...[]perm) {
	e := event{path: path, exact: exact, perms: more}
	for _, p := range []string{path, parentOf(path)} {
		if n := v.get(p); n != nil {
			e.perms = append(e.perms, n.perms)
		}
	}
	if v.tx == nil {
		v.x.deliver(e)
		return
	}
	for i := range v.tx.events {
		if q := &v.tx.events[i]; q.path == path {
			q.exact = q.exact && exact
			return
		}
	}
	v.tx.events = append(v.tx.events, e)
}

// deliver sends an event to all watches it concerns.
func (x *Xenstored) deliver(e event) {
	special := strings.HasPrefix(e.path, "@")
	for _, s := range x.sessions {
		may := s.domid == 0
		for _, ps := range e.perms {
			may = may || allowed(s.domid, ps)&permRead != 0
		}
		if !may || special && s.domid != 0 {
			continue
		}
		for _, w := range s.watches {
			if e.path == w.path || !e.exact && below(e.path, w.path) {
				s.event(w.eventPath(s, e.path), w.token)
			}
		}
	}
}

// eventPath is the path as the client named it: relative if the watch is.
func (w *watch) eventPath(s *session, path string) string {
	if !w.relative {
		return path
	}
	return strings.TrimPrefix(strings.TrimPrefix(path, domainPath(s.domid)), "/")
}

// watch registers a watch; the caller must fire it once, after its answer.
func (s *session) watch(path, token string) (*watch, error) {
	w := &watch{path: s.absolute(path), token: token}
	if strings.HasPrefix(path, "@") {
		if len(path) > maxRelPath {
			return nil, unix.EINVAL
		}
	} else {
		w.relative = !strings.HasPrefix(path, "/")
		if !validPath(w.path) {
			return nil, unix.EINVAL
		}
	}
	for _, o := range s.watches {
		if o.path == w.path && o.token == token {
			return nil, unix.EEXIST
		}
	}
	if s.domid != 0 && len(s.watches) > quotaWatches {
		return nil, unix.E2BIG
	}
	s.watches = append(s.watches, w)
	return w, nil
}

func (s *session) fireOnce(w *watch) { s.event(w.eventPath(s, w.path), w.token) }

func (s *session) unwatch(path, token string) error {
	path = s.absolute(path)
	for i, w := range s.watches {
		if w.path == path && w.token == token {
			s.watches = append(s.watches[:i], s.watches[i+1:]...)
			return nil
		}
	}
	return unix.ENOENT
}

func (s *session) txStart() (uint32, error) {
	if s.domid != 0 && len(s.txs) > quotaTx {
		return 0, unix.ENOSPC
	}
	s.nextTx++
	for s.nextTx == 0 || s.txs[s.nextTx] != nil {
		s.nextTx++
	}
	s.txs[s.nextTx] = &txn{accessed: make(map[string]*access)}
	return s.nextTx, nil
}

func (s *session) txEnd(txid uint32, commit bool) error {
	tx := s.txs[txid]
	if tx == nil {
		return unix.ENOENT
	}
	delete(s.txs, txid)
	if !commit {
		return nil
	}
	return s.x.commit(tx)
}
