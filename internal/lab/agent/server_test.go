package main

import (
	"os"
	"path/filepath"
	"testing"

	"xen-disk/internal/lab/wire"
)

// connect serves on a pair of pipes; the server ends with the test.
func connect(t *testing.T) *wire.Conn {
	t.Helper()
	fromHost, toAgent := pipe(t)
	fromAgent, toHost := pipe(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		newServer(fromHost, toHost).serve()
	}()
	t.Cleanup(func() {
		toAgent.Close()
		<-ended
	})
	c := wire.NewConn(fromAgent, toAgent)
	if m, err := c.Receive(); m.Ev != wire.EvHello || err != nil {
		t.Fatalf("got %+v, %v, want hello", m, err)
	}
	return c
}

// pipe makes a pipe with the kernel's buffer: an io.Pipe would block both
// ends on each other, since these tests read only behind their requests.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// gather reads events until one of the last kind, and joins the data.
func gather(t *testing.T, c *wire.Conn) (out, errs string, last wire.Message) {
	t.Helper()
	for {
		m, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case m.Ev == wire.EvOut && m.FD == 1:
			out += string(m.Data)
		case m.Ev == wire.EvOut:
			errs += string(m.Data)
		case m.Ev != wire.EvStarted:
			return out, errs, m
		}
	}
}

func TestProcess(t *testing.T) {
	c := connect(t)
	cases := []struct {
		name      string
		script    string
		input     string
		out, errs string
		code      int
	}{
		{"both outputs", "echo a; echo b >&2; exit 5", "", "a\n", "b\n", 5},
		{"input", "cat", "some input", "some input", "", 0},
		{"killed by a signal", "kill -9 $$", "", "", "", 137},
		{"a child keeps the output open", "sleep 1000 & echo gone; kill $!", "", "gone\n", "", 0},
		{"all output arrives", "head -c 300000 /dev/zero | tr '\\0' x | wc -c", "", "300000\n", "", 0},
	}
	for i, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			id := uint64(i + 1)
			c.Send(wire.Message{ID: id, Op: wire.OpStart, Argv: []string{"sh", "-c", tc.script}})
			c.Send(wire.Message{ID: id, Op: wire.OpInput, Data: []byte(tc.input)})
			c.Send(wire.Message{ID: id, Op: wire.OpEOF})
			out, errs, m := gather(t, c)
			if out != tc.out || errs != tc.errs || m.Ev != wire.EvExit || m.Code != tc.code {
				t.Errorf("got %q, %q, %+v", out, errs, m)
			}
		})
	}
}

func TestSignal(t *testing.T) {
	c := connect(t)
	c.Send(wire.Message{ID: 1, Op: wire.OpStart, Argv: []string{"sleep", "1000"}})
	c.Send(wire.Message{ID: 1, Op: wire.OpSignal, Signal: 15})
	if _, _, m := gather(t, c); m.Ev != wire.EvExit || m.Code != 128+15 {
		t.Errorf("got %+v", m)
	}
}

func TestFiles(t *testing.T) {
	c := connect(t)
	path := filepath.Join(t.TempDir(), "deep", "file")
	c.Send(wire.Message{ID: 1, Op: wire.OpPut, Path: path, Mode: 0o600, Data: []byte("one ")})
	gather(t, c)
	c.Send(wire.Message{ID: 2, Op: wire.OpPut, Path: path, Append: true, Data: []byte("two")})
	gather(t, c)
	c.Send(wire.Message{ID: 3, Op: wire.OpGet, Path: path})
	if out, _, m := gather(t, c); out != "one two" || m.Ev != wire.EvDone {
		t.Errorf("got %q, %+v", out, m)
	}
	c.Send(wire.Message{ID: 4, Op: wire.OpGet, Path: path + ".none"})
	if _, _, m := gather(t, c); m.Ev != wire.EvError {
		t.Errorf("got %+v", m)
	}
	c.Send(wire.Message{ID: 5, Op: "dance"})
	if _, _, m := gather(t, c); m.Ev != wire.EvError {
		t.Errorf("got %+v", m)
	}
}
