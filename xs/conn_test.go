package xs_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/xs"
)

func TestRepliesInAnyOrderAndInPieces(t *testing.T) {
	const n = 12
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := start(t, func(p *peer) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var all []byte
		requests := make([]request, n)
		for i := range requests {
			requests[i] = p.expect(read)
		}
		rng.Shuffle(n, func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
		for _, r := range requests {
			all = append(all, message(watchEvent, 0, 0, "/nobody\x00watches\x00")...)
			all = append(all, message(r.typ, r.id, r.tx, "value of "+r.payload)...)
		}
		for len(all) > 0 {
			k := 1 + rng.IntN(min(40, len(all)))
			p.write(all[:k])
			all = all[k:]
		}
		p.drain()
	})
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			path := fmt.Sprintf("/node/%d", i)
			got, err := c.Read(path)
			if err != nil || got != "value of "+path+"\x00" {
				t.Errorf("%s: got %q, %v", path, got, err)
			}
		}()
	}
	wg.Wait()
}

func TestManyGoroutines(t *testing.T) {
	c := start(t, func(p *peer) {
		for {
			r, ok := p.receive()
			if !ok {
				return
			}
			p.reply(r, r.payload)
		}
	})
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range 50 {
				path := fmt.Sprintf("/node/%d/%d", i, j)
				if got, err := c.Read(path); err != nil || got != path+"\x00" {
					t.Errorf("%s: got %q, %v", path, got, err)
				}
			}
		}()
	}
	wg.Wait()
}

func TestConnectionEndsAt(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(r request) []byte // to a READ; then the peer keeps the connection open
		want   string
	}{
		{"payload longer than any", func(r request) []byte { return raw(read, r.id, 0, 4097, "") },
			"payload of 4097 bytes"},
		{"payload of 4 GiB", func(r request) []byte { return raw(read, r.id, 0, 0xffffffff, "") },
			"payload of 4294967295 bytes"},
		{"type that is none", func(r request) []byte { return raw(77, r.id, 0, 0, "") },
			"unknown type 77"},
		{"reply to nobody", func(r request) []byte { return raw(read, r.id+1, 0, 0, "") },
			"which nobody made"},
		{"reply to request 0", func(request) []byte { return raw(watch, 0, 0, 3, "OK\x00") },
			"which nobody made"},
		{"reply of another type", func(r request) []byte { return raw(mkdir, r.id, 0, 0, "") },
			"of type 2"},
		{"event without a token", func(request) []byte { return raw(watchEvent, 0, 0, 3, "/a\x00") },
			"without path and token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, func(p *peer) {
				p.write(tc.answer(p.expect(read)))
				p.drain()
			})
			_, err := c.Read("/a")
			wantError(t, "read", err, xs.ErrLost)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v does not say %q", err, tc.want)
			}
			await(t, "Done", c.Done())
			wantError(t, "Err", c.Err(), xs.ErrLost)
		})
	}
}

func TestConnectionLostInTheMiddleOfAReply(t *testing.T) {
	for _, n := range []int{0, 1, 16, 18} {
		t.Run(fmt.Sprintf("after %d bytes", n), func(t *testing.T) {
			c := start(t, func(p *peer) {
				r := p.expect(read)
				p.expect(mkdir)
				p.write(message(read, r.id, 0, "value")[:n])
			})
			readErr := spawn(func() error { _, err := c.Read("/a"); return err })
			// The peer expects READ first; its order is decided here.
			eventually(t, "the request to be under way", func() bool { return c.Calls() == 1 })
			mkdirErr := spawn(func() error { return c.Mkdir("/b") })
			wantError(t, "read", await(t, "read", readErr), xs.ErrLost)
			wantError(t, "mkdir", await(t, "mkdir", mkdirErr), xs.ErrLost)
			await(t, "Done", c.Done())
			wantError(t, "Err", c.Err(), io.EOF)
			wantError(t, "later request", c.Mkdir("/c"), xs.ErrLost)
			_, err := c.Watch("/a", func(string) {})
			wantError(t, "later watch", err, xs.ErrLost)
			wantError(t, "later transaction", c.Transaction(func(*xs.Tx) error { return nil }), xs.ErrLost)
			wantError(t, "Pump", c.Pump(), xs.ErrLost)
			check(t, c.Close())
			wantError(t, "Err after Close", c.Err(), xs.ErrLost)
		})
	}
}

func TestCloseEndsEveryWaiter(t *testing.T) {
	asked := make(chan struct{})
	c := start(t, func(p *peer) {
		p.expect(read)
		close(asked)
		p.drain()
	})
	waiter := spawn(func() error { _, err := c.Read("/a"); return err })
	await(t, "request", asked)
	for range 3 {
		check(t, c.Close())
	}
	err := await(t, "read", waiter)
	wantError(t, "read", err, xs.ErrClosed)
	wantError(t, "read", err, fs.ErrClosed)
	wantError(t, "Err", c.Err(), xs.ErrClosed)
	wantError(t, "Pump", c.Pump(), xs.ErrClosed)
	wantError(t, "later request", c.Mkdir("/a"), xs.ErrClosed)
	c.Start() // does nothing
}

// fill makes requests until the socket takes no more, and returns their
// errors to come.
func fill(t *testing.T, c *xs.Conn) (errs []<-chan error) {
	t.Helper()
	check(t, unix.SetsockoptInt(c.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, 1))
	value := strings.Repeat("v", 4000)
	for range 16 {
		errs = append(errs, spawn(func() error { return c.Write("/a", value) }))
	}
	eventually(t, "the socket to be full", func() bool {
		fds := []unix.PollFd{{Fd: int32(c.FD()), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, 0)
		return n == 0 && err == nil
	})
	return errs
}

func TestSlowPeer(t *testing.T) {
	full := make(chan struct{})
	c := start(t, func(p *peer) {
		<-full
		for range 16 {
			r := p.expect(write)
			if len(r.payload) != 4003 {
				t.Errorf("got a payload of %d bytes", len(r.payload))
			}
			p.reply(r, "OK\x00")
		}
		p.drain()
	})
	errs := fill(t, c)
	close(full)
	for _, err := range errs {
		check(t, await(t, "write", err))
	}
}

func TestCloseEndsWhoWaitsToWrite(t *testing.T) {
	closed := make(chan struct{})
	c := start(t, func(*peer) { <-closed })
	errs := fill(t, c)
	check(t, c.Close())
	close(closed)
	for _, err := range errs {
		wantError(t, "write", await(t, "write", err), xs.ErrClosed)
	}
}

func TestPeerGoneWhileWriting(t *testing.T) {
	full := make(chan struct{})
	c := start(t, func(*peer) { <-full })
	errs := fill(t, c)
	close(full)
	for _, err := range errs {
		wantError(t, "write", await(t, "write", err), xs.ErrLost)
	}
}

func TestNobodyPumps(t *testing.T) {
	c := dial(t, func(p *peer) { p.drain() })
	wantError(t, "read", c.Mkdir("/a"), unix.EDEADLK)
}

func TestPumpByALoop(t *testing.T) {
	c := dial(t, func(p *peer) {
		p.reply(p.expect(read), "value")
		p.drain()
	})
	fd := c.FD()
	got := make(chan string, 1)
	failed := spawn(func() error {
		v, err := c.Read("/a")
		got <- v
		return err
	})
	for len(failed) == 0 {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 10); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		check(t, c.Pump())
	}
	check(t, <-failed)
	wantEqual(t, "value", <-got, "value")
}

func TestNotSent(t *testing.T) {
	c := start(t, func(p *peer) {
		if r, ok := p.receive(); ok {
			t.Errorf("peer received %+v", r)
		}
	})
	_, readErr := c.Read("/a/")
	_, dirErr := c.Directory("")
	_, permsErr := c.GetPerms("/a b")
	_, watchErr := c.Watch("/a//b", func(string) {})
	_, nilErr := c.Watch("/a", nil)
	for what, err := range map[string]error{
		"read": readErr, "directory": dirErr, "get-perms": permsErr, "watch": watchErr,
		"watch without function": nilErr,
		"write":                  c.Write("/a\x00b", "v"),
		"mkdir":                  c.Mkdir("@releaseDomain"),
		"rm":                     c.Rm("/" + strings.Repeat("a", 3072)),
		"set-perms":              c.SetPerms("/a."),
		"set-perms of nobody":    c.SetPerms("/a"),
		"set-perms unknown":      c.SetPerms("/a", xs.Perm{Access: 9}),
	} {
		wantError(t, what, err, unix.EINVAL)
		var e *xs.Error
		if !errors.As(err, &e) || e.Op == "" {
			t.Errorf("%s: %v is no *Error", what, err)
		}
	}
	wantError(t, "too long a value", c.Write("/a", strings.Repeat("v", 4096-2)), unix.E2BIG)
}

func TestErrorText(t *testing.T) {
	c := start(t, func(p *peer) {
		p.fail(p.expect(read), "ENOENT")
		p.fail(p.expect(read), "EWEIRD")
		p.fail(p.expect(getDomainPath), "EINVAL")
		p.drain()
	})
	_, err := c.Read("/a")
	wantError(t, "read", err, fs.ErrNotExist)
	wantEqual(t, "text", err.Error(), "read /a in xenstore: no such file or directory")
	_, err = c.Read("/a")
	wantError(t, "read", err, unix.EIO)
	wantEqual(t, "text", err.Error(),
		`read /a in xenstore: xenstored answered "EWEIRD": input/output error`)
	_, err = c.GetDomainPath(1)
	wantEqual(t, "text", err.Error(), "get-domain-path in xenstore: invalid argument")
}

func TestDialFailures(t *testing.T) {
	dir := tempDir(t)
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	check(t, err)
	l.SetUnlinkOnClose(false)
	check(t, l.Close())
	regular := filepath.Join(dir, "regular")
	check(t, os.WriteFile(regular, nil, 0o600))
	for _, tc := range []struct {
		name, path string
		want       error
	}{
		{"missing", filepath.Join(dir, "missing"), fs.ErrNotExist},
		{"stale socket", stale, unix.ECONNREFUSED},
		{"regular file", regular, unix.ENOTSOCK},
		{"directory", dir, unix.ENOTSOCK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkLeaks(t)
			t.Setenv("XENSTORED_PATH", tc.path)
			c, err := xs.Dial()
			wantError(t, "Dial", err, tc.want)
			if c != nil || err == nil || !strings.Contains(err.Error(), tc.path) {
				t.Errorf("got %v, error %v", c, err)
			}
		})
	}
}

func TestDialRundir(t *testing.T) {
	c := dial(t, func(p *peer) { p.drain() })
	_ = c.Close()
	dir := tempDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	check(t, err)
	defer l.Close()
	t.Setenv("XENSTORED_PATH", "")
	t.Setenv("XENSTORED_RUNDIR", dir)
	c, err = xs.Dial()
	check(t, err)
	defer c.Close()
	wantEqual(t, "path", c.Path(), filepath.Join(dir, "socket"))
}
