package xs

import (
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// watchesMax bounds the watches of a connection: two for each of 16384 vbds,
// far past what one host carries. For a domain other than dom0 xenstored has
// a bound of its own (128 by default).
const watchesMax = 1 << 15

// Watch is a registered interest in a node and everything below it.
type Watch struct {
	c     *Conn
	path  string
	token string
	f     func(path string)
	close sync.Once
	err   error
}

// Watch has f called with the path of each node that is made, changed or
// removed at or below path, whose permissions change, or which is gone with a
// parent (then the path is that of the watch). path may be relative, and so
// are then the paths of its events; or an event: "@introduceDomain",
// "@releaseDomain".
//
// f is called once at the start, perhaps before Watch has returned, and then
// perhaps without a reason or once for many changes: an event says "look
// again", nothing more.
//
// f runs in the goroutine that pumps: it must not block and must not make
// requests or Close a Watch; it wakes who does.
func (c *Conn) Watch(path string, f func(path string)) (*Watch, error) {
	const op = "watch"
	if err := checkPath(path); err != nil {
		return nil, &Error{Op: op, Path: path, Err: err}
	}
	if f == nil {
		return nil, &Error{Op: op, Path: path, Err: fmt.Errorf("no function: %w", unix.EINVAL)}
	}
	w := &Watch{c: c, path: path, f: f}
	// The token is known before the request is sent: the device delivers the
	// first event ahead of the reply.
	if err := c.addWatch(w); err != nil {
		return nil, &Error{Op: op, Path: path, Err: err}
	}
	if _, err := c.request(op, path, opWatch, nil, path, "\x00", w.token, "\x00"); err != nil {
		c.removeWatch(w)
		return nil, err
	}
	return w, nil
}

// Path is what Watch was called with.
func (w *Watch) Path() string { return w.path }

// Close ends the watch. Once it has returned, f is not called again; and it is
// not running either, unless the connection has ended. Of several calls only
// the first does something, and all return its error: one of xenstored; nil
// where the connection is gone, since the watch went with it.
func (w *Watch) Close() error {
	w.close.Do(func() {
		w.c.removeWatch(w)
		_, err := w.c.request("unwatch", w.path, opUnwatch, nil, w.path, "\x00", w.token, "\x00")
		if !errors.Is(err, ErrLost) && !errors.Is(err, ErrClosed) {
			w.err = err
		}
	})
	return w.err
}

func (c *Conn) addWatch(w *Watch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if len(c.watches) >= watchesMax {
		return fmt.Errorf("%d watches already: %w", len(c.watches), unix.ENOSPC)
	}
	c.lastToken++
	w.token = strconv.FormatUint(c.lastToken, 10)
	c.watches[w.token] = w
	return nil
}

func (c *Conn) removeWatch(w *Watch) {
	c.mu.Lock()
	delete(c.watches, w.token)
	c.mu.Unlock()
}

// event calls the function of the watch that an event is for. Events of
// watches that were closed are still under way when they are; nobody wants
// them.
func (c *Conn) event(payload []byte) error {
	path, token, err := parseEvent(payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	w := c.watches[string(token)]
	c.mu.Unlock()
	if w != nil {
		w.f(string(path))
	}
	return nil
}
