package fakexen

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of C xenstored (tools/xenstore/xenstored_core.c, domain.c of 4.17).
const (
	maxPayload   = 4096 // XENSTORE_PAYLOAD_MAX
	maxAbsPath   = 3072 // XENSTORE_ABS_PATH_MAX
	maxRelPath   = 2048 // XENSTORE_REL_PATH_MAX
	quotaNodes   = 1000 // for a guest, as all the following
	quotaWatches = 128
	quotaTx      = 10
	quotaEntry   = 2048 // bytes of value, permissions and child names
	quotaPerms   = 5
)

// noGeneration is the generation of a node that does not exist.
const noGeneration = math.MaxUint64

type permBits byte

const (
	permRead  permBits = 1
	permWrite permBits = 2
	permOwner permBits = 4
)

type perm struct {
	domid uint32
	bits  permBits
}

// A node is never changed once it is in the tree: writers replace it.
type node struct {
	value    []byte
	children []string // in the order of their creation
	perms    []perm   // the first names the owner, and what others may
	gen      uint64
}

func (n *node) clone() *node {
	c := *n
	c.children = slices.Clone(n.children)
	return &c
}

func (n *node) entrySize() int {
	size := len(n.value) + 8*len(n.perms)
	for _, c := range n.children {
		size += len(c) + 1
	}
	return size
}

func (p perm) String() string {
	letter := [4]string{"n", "r", "w", "b"}[p.bits&3]
	return letter + strconv.FormatUint(uint64(p.domid), 10)
}

func parsePerm(s string) (perm, error) {
	if s == "" {
		return perm{}, unix.EINVAL
	}
	bits := strings.IndexByte("nrwb", s[0])
	id, err := strconv.ParseUint(s[1:], 10, 32)
	if bits < 0 || err != nil {
		return perm{}, unix.EINVAL
	}
	return perm{uint32(id), permBits(bits)}, nil
}

func parsePerms(ss []string) ([]perm, error) {
	var ps []perm
	for _, s := range ss {
		p, err := parsePerm(s)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	if len(ps) == 0 {
		return nil, unix.EINVAL
	}
	return ps, nil
}

func formatPerms(ps []perm) []string {
	ss := make([]string, len(ps))
	for i, p := range ps {
		ss[i] = p.String()
	}
	return ss
}

// allowed is what a domain may do, by the permissions of a node.
func allowed(domid uint32, ps []perm) permBits {
	if domid == 0 || ps[0].domid == domid {
		return permRead | permWrite | permOwner
	}
	for _, p := range ps[1:] {
		if p.domid == domid {
			return p.bits
		}
	}
	return ps[0].bits
}

func validPath(p string) bool {
	if p == "/" {
		return true
	}
	if !strings.HasPrefix(p, "/") || strings.HasSuffix(p, "/") ||
		strings.Contains(p, "//") || len(p) > maxAbsPath {
		return false
	}
	for _, c := range []byte(p) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && strings.IndexByte("-/_@", c) < 0 {
			return false
		}
	}
	return true
}

func parentOf(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 {
		return "/"
	}
	return path[:i]
}

func baseOf(path string) string {
	return path[strings.LastIndexByte(path, '/')+1:]
}

func join(parent, child string) string {
	if parent == "/" {
		return "/" + child
	}
	return parent + "/" + child
}

// below reports whether path is parent or under it. As in C xenstored all is
// under "/", special events too.
func below(path, parent string) bool {
	if parent == "/" {
		return true
	}
	rest, ok := strings.CutPrefix(path, parent)
	return ok && (rest == "" || rest[0] == '/')
}

// A txn is a transaction. Each node it touches is kept with the generation it
// had then; at the commit all must be unchanged, those written included.
type txn struct {
	accessed map[string]*access
	order    []string
	events   []event
	failed   bool
}

type access struct {
	gen      uint64
	node     *node // nil: does not exist
	modified bool
}

// A view is the tree as one request sees it: with or without a transaction.
type view struct {
	x  *Xenstored
	tx *txn
}

func (v view) get(path string) *node {
	if v.tx == nil {
		return v.x.tree[path]
	}
	a := v.tx.accessed[path]
	if a == nil {
		a = &access{gen: noGeneration, node: v.x.tree[path]}
		if a.node != nil {
			a.gen = a.node.gen
		}
		v.tx.accessed[path] = a
		v.tx.order = append(v.tx.order, path)
	}
	return a.node
}

// put replaces a node; nil deletes it.
func (v view) put(path string, n *node) {
	if n != nil {
		n.gen = v.x.nextGen()
	}
	if v.tx == nil {
		v.x.set(path, n)
		return
	}
	v.get(path)
	a := v.tx.accessed[path]
	a.node, a.modified = n, true
}

func (x *Xenstored) set(path string, n *node) {
	if n == nil {
		delete(x.tree, path)
	} else {
		x.tree[path] = n
	}
}

func (x *Xenstored) nextGen() uint64 {
	x.gen++
	return x.gen
}

// commit makes a transaction's changes, or none of them and EAGAIN.
func (x *Xenstored) commit(tx *txn) error {
	if tx.failed {
		return unix.ENOMEM
	}
	if x.failCommits > 0 {
		x.failCommits--
		return unix.EAGAIN
	}
	for path, a := range tx.accessed {
		gen := uint64(noGeneration)
		if n := x.tree[path]; n != nil {
			gen = n.gen
		}
		if gen != a.gen {
			return unix.EAGAIN
		}
	}
	for _, path := range tx.order {
		a := tx.accessed[path]
		if !a.modified {
			continue
		}
		if a.node != nil {
			a.node.gen = x.nextGen()
		}
		x.set(path, a.node)
	}
	for _, e := range tx.events {
		x.deliver(e)
	}
	return nil
}

// Dump is the tree as text, one node a line, sorted: path, value, permissions.
func (x *Xenstored) Dump() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	paths := make([]string, 0, len(x.tree))
	for p := range x.tree {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	var b strings.Builder
	for _, p := range paths {
		n := x.tree[p]
		fmt.Fprintf(&b, "%s = %q (%s)\n", p, n.value,
			strings.Join(formatPerms(n.perms), ","))
	}
	return b.String()
}
