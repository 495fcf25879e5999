package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// client speaks the protocol with numbers of its own, so that a mistake in
// proto.go does not cancel out.
type client struct {
	tb         testing.TB
	nc         net.Conn
	structured bool
	size       uint64
	flags      uint16
}

// dial connects and reads the greeting.
func dial(tb testing.TB, s *served) *client {
	tb.Helper()
	nc, err := net.Dial("unix", s.path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = nc.Close() })
	must(tb, nc.SetDeadline(time.Now().Add(patience)))
	c := &client{tb: tb, nc: nc}
	if got := c.read(18); string(got) != "NBDMAGICIHAVEOPT\x00\x03" {
		tb.Fatalf("greeting %q", got)
	}
	return c
}

// connect goes into transmission, with simple replies or with structured ones
// and base:allocation.
func connect(tb testing.TB, s *served, structured bool) *client {
	tb.Helper()
	c := dial(tb, s)
	c.structured = structured
	c.send([]byte{0, 0, 0, 3})
	if structured {
		c.option(8, nil)
		c.wantOption(8, 1)
		c.option(10, metaData("", "base:allocation"))
		if kind, _ := c.optionReply(10); kind == 4 {
			c.wantOption(10, 1)
		} else if kind != 1 {
			tb.Fatalf("reply %#x to SET_META_CONTEXT", kind)
		}
	}
	c.option(7, []byte{0, 0, 0, 0, 0, 0})
	for {
		kind, data := c.optionReply(7)
		if kind == 1 {
			return c
		}
		if kind != 3 {
			tb.Fatalf("reply %#x to GO", kind)
		}
		if data[1] == 0 {
			c.size, c.flags = binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:])
		}
	}
}

func (c *client) send(b ...[]byte) {
	c.tb.Helper()
	if _, err := c.nc.Write(bytes.Join(b, nil)); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *client) read(n int) []byte {
	c.tb.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		c.tb.Fatal(err)
	}
	return b
}

func optionBytes(option uint32, data []byte) []byte {
	b := append([]byte("IHAVEOPT"), be32(option, uint32(len(data)))...)
	return append(b, data...)
}

func (c *client) option(option uint32, data []byte) {
	c.tb.Helper()
	c.send(optionBytes(option, data))
}

func (c *client) optionReply(option uint32) (kind uint32, data []byte) {
	c.tb.Helper()
	b := c.read(20)
	if binary.BigEndian.Uint64(b) != 0x0003e889045565a9 || binary.BigEndian.Uint32(b[8:]) != option {
		c.tb.Fatalf("reply %x to option %d", b, option)
	}
	return binary.BigEndian.Uint32(b[12:]), c.read(int(binary.BigEndian.Uint32(b[16:])))
}

func (c *client) wantOption(option, kind uint32) {
	c.tb.Helper()
	if got, _ := c.optionReply(option); got != kind {
		c.tb.Fatalf("reply %#x to option %d, want %#x", got, option, kind)
	}
}

// req is a request as the client writes it.
type req struct {
	flags, kind uint16
	cookie, off uint64
	length      uint32
	data        []byte
}

func (r req) bytes() []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, r.kind)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint64(b, r.off)
	b = binary.BigEndian.AppendUint32(b, r.length)
	return append(b, r.data...)
}

// rep is a reply to one of reqs.
type rep struct {
	cookie uint64
	fail   uint32
	data   []byte // of a read
	states []uint32
}

// reply reads one. reqs are those that it may be for, by cookie.
func (c *client) reply(reqs map[uint64]req) rep {
	c.tb.Helper()
	r, err := readReply(c.nc, c.structured, reqs)
	if err != nil {
		c.tb.Fatal(err)
	}
	return r
}

func readReply(from io.Reader, structured bool, reqs map[uint64]req) (rep, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(from, b); err != nil {
		return rep{}, err
	}
	r := rep{cookie: binary.BigEndian.Uint64(b[8:])}
	q, known := reqs[r.cookie]
	if !known {
		return r, fmt.Errorf("a reply to nothing: %x", b)
	}
	switch binary.BigEndian.Uint32(b) {
	case 0x67446698:
		r.fail = binary.BigEndian.Uint32(b[4:])
		if q.kind == 0 && structured {
			return r, errors.New("a simple reply to a read")
		}
		if q.kind == 0 && r.fail == 0 {
			r.data = make([]byte, q.length)
			_, err := io.ReadFull(from, r.data)
			return r, err
		}
		return r, nil
	case 0x668e33ef:
		if !structured {
			return r, errors.New("a chunk that was not asked for")
		}
		return readChunk(from, q, r, b)
	}
	return r, fmt.Errorf("magic number of a reply: %x", b)
}

// readChunk reads what follows the first 16 bytes of a chunk, which is the
// only one of its reply.
func readChunk(from io.Reader, q req, r rep, b []byte) (rep, error) {
	var l [4]byte
	if _, err := io.ReadFull(from, l[:]); err != nil {
		return r, err
	}
	if n := binary.BigEndian.Uint32(l[:]); n > 33<<20 {
		return r, fmt.Errorf("a chunk of %d bytes", n)
	}
	p := make([]byte, binary.BigEndian.Uint32(l[:]))
	if _, err := io.ReadFull(from, p); err != nil {
		return r, err
	}
	flags, kind := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	switch {
	case flags != 1:
		return r, fmt.Errorf("chunk flags %#x", flags)
	case kind == 1 && q.kind == 0 && len(p) == int(8+q.length) && binary.BigEndian.Uint64(p) == q.off:
		r.data = p[8:]
	case kind == 5 && q.kind == 7 && len(p) > 4 && (len(p)-4)%8 == 0:
		for p = p[4:]; len(p) > 0; p = p[4:] {
			r.states = append(r.states, binary.BigEndian.Uint32(p))
		}
	case kind == 0x8001 && len(p) == 6 && p[4] == 0 && p[5] == 0:
		r.fail = binary.BigEndian.Uint32(p)
		if r.fail == 0 {
			return r, errors.New("an error chunk without an error")
		}
	default:
		return r, fmt.Errorf("a chunk of kind %d with %d bytes for %+v", kind, len(p), q)
	}
	return r, nil
}

// do sends one request and waits for its reply.
func (c *client) do(q req) rep {
	c.tb.Helper()
	q.cookie = 0xfeedfacecafebeef
	c.send(q.bytes())
	return c.reply(map[uint64]req{q.cookie: q})
}

// want is do, for a request of which only the error matters.
func (c *client) want(fail uint32, q req) {
	c.tb.Helper()
	if got := c.do(q); got.fail != fail {
		c.tb.Errorf("request %+v: error %d, want %d", q, got.fail, fail)
	}
}

// gone waits until the server has closed the connection.
func (c *client) gone() {
	c.tb.Helper()
	if n, err := io.Copy(io.Discard, c.nc); errors.Is(err, net.ErrClosed) || isTimeout(err) {
		c.tb.Errorf("the server did not hang up: %d bytes, %v", n, err)
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func be32(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// metaData is the data of the metadata options.
func metaData(name string, queries ...string) []byte {
	b := append(be32(uint32(len(name))), name...)
	b = append(b, be32(uint32(len(queries)))...)
	for _, q := range queries {
		b = append(append(b, be32(uint32(len(q)))...), q...)
	}
	return b
}
