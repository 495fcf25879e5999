package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
)

const (
	// maxConns bounds the clients at once; nbdcopy opens 4, qemu-img 1.
	maxConns = 16
	// handshakeTime is what a client has for the handshake, which takes
	// microseconds. QEMU's server gives 10 s as well (CVE-2024-7409).
	handshakeTime = 10 * time.Second
	// acceptPause is how long to wait when the process has no descriptor or
	// memory for another client: what is lacking may come back.
	acceptPause = 100 * time.Millisecond
)

// Options say how a Server serves. The zero value does it silently.
type Options struct {
	// Report is told what goes wrong: what the disk fails with, and how a
	// client broke the protocol. It is called from many goroutines at once, as
	// often as clients cause it, and must not block for long.
	Report func(error)
}

// Server serves one disk to any number of clients, at most 16 at a time.
type Server struct {
	export  *export
	report  func(error)
	buffers buffers
	// time is handshakeTime, but for tests.
	time time.Duration

	mu      sync.Mutex
	ln      net.Listener
	conns   map[*conn]struct{}
	closing bool
	gone    chan struct{} // closed when closing and there are no clients
}

// New returns a server of d, which stays the caller's: it must be open until
// Shutdown has returned.
func New(d disk.Disk, o Options) *Server {
	s := &Server{
		export: newExport(d), report: o.Report, time: handshakeTime,
		conns: make(map[*conn]struct{}), gone: make(chan struct{}),
	}
	if s.report == nil {
		s.report = func(error) {}
	}
	return s
}

// Serve accepts clients until Shutdown, and then returns nil. It owns ln, and
// is called once.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	s.mu.Lock()
	s.ln = ln
	closing := s.closing
	s.mu.Unlock()
	for !closing {
		nc, err := ln.Accept()
		if err == nil {
			s.admit(nc)
			continue
		}
		s.mu.Lock()
		closing = s.closing
		s.mu.Unlock()
		switch {
		case closing:
		case lacking(err):
			s.report(fmt.Errorf("accept client: %w", err))
			time.Sleep(acceptPause)
		default:
			return fmt.Errorf("accept client: %w", err)
		}
	}
	return nil
}

// lacking says whether accept(2) failed for want of something.
func lacking(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) ||
		errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// admit starts to serve a client, unless there are too many.
func (s *Server) admit(nc net.Conn) {
	widen(nc)
	c := newConn(nc, s.export, &s.buffers, s.report)
	s.mu.Lock()
	full, closing := len(s.conns) >= maxConns, s.closing
	if !full && !closing {
		s.conns[c] = struct{}{}
		_ = nc.SetDeadline(time.Now().Add(s.time))
	}
	s.mu.Unlock()
	switch {
	case full:
		s.report(fmt.Errorf("accept client: there are %d already", maxConns))
		fallthrough
	case closing:
		_ = nc.Close()
	default:
		go s.serve(c) // until the client or Shutdown ends it
	}
}

// socketBytes is how much the kernel keeps of replies that the client has not
// read. With its default of 208 KiB a reply of 1 MiB takes several turns of
// both sides; with this, four at a time are read 1.3 times as fast.
const socketBytes = 2 << 20

// widen asks for socketBytes; what it gets is good enough.
func widen(nc net.Conn) {
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		// The first is for root, and not limited by net.core.wmem_max.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBytes) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, socketBytes)
		}
	})
}

// serve is the life of a client.
func (s *Server) serve(c *conn) {
	err := s.talk(c)
	_ = c.nc.Close()
	if err != nil {
		s.report(fmt.Errorf("serve client: %w", err))
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.settle()
	s.mu.Unlock()
}

// talk is the handshake and the transmission.
func (s *Server) talk(c *conn) error {
	h := handshake{in: c.in, out: c.nc, export: s.export}
	session, err := h.run()
	if err != nil {
		if left(err) || s.isClosing() {
			return nil
		}
		return fmt.Errorf("shake hands: %w", err)
	}
	s.mu.Lock()
	if !s.closing { // else the deadline is Shutdown's
		_ = c.nc.SetDeadline(time.Time{})
	}
	s.mu.Unlock()
	err = c.transmit(session)
	if left(err) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// left says whether a client just went away. It should have said so, but its
// user may have killed it, and who only looks whether someone listens does the
// same.
func left(err error) bool {
	return errors.Is(err, errAborted) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// Shutdown stops accepting clients and requests, waits until those under way
// are answered, and closes the connections. When ctx is done first, it closes
// the connections at once and returns its error; requests may then still be
// inside the disk, whose Close waits for them. It may be called more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		if s.ln != nil {
			_ = s.ln.Close()
		}
		for c := range s.conns {
			// Whoever waits for the client's next bytes gets an error now.
			_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		}
		s.settle()
	}
	s.mu.Unlock()
	select {
	case <-s.gone:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.nc.Close()
	}
	return fmt.Errorf("wait for clients: %w", ctx.Err())
}

// settle is called with mu held.
func (s *Server) settle() {
	if s.closing && len(s.conns) == 0 {
		close(s.gone)
	}
}
