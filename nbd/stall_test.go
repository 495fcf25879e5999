package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate makes a fake disk's calls at an offset wait until it opens.
type gate struct {
	entered chan struct{} // receives one for each that waits
	open    chan struct{}
	once    sync.Once
}

func newGate() *gate {
	return &gate{entered: make(chan struct{}, queueDepth), open: make(chan struct{})}
}

func (g *gate) wait() {
	g.entered <- struct{}{}
	<-g.open
}

func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

// gated is a disk whose calls that slow says wait at a gate.
func gated(t *testing.T, slow func(call) bool) (*full, *gate) {
	d, g := newFull(1<<20), newGate()
	d.hook = func(c call) error {
		if slow(c) {
			g.wait()
		}
		return nil
	}
	t.Cleanup(g.release)
	return d, g
}

// TestSlowRequestDelaysNoOther: requests of every kind that never end, sent
// together with others and before them, as many as leave one worker.
func TestSlowRequestDelaysNoOther(t *testing.T) {
	slow := map[string]req{
		"read": {kind: 0, off: 512, length: 512}, "large read": {kind: 0, off: 512, length: 512 << 10},
		"write": {kind: 1, off: 512, length: 512, data: make([]byte, 512)}, "flush": {kind: 3},
		"trim": {kind: 4, off: 512, length: 512}, "zeroes": {kind: 6, off: 512, length: 512},
	}
	for name, hung := range slow {
		t.Run(name, func(t *testing.T) {
			d, g := gated(t, func(c call) bool { return c.off == 512 || c.what == "flush" })
			s := serve(t, d)
			t.Cleanup(g.release) // before the server shuts down
			c := connect(t, s, true)
			reqs := map[uint64]req{}
			var all []byte
			for i := range uint64(100) { // quick, hung, quick, ...
				q := req{kind: 0, cookie: i, off: i * 4096, length: 4096}
				if i%2 == 1 && i/2 < workers-1 {
					q = hung
					q.cookie = i
				}
				reqs[i] = q
				all = append(all, q.bytes()...)
			}
			c.send(all)
			for range 100 - (workers - 1) {
				if r := c.reply(reqs); reqs[r.cookie].kind != 0 || reqs[r.cookie].off == 512 {
					t.Fatalf("an answer to what hangs: %+v", r)
				}
			}
			for range workers - 1 {
				<-g.entered
			}
			c.want(0, req{kind: 0, length: 512}) // and one that comes later
			g.release()
			for range workers - 1 {
				c.reply(reqs)
			}
		})
	}
}

// TestHungRequestKeepsNoReplyBack: what was finished in the same batch before
// it is sent, and others are received.
func TestHungRequestKeepsNoReplyBack(t *testing.T) {
	d, g := gated(t, func(c call) bool { return c.off == 512 })
	s := serve(t, d)
	t.Cleanup(g.release)
	c := connect(t, s, false)
	reqs := map[uint64]req{
		1: {kind: 0, cookie: 1, length: 512}, 2: {kind: 0, cookie: 2, off: 512, length: 512},
		3: {kind: 0, cookie: 3, length: 512},
	}
	c.send(reqs[1].bytes(), reqs[2].bytes())
	if r := c.reply(reqs); r.cookie != 1 {
		t.Errorf("reply to %d", r.cookie)
	}
	c.send(reqs[3].bytes())
	if r := c.reply(reqs); r.cookie != 3 {
		t.Errorf("reply to %d", r.cookie)
	}
	g.release()
	c.reply(reqs)
}

// TestClientThatDoesNotRead holds what a connection may hold, and no other
// client waits for it.
func TestClientThatDoesNotRead(t *testing.T) {
	d := newFull(8 << 20)
	s := serve(t, d)
	deaf, c := connect(t, s, false), connect(t, s, true)
	must(t, deaf.nc.SetWriteDeadline(time.Now().Add(patience)))
	sent := make(chan struct{})
	go func() { // until the connection is closed
		defer close(sent)
		all := bytes.Repeat(req{kind: 0, length: 8 << 20}.bytes(), 1<<16)
		_, _ = deaf.nc.Write(all)
	}()
	eventually(t, "the bound to be reached", func() bool { return heldBytes(s) > maxHeldBytes-8<<20 })
	c.want(0, req{kind: 1, length: 512, data: make([]byte, 512)})
	if n := heldBytes(s); n > maxHeldBytes {
		t.Errorf("%d bytes are held, want at most %d", n, maxHeldBytes)
	}
	must(t, deaf.nc.Close())
	<-sent
	eventually(t, "the client to be gone", func() bool { return s.clients() == 1 })
	if err := s.reported(); err != nil {
		t.Error(err)
	}
}

// heldBytes is the most that a client makes the server hold.
func heldBytes(s *served) (most int) {
	s.Server.mu.Lock()
	defer s.Server.mu.Unlock()
	for c := range s.conns {
		c.mu.Lock()
		most = max(most, c.held)
		c.mu.Unlock()
	}
	return most
}

// TestClientThatSendsFirst: more requests than may be under way, and no reply
// is read before all are sent.
func TestClientThatSendsFirst(t *testing.T) {
	both(t, func(t *testing.T, structured bool) {
		c := connect(t, serve(t, newFull(1<<20)), structured)
		const n = 3 * queueDepth
		reqs := map[uint64]req{}
		for i := range uint64(n) {
			q := req{kind: 1, cookie: i, off: i % 256 * 4096, length: 4096, data: make([]byte, 4096)}
			reqs[i] = q
			c.send(q.bytes())
		}
		for range n {
			r := c.reply(reqs)
			delete(reqs, r.cookie)
		}
	})
}

// TestShutdownWaits for what is inside the disk, and answers it.
func TestShutdownWaits(t *testing.T) {
	d, g := gated(t, func(c call) bool { return c.what == "write" })
	s := serve(t, d)
	t.Cleanup(g.release)
	c, idle, young := connect(t, s, false), connect(t, s, true), dial(t, s)
	q := req{kind: 1, cookie: 7, length: 512, data: bytes.Repeat([]byte{9}, 512)}
	c.send(q.bytes())
	<-g.entered
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(context.Background()) }() // until released
	idle.gone()
	young.gone()
	if _, err := net.Dial("unix", s.path); err == nil {
		t.Error("the server still listens")
	}
	select {
	case err := <-ended:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	g.release()
	if r := c.reply(map[uint64]req{7: q}); r.fail != 0 || d.contents()[0] != 9 {
		t.Errorf("error %d, disk %d", r.fail, d.contents()[0])
	}
	c.gone()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := s.reported(); err != nil {
		t.Error(err)
	}
}

// TestShutdownGivesUp on a disk that hangs when the context is done.
func TestShutdownGivesUp(t *testing.T) {
	d, g := gated(t, func(c call) bool { return true })
	s := serve(t, d)
	t.Cleanup(g.release)
	c := connect(t, s, false)
	c.send(req{kind: 0, length: 512}.bytes())
	<-g.entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	c.gone()
}

// TestShutdownBeforeServe: nothing is served afterwards.
func TestShutdownBeforeServe(t *testing.T) {
	checkLeaks(t)
	s := New(newPlain(512), Options{})
	must(t, s.Shutdown(context.Background()))
	ln, err := Listen(t.TempDir() + "/socket")
	must(t, err)
	if err := s.Serve(ln); err != nil {
		t.Error(err)
	}
	must(t, s.Shutdown(context.Background()))
}

// TestServeFails when the listener does, not for want of a descriptor.
func TestServeFails(t *testing.T) {
	ln, err := Listen(t.TempDir() + "/socket")
	must(t, err)
	must(t, ln.Close())
	s := New(newPlain(512), Options{})
	if err := s.Serve(ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestHandshakeTime: who says nothing is thrown out, and who has shaken hands
// may be silent.
func TestHandshakeTime(t *testing.T) {
	s := serve(t, newPlain(4096))
	quiet := connect(t, s, false)
	s.Server.mu.Lock()
	s.time = 50 * time.Millisecond
	s.Server.mu.Unlock()
	nc, err := net.Dial("unix", s.path)
	must(t, err)
	defer nc.Close()
	if _, err := io.Copy(io.Discard, nc); err != nil {
		t.Error(err)
	}
	eventually(t, "a report", func() bool { return s.reported() != nil })
	if err := s.reported(); !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "shake hands") {
		t.Errorf("reported %v", err)
	}
	quiet.want(0, req{kind: 0, length: 512})
}
