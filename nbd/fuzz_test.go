package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xen-disk/disk"
)

// FuzzHandshake: whatever a client sends, what it gets are replies to its
// options, and as much as they may hold.
func FuzzHandshake(f *testing.F) {
	for _, c := range hagglings() {
		if len(c.input) < 4096 {
			f.Add([]byte(c.input))
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 1<<16 {
			return
		}
		s, out, err := haggle(newFull(1<<20), string(input))
		if s.allocation && !s.structured {
			t.Errorf("session %+v", s)
		}
		replies := 0
		for ; len(out) >= 20 && out[:8] == "\x00\x03\xe8\x89\x04\x55\x65\xa9"; replies++ {
			n := binary.BigEndian.Uint32([]byte(out[16:]))
			if uint64(n) > uint64(len(out)-20) || n > 64 {
				t.Fatalf("a reply of %d bytes: %q", n, out)
			}
			out = out[20+n:]
		}
		// Each option takes 16 bytes and gets at most three replies.
		if replies > 3*len(input)/16 {
			t.Errorf("%d replies to %d bytes", replies, len(input))
		}
		out = strings.TrimSuffix(out, strings.Repeat("\x00", 124))
		old := out == "" || strings.HasPrefix(out, "\x00\x00\x00\x00\x00\x10\x00\x00\x01") && len(out) == 10
		if !old || out != "" && err != nil {
			t.Errorf("behind the replies: %q, %v", out, err)
		}
	})
}

// script is a connection whose client sends all it has, goes, and keeps what
// it got. The sender writes to it, one at a time.
type script struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *script) Close() error                { return nil }

// asked are the requests in a client's bytes that must be answered, in the
// order of their cookies, and why there are no more. It reads them as the
// protocol has them, not as request.go does.
func asked(input []byte) (reqs map[uint64]req, n int) {
	reqs = map[uint64]req{}
	for len(input) >= 28 && string(input[:4]) == "\x25\x60\x95\x13" {
		q := req{
			flags: binary.BigEndian.Uint16(input[4:]), kind: binary.BigEndian.Uint16(input[6:]),
			cookie: binary.BigEndian.Uint64(input[8:]), off: binary.BigEndian.Uint64(input[16:]),
			length: binary.BigEndian.Uint32(input[24:]),
		}
		input = input[28:]
		if q.kind == 2 || q.kind == 1 && uint64(q.length) > uint64(len(input)) {
			break
		}
		if q.kind == 1 {
			input = input[q.length:]
		}
		if _, twice := reqs[q.cookie]; twice {
			return nil, 0 // the replies cannot be told apart
		}
		reqs[q.cookie] = q
		n++
	}
	return reqs, n
}

// FuzzTransmission: whatever a client sends, the disk is asked for nothing
// outside (newFull panics), and each request gets one reply.
func FuzzTransmission(f *testing.F) {
	data := make([]byte, 1024)
	seeds := [][]req{
		{{kind: 0, cookie: 1, length: 512}, {kind: 0, cookie: 2, off: 65024, length: 1024}},
		{{kind: 1, cookie: 1, length: 512, data: data[:512]}, {kind: 1, flags: 1, cookie: 2, off: 1 << 40, length: 1024, data: data}},
		{{kind: 3, cookie: 1}, {kind: 4, cookie: 2, length: 4096}, {kind: 6, flags: 2, cookie: 3, length: 4096}, {kind: 2}},
		{{kind: 7, cookie: 1, length: 65536}, {kind: 7, flags: 8, cookie: 2, off: 512, length: 512}},
		{{kind: 0, cookie: 1, length: 1<<32 - 1}, {kind: 0, flags: 4, cookie: 2, off: 1<<64 - 512, length: 1024}},
		{{kind: 1, cookie: 1, length: 512, data: data[:100]}},
		{{kind: 9, cookie: 1}, {kind: 0, flags: 0xffff, cookie: 2, length: 512}},
	}
	for _, reqs := range seeds {
		var b []byte
		for _, q := range reqs {
			b = append(b, q.bytes()...)
		}
		for mode := range byte(4) {
			f.Add(append([]byte{mode}, b...))
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) == 0 || len(input) > 1<<11 { // longer ones take long to minimize
			return
		}
		mode, input := input[0], input[1:]
		var d disk.Disk = newPlain(65536)
		s := session{structured: mode&1 != 0}
		if mode&2 != 0 {
			d, s.allocation = newFull(65536), s.structured
		}
		reqs, n := asked(input)
		nc := &script{in: bytes.NewReader(input)}
		c := newConn(nc, newExport(d), new(buffers), func(err error) { t.Error(err) })
		// One worker and no ticks, so that the same input does the same again.
		c.session, c.ticking = s, true
		c.serve()
		if c.err == nil {
			t.Error("it ended without a reason")
		}
		for range n {
			r, err := readReply(&nc.out, s.structured, reqs)
			if err != nil {
				t.Fatalf("%v\nrequests: %+v", err, reqs)
			}
			delete(reqs, r.cookie)
		}
		if _, err := nc.out.ReadByte(); !errors.Is(err, io.EOF) && reqs != nil {
			t.Errorf("more replies than requests")
		}
	})
}

// TestCorpora: a fuzz target without one finds less.
func TestCorpora(t *testing.T) {
	for _, target := range []string{"FuzzHandshake", "FuzzTransmission"} {
		files, err := os.ReadDir(filepath.Join("testdata", "fuzz", target))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: %d files, %v", target, len(files), err)
		}
	}
}
