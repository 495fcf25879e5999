package nbd

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProtocolIsBroken: what a client must not send ends its connection, is
// reported, and harms no other.
func TestProtocolIsBroken(t *testing.T) {
	for _, c := range []struct {
		name, input, report string
	}{
		{"no magic number", strings.Repeat("\x00", 28), "magic number"},
		{"an option in transmission", string(optionBytes(2, make([]byte, 28))), "magic number"},
		{"a simple reply", "\x67\x44\x66\x98" + strings.Repeat("\x00", 24), "magic number"},
		{"a write that is too long", string(req{kind: 1, length: 32<<20 + 512}.bytes()), "a write of 33554944 bytes"},
		{"a write of 4 GiB", string(req{kind: 1, length: 1<<32 - 1}.bytes()), "a write of 4294967295 bytes"},
		{"half a request", string(req{kind: 0, length: 512}.bytes()[:27]), ""},
		{"half the data", string(req{kind: 1, length: 512, data: make([]byte, 511)}.bytes()), ""},
		{"half the data of a refused write", string(req{kind: 1, off: 1 << 40, length: 512, data: make([]byte, 511)}.bytes()), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newFull(1 << 20)
			s := serve(t, d)
			evil, good := connect(t, s, false), connect(t, s, true)
			evil.send([]byte(c.input))
			must(t, evil.nc.(*net.UnixConn).CloseWrite())
			evil.gone()
			eventually(t, "the client to be gone", func() bool { return s.clients() == 1 })
			err := s.reported()
			if c.report == "" && err != nil || c.report != "" && (err == nil || !strings.Contains(err.Error(), c.report)) {
				t.Errorf("reported %v, want %q", err, c.report)
			}
			if got := d.seen(); len(got) != 0 {
				t.Errorf("the disk was asked %v", got)
			}
			good.want(0, req{kind: 0, length: 512})
		})
	}
}

// TestRefusedWritesAreSkipped: their data are not taken for requests.
func TestRefusedWritesAreSkipped(t *testing.T) {
	both(t, func(t *testing.T, structured bool) {
		d := newFull(1 << 20)
		c := connect(t, serve(t, d), structured)
		trap := bytes.Repeat(req{kind: 6, length: 1 << 20}.bytes(), 32<<20/requestBytes+1)
		for _, r := range []struct {
			fail, length uint32
			off          uint64
		}{{28, 512, 1 << 20}, {28, 32 << 20, 0}, {28, 512, 1<<64 - 512}, {22, 513, 0}, {22, 0, 0}, {22, 512, 1}} {
			c.want(r.fail, req{kind: 1, off: r.off, length: r.length, data: trap[:r.length]})
		}
		if got := d.seen(); len(got) != 0 {
			t.Errorf("the disk was asked %v", got)
		}
		c.want(0, req{kind: 3})
	})
}

// TestTooManyClients: one more than may be is turned away, until one leaves.
func TestTooManyClients(t *testing.T) {
	s := serve(t, newPlain(4096))
	clients := make([]*client, maxConns)
	for i := range clients {
		clients[i] = connect(t, s, i%2 == 0)
	}
	nc, err := net.Dial("unix", s.path)
	must(t, err)
	defer nc.Close()
	if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the server said something: %d, %v", n, err)
	}
	must(t, clients[3].nc.Close())
	eventually(t, "a client to leave", func() bool { return s.clients() == maxConns-1 })
	connect(t, s, true).want(0, req{kind: 0, length: 512})
	if err := s.reported(); err == nil || !strings.Contains(err.Error(), "there are 16 already") {
		t.Errorf("reported %v", err)
	}
}

// TestManyOptions: a client may haggle for as long as it has time, with no
// more memory for many options than for one.
func TestManyOptions(t *testing.T) {
	c := dial(t, serve(t, newFull(1<<20)))
	c.send([]byte{0, 0, 0, 3})
	for i := range uint32(1000) {
		c.option(1000+i, make([]byte, 1000))
		c.wantOption(1000+i, unsup)
	}
	c.option(2, nil)
	c.wantOption(2, 1)
	c.gone()
}

// TestSameCookies: they are the client's, and may say nothing.
func TestSameCookies(t *testing.T) {
	c := connect(t, serve(t, newFull(1<<20)), false)
	q := req{kind: 0, cookie: 5, length: 512}
	c.send(bytes.Repeat(q.bytes(), 500))
	for range 500 {
		c.reply(map[uint64]req{5: q})
	}
}

// TestNoDescriptors: a process that has none for another client serves those
// that it has, and goes on when there are some.
func TestNoDescriptors(t *testing.T) {
	for _, lack := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		inner, err := Listen(t.TempDir() + "/socket")
		must(t, err)
		ln := &poor{Listener: inner, err: lack}
		var reports atomic.Int32
		s := New(newPlain(4096), Options{Report: func(error) { reports.Add(1) }})
		if err := s.Serve(ln); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%v: Serve ended with %v", lack, err)
		}
		if ln.calls != 2 || reports.Load() != 1 {
			t.Errorf("%v: accepted %d times, reported %d times", lack, ln.calls, reports.Load())
		}
	}
}

// poor is a listener that lacks something the first time, and then is broken.
type poor struct {
	net.Listener
	err   error
	calls int
}

func (p *poor) Accept() (net.Conn, error) {
	p.calls++
	if p.calls == 1 {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: p.err}
	}
	return nil, unix.EINVAL
}
