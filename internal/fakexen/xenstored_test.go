package fakexen

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func newStore(t *testing.T, m *Machine) *Xenstored {
	t.Helper()
	x, err := NewXenstored(m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// A wire is a client that knows nothing but bytes.
type wire struct {
	t    *testing.T
	conn net.Conn
	req  uint32
}

func dialWire(t *testing.T, x *Xenstored, domid uint32) *wire {
	t.Helper()
	c, err := x.ConnectAs(domid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &wire{t: t, conn: c}
}

func (w *wire) send(kind, tx uint32, payload string) {
	w.t.Helper()
	w.req++
	n := len(payload)
	h := []byte{byte(kind), 0, 0, 0, byte(w.req), byte(w.req >> 8), 0, 0,
		byte(tx), byte(tx >> 8), 0, 0, byte(n), byte(n >> 8), 0, 0}
	if _, err := w.conn.Write(append(h, payload...)); err != nil {
		w.t.Fatal(err)
	}
}

// recv returns one packet as "type/req/tx payload".
func (w *wire) recv() string {
	w.t.Helper()
	var h [16]byte
	if _, err := io.ReadFull(w.conn, h[:]); err != nil {
		w.t.Fatal(err)
	}
	p := make([]byte, int(h[12])|int(h[13])<<8)
	if _, err := io.ReadFull(w.conn, p); err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%d/%d/%d %s", h[0], int(h[4])|int(h[5])<<8, h[8], p)
}

// call sends a request and returns the reply's payload, or "!ERROR".
func (w *wire) call(kind, tx uint32, payload string) string {
	w.t.Helper()
	w.send(kind, tx, payload)
	got := w.recv()
	if p, ok := strings.CutPrefix(got, fmt.Sprintf("16/%d/%d ", w.req, tx)); ok {
		return "!" + strings.TrimSuffix(p, "\x00")
	}
	p, ok := strings.CutPrefix(got, fmt.Sprintf("%d/%d/%d ", kind, w.req, tx))
	if !ok {
		w.t.Fatalf("request %d/%d/%d answered by %q", kind, w.req, tx, got)
	}
	return p
}

func TestWireRequests(t *testing.T) {
	x := newStore(t, nil)
	x.Introduce(5)
	w := dialWire(t, x, 0)
	for _, c := range []struct {
		name     string
		kind, tx uint32
		payload  string
		want     string
	}{
		{"write makes parents", 11, 0, "/a/b/c\x00value", "OK\x00"},
		{"read has no NUL", 2, 0, "/a/b/c\x00", "value"},
		{"implicit parent is empty", 2, 0, "/a/b\x00", ""},
		{"value may hold a NUL", 11, 0, "/a/nul\x00x\x00y", "OK\x00"},
		{"and it comes back", 2, 0, "/a/nul\x00", "x\x00y"},
		{"directory", 1, 0, "/a\x00", "b\x00nul\x00"},
		{"empty directory", 1, 0, "/a/b/c\x00", ""},
		{"directory of nothing", 1, 0, "/nope\x00", "!ENOENT"},
		{"read nothing", 2, 0, "/nope\x00", "!ENOENT"},
		{"read without NUL", 2, 0, "/a", "!EINVAL"},
		{"read two arguments", 2, 0, "/a\x00/b\x00", "!EINVAL"},
		{"read empty payload", 2, 0, "", "!EINVAL"},
		{"trailing slash", 2, 0, "/a/\x00", "!EINVAL"},
		{"double slash", 2, 0, "/a//b\x00", "!EINVAL"},
		{"bad character", 2, 0, "/a/b c\x00", "!EINVAL"},
		{"relative is domain 0's", 2, 0, "name\x00", "Domain-0"},
		{"perms inherited", 3, 0, "/a/b\x00", "n0\x00"},
		{"set perms", 14, 0, "/a/b\x00n5\x00r0\x00w7\x00b8\x00", "OK\x00"},
		{"perms", 3, 0, "/a/b\x00", "n5\x00r0\x00w7\x00b8\x00"},
		{"set no perms", 14, 0, "/a/b\x00", "!EINVAL"},
		{"set bad perms", 14, 0, "/a/b\x00x5\x00", "!EINVAL"},
		{"mkdir", 12, 0, "/a/b/d\x00", "OK\x00"},
		{"inherits the new perms", 3, 0, "/a/b/d\x00", "n5\x00r0\x00w7\x00b8\x00"},
		{"mkdir of what exists", 12, 0, "/a/b/c\x00", "OK\x00"},
		{"and keeps the value", 2, 0, "/a/b/c\x00", "value"},
		{"rm", 13, 0, "/a/b\x00", "OK\x00"},
		{"is recursive", 2, 0, "/a/b/c\x00", "!ENOENT"},
		{"rm again, parent exists", 13, 0, "/a/b\x00", "OK\x00"},
		{"rm, no parent", 13, 0, "/a/b/c\x00", "!ENOENT"},
		{"rm root", 13, 0, "/\x00", "!EINVAL"},
		{"domain path", 10, 0, "7\x00", "/local/domain/7\x00"},
		{"introduced", 17, 0, "5\x00", "T\x00"},
		{"not introduced", 17, 0, "6\x00", "F\x00"},
		{"unknown transaction", 2, 99, "/a\x00", "!ENOENT"},
		{"unknown type", 99, 0, "", "!ENOSYS"},
		{"unwatch nothing", 5, 0, "/a\x00t\x00", "!ENOENT"},
		{"end without transaction", 7, 0, "T\x00", "!ENOENT"},
		{"end with neither T nor F", 7, 0, "X\x00", "!EINVAL"},
	} {
		if got := w.call(c.kind, c.tx, c.payload); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if n := x.Requests()["RM"]; n != 4 {
		t.Errorf("counted %d RM, want 4", n)
	}
}

func TestWireGolden(t *testing.T) {
	got := message{kind: 2, req: 0x01020304, tx: 7, payload: []byte("/a\x00")}.encode()
	want := []byte{2, 0, 0, 0, 4, 3, 2, 1, 7, 0, 0, 0, 3, 0, 0, 0, '/', 'a', 0}
	if !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	m, err := readMessage(bytes.NewReader(want))
	if err != nil || m.kind != 2 || m.req != 0x01020304 || m.tx != 7 || string(m.payload) != "/a\x00" {
		t.Errorf("decoded %+v, %v", m, err)
	}
	want[13] = 0x11
	if _, err := readMessage(bytes.NewReader(want)); err == nil {
		t.Error("a payload over 4096 bytes is accepted")
	}
}

func TestOversizeEndsConnection(t *testing.T) {
	w := dialWire(t, newStore(t, nil), 0)
	w.send(11, 0, "/a\x00"+strings.Repeat("x", 4096))
	var b [1]byte
	if _, err := w.conn.Read(b[:]); err == nil {
		t.Error("connection lives after an oversize request")
	}
}

func TestDirectoryPart(t *testing.T) {
	x := newStore(t, nil)
	s := x.Store(0)
	var want []string
	for i := range 600 {
		name := fmt.Sprintf("child-%04d", i)
		want = append(want, name)
		if err := s.Write("/big/"+name, ""); err != nil {
			t.Fatal(err)
		}
	}
	w := dialWire(t, x, 0)
	if got := w.call(1, 0, "/big\x00"); got != "!E2BIG" {
		t.Errorf("DIRECTORY of 6 KiB: %.20q", got)
	}
	var list, gen string
	for range 10 {
		got := w.call(22, 0, "/big\x00"+strconv.Itoa(len(list))+"\x00")
		g, part, _ := strings.Cut(got, "\x00")
		if gen != "" && g != gen {
			t.Fatalf("generation %s became %s", gen, g)
		}
		if gen = g; len(got) > 4096 {
			t.Fatalf("part of %d bytes", len(got))
		}
		list += part
		if strings.HasSuffix(list, "\x00\x00") {
			break
		}
	}
	got := strings.Split(strings.TrimSuffix(list, "\x00\x00"), "\x00")
	if !slices.Equal(got, want) {
		t.Errorf("%d children, want %d", len(got), len(want))
	}
	if err := s.Write("/big/one-more", ""); err != nil {
		t.Fatal(err)
	}
	if g, _, _ := strings.Cut(w.call(22, 0, "/big\x000\x00"), "\x00"); g == gen {
		t.Error("the generation is the same with one more child")
	}
	if got := w.call(22, 0, "/big\x0099999\x00"); strings.Count(got, "\x00") != 2 {
		t.Errorf("offset past the end: %q", got)
	}
}

func TestWireWatches(t *testing.T) {
	x := newStore(t, nil)
	s := x.Store(0)
	w := dialWire(t, x, 0)
	expect := func(what string, want ...string) {
		t.Helper()
		for _, p := range want {
			if got := w.recv(); got != p {
				t.Fatalf("%s: got %q, want %q", what, got, p)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.send(4, 0, "/a/b\x00tok\x00")
	expect("reply, then it fires once", "4/1/0 OK\x00", "15/0/0 /a/b\x00tok\x00")
	must(s.Write("/a/b", "1"))
	must(s.Write("/a/bc", "1"))
	must(s.Write("/a/b/c/d", "1"))
	expect("node and below", "15/0/0 /a/b\x00tok\x00", "15/0/0 /a/b/c/d\x00tok\x00")
	must(s.SetPerms("/a/b", "n0", "r1"))
	expect("permissions", "15/0/0 /a/b\x00tok\x00")
	must(s.Rm("/a"))
	expect("rm of the parent", "15/0/0 /a/b\x00tok\x00")
	w.send(4, 0, "/a/b\x00tok\x00")
	expect("same watch twice", "16/2/0 EEXIST\x00")
	w.send(4, 0, "/a//b\x00tok\x00")
	expect("bad path", "16/3/0 EINVAL\x00")
	w.send(4, 0, "/a\x00")
	expect("no token", "16/4/0 EINVAL\x00")
	w.send(5, 0, "/a/b\x00tok\x00")
	expect("unwatch", "5/5/0 OK\x00")
	must(s.Write("/a/b", "2"))
	w.send(4, 0, "data\x00rel\x00")
	expect("relative", "4/6/0 OK\x00", "15/0/0 data\x00rel\x00")
	must(s.Write("/local/domain/0/data/x", "2"))
	expect("relative event", "15/0/0 data/x\x00rel\x00")
	w.send(11, 0, "data\x00v")
	expect("own change: event before reply", "15/0/0 data\x00rel\x00", "11/7/0 OK\x00")
	w.send(4, 0, "@introduceDomain\x00in\x00")
	expect("special", "4/8/0 OK\x00", "15/0/0 @introduceDomain\x00in\x00")
	w.send(4, 0, "@releaseDomain\x00out\x00")
	expect("special", "4/9/0 OK\x00", "15/0/0 @releaseDomain\x00out\x00")
	x.Introduce(5)
	x.Release(5)
	expect("special", "15/0/0 @introduceDomain\x00in\x00", "15/0/0 @releaseDomain\x00out\x00")
	if x.Watches() != 3 {
		t.Errorf("%d watches, want 3", x.Watches())
	}
	x.Flood("/local/domain/0/data", 3)
	expect("flood", slices.Repeat([]string{"15/0/0 data\x00rel\x00"}, 3)...)
}

func TestFloodAndDrop(t *testing.T) {
	x := newStore(t, nil)
	w := dialWire(t, x, 0)
	w.send(4, 0, "/x\x00t\x00")
	w.recv()
	w.recv()
	done := make(chan struct{})
	const n = 100000
	go func() {
		x.Flood("/x/y", n)
		close(done)
	}()
	for range n {
		w.recv()
	}
	<-done
	x.Drop()
	if _, err := w.conn.Read(make([]byte, 1)); err == nil {
		t.Error("connection lives after Drop")
	}
	if got := dialWire(t, x, 0).call(2, 0, "name\x00"); got != "Domain-0" {
		t.Errorf("after Drop a new connection reads %q", got)
	}
}
