package xs_test

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/xs"
)

// token takes the token out of a WATCH or UNWATCH.
func (r request) token() string {
	parts := strings.Split(r.payload, "\x00")
	if len(parts) != 3 {
		return "malformed"
	}
	return parts[1]
}

// collect is a watch's function that never blocks.
func collect() (f func(string), events chan string) {
	events = make(chan string, 100)
	return func(path string) { events <- path }, events
}

func TestWatchEventsOutsideOfItsLife(t *testing.T) {
	c := start(t, func(p *peer) {
		w := p.expect(watch)
		p.event("/a", w.token()) // ahead of the reply, as the device does
		p.reply(w, "OK\x00")
		p.event("/a/b", w.token())
		u := p.expect(unwatch)
		wantEqual(t, "token of unwatch", u.payload, w.payload)
		p.event("/a/late", w.token())
		p.reply(u, "OK\x00")
		p.event("/a/later", w.token())
		p.reply(p.expect(read), "fence")
		p.drain()
	})
	f, events := collect()
	w := must[*xs.Watch](t)(c.Watch("/a", f))
	wantEqual(t, "first event", await(t, "event", events), "/a")
	wantEqual(t, "second event", await(t, "event", events), "/a/b")
	wantEqual(t, "path", w.Path(), "/a")
	check(t, w.Close())
	check(t, w.Close())
	must[string](t)(c.Read("/fence"))
	if len(events) != 0 {
		t.Errorf("%d events after Close, first %q", len(events), <-events)
	}
}

func TestWatchTokensAreUnique(t *testing.T) {
	c := start(t, func(p *peer) {
		seen := map[string]bool{}
		for range 3 {
			w := p.expect(watch)
			if seen[w.token()] {
				t.Errorf("token %q again", w.token())
			}
			seen[w.token()] = true
			p.reply(w, "OK\x00")
			p.event("/a", w.token())
		}
		p.drain()
	})
	for range 3 {
		f, events := collect()
		must[*xs.Watch](t)(c.Watch("/a", f))
		await(t, "event", events)
	}
}

func TestWatchRefused(t *testing.T) {
	c := start(t, func(p *peer) {
		w := p.expect(watch)
		p.fail(w, "E2BIG")
		r := p.expect(read)
		p.event("/a", w.token())
		p.reply(r, "fence")
		w = p.expect(watch)
		p.reply(w, "OK\x00")
		p.fail(p.expect(unwatch), "ENOENT")
		p.drain()
	})
	_, err := c.Watch("/a", func(string) { t.Error("event of a watch that was refused") })
	wantError(t, "watch", err, unix.E2BIG)
	must[string](t)(c.Read("/fence"))
	w := must[*xs.Watch](t)(c.Watch("/a", func(string) {}))
	wantError(t, "unwatch", w.Close(), unix.ENOENT)
	wantError(t, "unwatch again", w.Close(), unix.ENOENT)
}

func TestWatchEndsWithItsConnection(t *testing.T) {
	stop := make(chan struct{})
	c := start(t, func(p *peer) {
		p.reply(p.expect(watch), "OK\x00")
		<-stop
	})
	w := must[*xs.Watch](t)(c.Watch("/a", func(string) {}))
	close(stop)
	await(t, "loss", c.Done())
	check(t, w.Close())
}

func TestCloseFromAWatch(t *testing.T) {
	c := start(t, func(p *peer) {
		w := p.expect(watch)
		p.write(append(message(watchEvent, 0, 0, "/a\x00"+w.token()+"\x00"),
			message(watchEvent, 0, 0, "/a\x00"+w.token()+"\x00")...))
		p.drain()
	})
	var calls atomic.Int32
	_, err := c.Watch("/a", func(string) {
		calls.Add(1)
		_ = c.Close()
	})
	wantError(t, "watch", err, xs.ErrClosed)
	if n := calls.Load(); n != 1 {
		t.Errorf("%d events, want none after Close", n)
	}
}

// flood answers a WATCH and then sends n events in large writes, then a last
// one with another path.
func flood(p *peer, n int) {
	w := p.expect(watch)
	p.reply(w, "OK\x00")
	event := message(watchEvent, 0, 0, "/local/domain/7/data\x00"+w.token()+"\x00")
	const batch = 1000
	many := make([]byte, 0, batch*len(event))
	for range batch {
		many = append(many, event...)
	}
	for ; n > 0; n -= batch {
		p.write(many[:min(n, batch)*len(event)])
	}
	p.event("/last", w.token())
	p.drain()
}

func TestMillionEventsTakeNoMemory(t *testing.T) {
	const events = 1_000_000
	c := start(t, func(p *peer) { flood(p, events) })
	last := make(chan int, 1)
	n := 0
	before := heap()
	must[*xs.Watch](t)(c.Watch("/", func(path string) {
		if path == "/last" {
			last <- n
		}
		n++
	}))
	if got := await(t, "last event", last); got != events {
		t.Errorf("%d events, want %d", got, events)
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("heap grew from %d to %d bytes", before, after)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestPumpReturnsDuringAFlood(t *testing.T) {
	c := dial(t, func(p *peer) { flood(p, 100_000) })
	eventSize := len(message(watchEvent, 0, 0, "/local/domain/7/data\x001\x00"))
	turn, total := 0, 0
	done := false
	fd := c.FD()
	watching := spawn(func() error {
		_, err := c.Watch("/", func(path string) {
			turn++
			done = path == "/last"
		})
		return err
	})
	for !done {
		turn = 0
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		check(t, c.Pump())
		if turn > xs.PumpBytesMax/eventSize+1 {
			t.Fatalf("one Pump delivered %d events", turn)
		}
		total += turn
	}
	check(t, await(t, "watch", watching))
	wantEqual(t, "events", total, 100_001)
}
