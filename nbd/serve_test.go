package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
)

func fill(r *rand.Rand, b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.NativeEndian.PutUint64(b, r.Uint64())
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// both runs a test with simple and with structured replies.
func both(t *testing.T, f func(t *testing.T, structured bool)) {
	t.Run("simple", func(t *testing.T) { f(t, false) })
	t.Run("structured", func(t *testing.T) { f(t, true) })
}

func TestReadAndWrite(t *testing.T) {
	both(t, func(t *testing.T, structured bool) {
		r, d := random(t), newFull(4<<20)
		fill(r, d.mem)
		before := bytes.Clone(d.mem)
		c := connect(t, serve(t, d), structured)
		if c.size != 4<<20 {
			t.Errorf("size %d", c.size)
		}
		for _, n := range []uint32{512, 4096, readBytes, readBytes + 512, 1 << 20, 4 << 20} {
			if got := c.do(req{kind: 0, length: n}); got.fail != 0 || !bytes.Equal(got.data, before[:n]) {
				t.Errorf("read of %d bytes: error %d, or other data", n, got.fail)
			}
		}
		for _, n := range []uint32{512, 4096, readBytes, readBytes + 512, 1 << 20, 2 << 20} {
			data := make([]byte, n)
			fill(r, data)
			c.want(0, req{kind: 1, off: 512, length: n, data: data})
			copy(before[512:], data)
		}
		c.want(0, req{kind: 6, off: 1024, length: 1 << 20})
		clear(before[1024 : 1024+1<<20])
		if !bytes.Equal(d.contents(), before) {
			t.Error("the disk holds something else")
		}
	})
}

// TestCallsOfRequests: what each request asks of the disk, FUA after it.
func TestCallsOfRequests(t *testing.T) {
	data := make([]byte, 512)
	for _, c := range []struct {
		name string
		req  req
		want []call
	}{
		{"read", req{kind: 0, length: 512}, []call{{"read", 0, 512}}},
		{"read with FUA", req{kind: 0, flags: 1, length: 512}, []call{{"read", 0, 512}}},
		{"write", req{kind: 1, length: 512, data: data}, []call{{"write", 0, 512}}},
		{"write with FUA", req{kind: 1, flags: 1, length: 512, data: data}, []call{{"write", 0, 512}, {"flush", 0, 0}}},
		{"flush", req{kind: 3}, []call{{"flush", 0, 0}}},
		{"trim", req{kind: 4, off: 512, length: 1024}, []call{{"discard", 512, 1024}}},
		{"trim with FUA", req{kind: 4, flags: 1, length: 512}, []call{{"discard", 0, 512}, {"flush", 0, 0}}},
		{"write zeroes", req{kind: 6, length: 512}, []call{{"free zeroes", 0, 512}}},
		{"write zeroes with FUA, no hole", req{kind: 6, flags: 3, length: 512}, []call{{"keep zeroes", 0, 512}, {"flush", 0, 0}}},
		{"what is not to be done", req{kind: 0, off: 1 << 40, length: 512}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newFull(1 << 20)
			k := connect(t, serve(t, d), true)
			k.do(c.req)
			if got := d.seen(); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// TestErrorsOfTheDisk reach the client as the protocol's, and are reported;
// they end nothing.
func TestErrorsOfTheDisk(t *testing.T) {
	both(t, func(t *testing.T, structured bool) {
		for _, c := range []struct {
			err  error
			want uint32
		}{{unix.EIO, 5}, {unix.ENOSPC, 28}, {disk.ErrFault, 5}} {
			d := newFull(1 << 20)
			d.hook = func(call) error { return c.err }
			s := serve(t, d)
			k := connect(t, s, structured)
			requests := []req{
				{kind: 0, length: 512}, {kind: 1, length: 512, data: make([]byte, 512)}, {kind: 3},
				{kind: 4, length: 512}, {kind: 6, length: 512},
			}
			if structured {
				requests = append(requests, req{kind: 7, length: 512})
			}
			for _, q := range requests {
				k.want(c.want, q)
			}
			d.mu.Lock()
			d.hook = nil
			d.mu.Unlock()
			k.want(0, req{kind: 0, length: 512})
			s.mu.Lock()
			if len(s.reports) != len(requests) {
				t.Errorf("%v: %d reports of %d errors", c.err, len(s.reports), len(requests))
			}
			s.mu.Unlock()
		}
	})
}

func TestReadOnly(t *testing.T) {
	d := newFull(1 << 20)
	d.readOnly = true
	c := connect(t, serve(t, d), true)
	for _, q := range []req{
		{kind: 1, length: 512, data: make([]byte, 512)}, {kind: 4, length: 512}, {kind: 6, length: 512},
	} {
		c.want(1, q)
	}
	c.want(0, req{kind: 0, length: 512})
	c.want(0, req{kind: 3})
	if got := d.seen(); len(got) != 2 {
		t.Errorf("the disk was asked %v", got)
	}
}

func TestBlockStatus(t *testing.T) {
	d := newFull(1 << 20)
	d.marks = []disk.Extent{{Off: 0, Len: 4096, Zero: true}, {Off: 4096, Len: 4096, Allocated: true}}
	c := connect(t, serve(t, d), true)
	got := c.do(req{kind: 7, length: 16384})
	if want := []uint32{4096, 3, 12288, 0}; !slices.Equal(got.states, want) {
		t.Errorf("got %v, want %v", got.states, want)
	}
	got = c.do(req{kind: 7, flags: 8, off: 512, length: 16384 - 512})
	if want := []uint32{3584, 3}; !slices.Equal(got.states, want) {
		t.Errorf("one: got %v, want %v", got.states, want)
	}
}

// TestDisconnect: what was asked before is answered if the client still reads,
// and the end is no error.
func TestDisconnect(t *testing.T) {
	for _, end := range []string{"disconnect", "half close", "close"} {
		t.Run(end, func(t *testing.T) {
			d := newFull(1 << 20)
			s := serve(t, d)
			c := connect(t, s, false)
			reqs := map[uint64]req{}
			var all []byte
			for i := range uint64(100) {
				q := req{kind: 1, cookie: i, off: i * 4096, length: 4096, data: bytes.Repeat([]byte{byte(i + 1)}, 4096)}
				reqs[i] = q
				all = append(all, q.bytes()...)
			}
			if end == "disconnect" {
				all = append(all, req{kind: 2}.bytes()...)
			}
			c.send(all)
			switch end {
			case "half close":
				must(t, c.nc.(interface{ CloseWrite() error }).CloseWrite())
			case "close":
				must(t, c.nc.Close())
			}
			if end != "close" {
				for range reqs {
					if r := c.reply(reqs); r.fail != 0 {
						t.Errorf("error %d", r.fail)
					}
				}
				c.gone()
			}
			eventually(t, "the client to be gone", func() bool { return s.clients() == 0 })
			mem := d.contents()
			for i := range 100 {
				if end != "close" && mem[i*4096] != byte(i+1) {
					t.Fatalf("write %d is not on the disk", i)
				}
			}
			if err := s.reported(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestModel has clients at work in places of their own, each with many
// requests at once, and compares all they read with what they wrote.
func TestModel(t *testing.T) {
	const clients, rounds, share = 4, 60, 1 << 20
	r := random(t)
	d := newFull(clients * share)
	s := serve(t, d)
	var running sync.WaitGroup
	for i := range clients {
		m := &modelClient{
			c: connect(t, s, i%2 == 0), r: rand.New(rand.NewPCG(r.Uint64(), 0)),
			base: uint64(i * share), mem: make([]byte, share),
		}
		running.Add(1)
		go func() {
			defer running.Done()
			for range rounds {
				if err := m.round(); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
			}
		}()
	}
	running.Wait()
	if err := s.reported(); err != nil {
		t.Error(err)
	}
}

// modelClient knows what its part of the disk holds.
type modelClient struct {
	c    *client
	r    *rand.Rand
	base uint64
	mem  []byte
}

// round sends some requests that do not overlap, all at once, and checks what
// comes back.
func (m *modelClient) round() error {
	reqs, wants := map[uint64]req{}, map[uint64][]byte{}
	var all []byte
	for at := 0; at < len(m.mem); {
		n := min(512*(1+m.r.IntN(1<<m.r.IntN(10))), len(m.mem)-at)
		mine := m.mem[at : at+n]
		q := req{cookie: m.r.Uint64(), off: m.base + uint64(at), length: uint32(n)}
		switch m.r.IntN(8) {
		case 0, 1, 2:
			wants[q.cookie] = mine
		case 3, 4, 5:
			fill(m.r, mine)
			q.kind, q.data, q.flags = 1, mine, uint16(m.r.IntN(2))
		case 6:
			clear(mine)
			q.kind = 6
		default:
			q.kind, q.off, q.length = 3, 0, 0
		}
		at += n
		reqs[q.cookie] = q
		all = append(all, q.bytes()...)
	}
	sent := make(chan error, 1)
	go func() { // until all is taken, or the test closes the connection
		_, err := m.c.nc.Write(all)
		sent <- err
	}()
	for len(reqs) > 0 {
		got, err := readReply(m.c.nc, m.c.structured, reqs)
		if err != nil {
			return err
		}
		if got.fail != 0 || !bytes.Equal(got.data, wants[got.cookie]) {
			return fmt.Errorf("request %+v: error %d, or other data", reqs[got.cookie], got.fail)
		}
		delete(reqs, got.cookie)
	}
	return <-sent
}
