package xs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// request sends one message and waits for its reply. tx is nil outside a
// transaction. The error is an *Error.
func (c *Conn) request(op, path string, typ uint32, tx *Tx, parts ...string) ([]byte, error) {
	payload, err := c.roundTrip(typ, tx, parts)
	if err != nil {
		return nil, &Error{Op: op, Path: path, Err: err}
	}
	return payload, nil
}

func (c *Conn) roundTrip(typ uint32, tx *Tx, parts []string) ([]byte, error) {
	txID := uint32(0)
	if tx != nil {
		if tx.over.Load() {
			return nil, fmt.Errorf("transaction has ended: %w", unix.EINVAL)
		}
		txID = tx.id
	}
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > c.payloadMax {
		return nil, fmt.Errorf("request of %d bytes, at most %d: %w", size, c.payloadMax, unix.E2BIG)
	}
	if !c.served.Load() {
		return nil, fmt.Errorf("nobody pumps this connection (call Start): %w", unix.EDEADLK)
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.done:
		return nil, c.Err()
	}
	defer func() { <-c.slots }()
	call := &call{typ: typ, reply: make(chan result, 1)}
	if err := c.send(call, txID, parts); err != nil {
		return nil, err
	}
	r := <-call.reply
	return r.payload, r.err
}

// send enters the call and writes its message.
func (c *Conn) send(call *call, txID uint32, parts []string) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.acquire(); err != nil {
		return err
	}
	defer c.release()
	id, err := c.enter(call)
	if err != nil {
		return err
	}
	// Header and payload go in one write: the device joins pieces, but takes
	// those of two messages for one.
	msg := appendMessage(nil, call.typ, id, txID, parts...)
	if err := c.writeAll(msg); err != nil {
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
		return err
	}
	return nil
}

// enter gives the call a number that no other has, never 0.
func (c *Conn) enter(call *call) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	for {
		c.lastID++
		if c.lastID != 0 && c.calls[c.lastID] == nil {
			break
		}
	}
	c.calls[c.lastID] = call
	return c.lastID, nil
}

// writeAll writes one message. The caller has acquired and holds wmu.
func (c *Conn) writeAll(msg []byte) error {
	sent := 0
	for sent < len(msg) {
		n, err := unix.Write(c.fd, msg[sent:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			// Only a socket says so. The device takes every message, waiting
			// where it must; it never polls as writable.
			if err := c.poll(unix.POLLOUT); err != nil {
				return err
			}
		case err != nil && !c.isSocket && sent == 0:
			// The device refuses a single message by the errno of write(2) and
			// has forgotten it; the connection is as good as before.
			return err
		case err != nil:
			return c.lose(fmt.Errorf("write: %w", err))
		default:
			sent += n
		}
	}
	return nil
}
