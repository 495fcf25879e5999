package xs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"xen-disk/xs"
)

// The numbers of public/io/xs_wire.h, written down a second time on purpose.
const (
	directory        = 1
	read             = 2
	getPerms         = 3
	watch            = 4
	unwatch          = 5
	transactionStart = 6
	transactionEnd   = 7
	getDomainPath    = 10
	write            = 11
	mkdir            = 12
	rm               = 13
	setPerms         = 14
	watchEvent       = 15
	errorReply       = 16
	isIntroduced     = 17
	directoryPart    = 22
)

// patience bounds how long a test waits for what must happen; it is not
// reached unless the test fails.
const patience = time.Minute

// peer is the other end of a connection, run by a test's script.
type peer struct {
	t    *testing.T
	conn io.ReadWriteCloser
}

type request struct {
	typ, id, tx uint32
	payload     string
}

// raw is a message with a length of the caller's choice.
func raw(typ, id, tx, length uint32, payload string) []byte {
	var b bytes.Buffer
	for _, v := range []uint32{typ, id, tx, length} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	b.WriteString(payload)
	return b.Bytes()
}

func message(typ, id, tx uint32, payload string) []byte {
	return raw(typ, id, tx, uint32(len(payload)), payload)
}

// receive reads one request; false when the client is gone.
func (p *peer) receive() (r request, ok bool) {
	var h [16]byte
	if _, err := io.ReadFull(p.conn, h[:]); err != nil {
		return request{}, false
	}
	payload := make([]byte, binary.LittleEndian.Uint32(h[12:]))
	if _, err := io.ReadFull(p.conn, payload); err != nil {
		return request{}, false
	}
	return request{
		typ:     binary.LittleEndian.Uint32(h[0:]),
		id:      binary.LittleEndian.Uint32(h[4:]),
		tx:      binary.LittleEndian.Uint32(h[8:]),
		payload: string(payload),
	}, true
}

// expect reads one request of a type and ends the script at another.
func (p *peer) expect(typ uint32) request {
	r, ok := p.receive()
	if !ok || r.typ != typ {
		p.t.Errorf("peer received %+v (%v), expected type %d", r, ok, typ)
		runtime.Goexit()
	}
	return r
}

func (p *peer) write(b []byte) {
	if _, err := p.conn.Write(b); err != nil {
		p.t.Errorf("peer: %v", err)
		runtime.Goexit()
	}
}

func (p *peer) reply(r request, payload string) { p.write(message(r.typ, r.id, r.tx, payload)) }
func (p *peer) fail(r request, errno string) {
	p.write(message(errorReply, r.id, r.tx, errno+"\x00"))
}
func (p *peer) event(path, token string) {
	p.write(message(watchEvent, 0, 0, path+"\x00"+token+"\x00"))
}

// drain reads until the client is gone, so that it never blocks.
func (p *peer) drain() {
	for {
		if _, ok := p.receive(); !ok {
			return
		}
	}
}

// dial runs script as the other end of a connection, which nobody pumps yet.
// When the script returns, the connection is closed from there.
func dial(t *testing.T, script func(p *peer)) *xs.Conn {
	t.Helper()
	checkLeaks(t)
	path := filepath.Join(tempDir(t), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		conn, err := l.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		defer conn.Close()
		script(&peer{t, conn})
	}()
	c, err := xs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		wg.Wait()
		_ = l.Close()
	})
	return c
}

// start is dial, and pumps.
func start(t *testing.T, script func(p *peer)) *xs.Conn {
	t.Helper()
	c := dial(t, script)
	c.Start()
	return c
}

// tempDir is short: the path of a unix socket has at most 107 bytes.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "xs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// checkLeaks fails the test if it ends with more descriptors or goroutines
// than it has now. Call it first, so that its check comes last.
func checkLeaks(t *testing.T) {
	t.Helper()
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		// A goroutine may be past its last use of a descriptor that another
		// is still to close.
		eventually(t, "descriptors to be closed", func() bool { return openFDs(t) <= fds })
	})
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// await receives from c.
func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v = <-c:
	case <-timer.C:
		t.Fatalf("waited %v for %s", patience, what)
	}
	return v
}

// spawn runs f and delivers its error.
func spawn(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantEqual(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("%s: got %.300q, want %.300q", what, got, want)
	}
}

func TestMain(m *testing.M) {
	// Go opens and starts its poller once and keeps it: no leak of ours.
	if l, err := net.Listen("unix", ""); err == nil {
		_ = l.Close()
	}
	_, _ = os.ReadDir("/proc/self/fd")
	os.Exit(m.Run())
}
