package fakexen

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// A Store is a client of xenstored without a socket: the guest's side of a
// test, or the toolstack's. It has the rights and paths of its domain. Errors
// are unix.Errno. Its methods can be called from many goroutines.
type Store struct {
	x  *Xenstored
	s  *session
	tx uint32

	ev *storeEvents
}

type storeEvents struct {
	mu     sync.Mutex
	list   []Event
	change chan struct{}
}

// An Event is a watch that fired.
type Event struct{ Path, Token string }

// maxEvents bounds what a Store keeps if the test does not look: events over
// it are lost, as all watches are hints to read again.
const maxEvents = 1 << 16

// Store makes a client that acts as the domain.
func (x *Xenstored) Store(domid uint32) *Store {
	ev := &storeEvents{change: make(chan struct{}, 1)}
	c := &Store{x: x, s: &session{domid: domid}, ev: ev}
	c.s.event = func(path, token string) {
		ev.mu.Lock()
		if len(ev.list) < maxEvents {
			ev.list = append(ev.list, Event{path, token})
		}
		ev.mu.Unlock()
		select {
		case ev.change <- struct{}{}:
		default:
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.addSession(c.s)
	return c
}

// Close drops the client's watches and transactions.
func (c *Store) Close() {
	c.x.mu.Lock()
	defer c.x.mu.Unlock()
	c.x.removeSession(c.s)
}

func (c *Store) do(f func(v view) error) error {
	c.x.mu.Lock()
	defer c.x.mu.Unlock()
	v, err := c.s.view(c.tx)
	if err != nil {
		return err
	}
	return f(v)
}

// Read returns a node's value.
func (c *Store) Read(path string) (value string, err error) {
	err = c.do(func(v view) error {
		b, err := c.s.read(v, path)
		value = string(b)
		return err
	})
	return value, err
}

// ReadUint reads a node that holds a decimal number.
func (c *Store) ReadUint(path string) (uint64, error) {
	s, err := c.Read(path)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return strconv.ParseUint(s, 10, 64)
}

// Exists reports whether the client can read the node.
func (c *Store) Exists(path string) bool {
	_, err := c.Read(path)
	return err == nil
}

// Write sets a node's value, and makes it if it is missing.
func (c *Store) Write(path, value string) error {
	return c.do(func(v view) error { return c.s.write(v, path, []byte(value)) })
}

// Mkdir makes a node.
func (c *Store) Mkdir(path string) error {
	return c.do(func(v view) error { return c.s.mkdir(v, path) })
}

// Rm removes a node and all below.
func (c *Store) Rm(path string) error {
	return c.do(func(v view) error { return c.s.rm(v, path) })
}

// List returns the names of a node's children.
func (c *Store) List(path string) (names []string, err error) {
	err = c.do(func(v view) error {
		children, _, err := c.s.directory(v, path)
		names = append([]string(nil), children...)
		return err
	})
	return names, err
}

// GetPerms returns a node's permissions, as "n0", "r5".
func (c *Store) GetPerms(path string) (perms []string, err error) {
	err = c.do(func(v view) error {
		ps, err := c.s.getPerms(v, path)
		perms = formatPerms(ps)
		return err
	})
	return perms, err
}

// SetPerms sets a node's permissions; the first names the owner.
func (c *Store) SetPerms(path string, perms ...string) error {
	ps, err := parsePerms(perms)
	if err != nil {
		return err
	}
	return c.do(func(v view) error { return c.s.setPerms(v, path, ps) })
}

// Tx runs f in a transaction, again for as long as the commit is EAGAIN. An
// error of f aborts it.
func (c *Store) Tx(f func(t *Store) error) error {
	for {
		c.x.mu.Lock()
		id, err := c.s.txStart()
		c.x.mu.Unlock()
		if err != nil {
			return err
		}
		err = f(&Store{x: c.x, s: c.s, tx: id, ev: c.ev})
		c.x.mu.Lock()
		end := c.s.txEnd(id, err == nil)
		c.x.mu.Unlock()
		if err != nil {
			return err
		}
		if end != unix.EAGAIN {
			return end
		}
	}
}

// Watch registers a watch; it fires once at once.
func (c *Store) Watch(path, token string) error {
	return c.do(func(view) error {
		w, err := c.s.watch(path, token)
		if err == nil {
			c.s.fireOnce(w)
		}
		return err
	})
}

// Unwatch removes a watch.
func (c *Store) Unwatch(path, token string) error {
	return c.do(func(view) error { return c.s.unwatch(path, token) })
}

// Changed gets a value when events have come since Events was called.
func (c *Store) Changed() <-chan struct{} { return c.ev.change }

// Events takes the events that came.
func (c *Store) Events() []Event {
	c.ev.mu.Lock()
	defer c.ev.mu.Unlock()
	l := c.ev.list
	c.ev.list = nil
	return l
}

// WaitFor waits until ok is true of a node's value; exists is false, and the
// value empty, while there is no such node. Its error names the last value.
func (c *Store) WaitFor(ctx context.Context, path string, ok func(value string, exists bool) bool) error {
	w := c.x.Store(c.s.domid)
	defer w.Close()
	if err := w.Watch(path, "wait"); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	for {
		value, err := w.Read(path)
		if ok(value, err == nil) {
			return nil
		}
		w.Events()
		select {
		case <-w.Changed():
		case <-ctx.Done():
			return fmt.Errorf("wait for %s, which is %q: %w", path, value, ctx.Err())
		}
	}
}

// WaitValue waits until a node has the value.
func (c *Store) WaitValue(ctx context.Context, path, want string) error {
	return c.WaitFor(ctx, path, func(v string, exists bool) bool { return exists && v == want })
}

// WaitGone waits until there is no such node.
func (c *Store) WaitGone(ctx context.Context, path string) error {
	return c.WaitFor(ctx, path, func(_ string, exists bool) bool { return !exists })
}
