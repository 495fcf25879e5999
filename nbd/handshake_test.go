package nbd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"xen-disk/disk"
)

// optReply is one reply to an option, as bytes.
func optReply(option, kind uint32, data string) string {
	return "\x00\x03\xe8\x89\x04\x55\x65\xa9" + string(be32(option, kind, uint32(len(data)))) + data
}

const (
	unsup   = 1<<31 + 1
	invalid = 1<<31 + 3
	unknown = 1<<31 + 6
	tooBig  = 1<<31 + 9
)

// infoData is the data of INFO and GO.
func infoData(name string, wishes ...uint16) []byte {
	b := append(be32(uint32(len(name))), name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(wishes)))
	for _, w := range wishes {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

// infoReply is what INFO and GO say of a disk of 1 MiB.
func infoReply(option uint32, flags string) string {
	return optReply(option, 3, "\x00\x00"+"\x00\x00\x00\x00\x00\x10\x00\x00"+flags) +
		optReply(option, 3, "\x00\x03"+"\x00\x00\x02\x00"+"\x00\x00\x10\x00"+"\x02\x00\x00\x00") +
		optReply(option, 1, "")
}

// haggle runs a handshake on what a client sends, and returns what it gets.
func haggle(d disk.Disk, input string) (session, string, error) {
	var out bytes.Buffer
	h := handshake{in: bufio.NewReaderSize(strings.NewReader(input), readBytes), out: &out, export: newExport(d)}
	s, err := h.run()
	return s, strings.TrimPrefix(out.String(), "NBDMAGICIHAVEOPT\x00\x03"), err
}

// opts are options as bytes, behind client flags that ask for no zeroes.
func opts(options ...[]byte) string { return "\x00\x00\x00\x03" + string(bytes.Join(options, nil)) }

type haggling struct {
	name, input, want string
	session           session
	err               error // nil: transmission begins
}

const (
	flagsPlain      = "\x01\x4d" // has flags, flush, FUA, write zeroes, multi-conn
	flagsFull       = "\x01\x6d" // and trim
	flagsStructured = "\x01\xed" // and DF
)

func hagglings() []haggling {
	structured := optionBytes(8, nil)
	ack := optReply(8, 1, "")
	size := "\x00\x00\x00\x00\x00\x10\x00\x00"
	context := "\x00\x00\x00\x01base:allocation"
	long := strings.Repeat("x", maxOptionBytes+1)
	both := session{structured: true, allocation: true}
	return []haggling{
		{"go", opts(optionBytes(7, infoData(""))), infoReply(7, flagsFull), session{}, nil},
		{"go with wishes", opts(optionBytes(7, infoData("", 3, 1, 9))), infoReply(7, flagsFull), session{}, nil},
		{"go without flags", "\x00\x00\x00\x00" + string(optionBytes(7, infoData(""))), infoReply(7, flagsFull), session{}, nil},
		{"info, then go", opts(optionBytes(6, infoData("")), optionBytes(7, infoData(""))),
			infoReply(6, flagsFull) + infoReply(7, flagsFull), session{}, nil},
		{"go to another export", opts(optionBytes(7, infoData("x"))), optReply(7, unknown, ""), session{}, io.EOF},
		{"go without a count", opts(optionBytes(7, be32(0))), optReply(7, invalid, ""), session{}, io.EOF},
		{"go without anything", opts(optionBytes(7, nil)), optReply(7, invalid, ""), session{}, io.EOF},
		{"go with a name past the end", opts(optionBytes(7, append(be32(0xffffffff), 0, 0))), optReply(7, invalid, ""), session{}, io.EOF},
		{"go with wishes past the end", opts(optionBytes(7, []byte{0, 0, 0, 0, 0xff, 0xff, 0, 3})), optReply(7, invalid, ""), session{}, io.EOF},
		{"go with something behind", opts(optionBytes(7, []byte{0, 0, 0, 0, 0, 0, 1})), optReply(7, invalid, ""), session{}, io.EOF},
		{"export name", opts(optionBytes(1, nil)), size + flagsFull, session{}, nil},
		{"export name with zeroes", "\x00\x00\x00\x01" + string(optionBytes(1, nil)),
			size + flagsFull + strings.Repeat("\x00", 124), session{}, nil},
		{"another export name", opts(optionBytes(1, []byte("x"))), "", session{}, errAny},
		{"a long export name", opts(optionBytes(1, []byte(long))), "", session{}, errAny},
		{"abort", opts(optionBytes(2, nil)), optReply(2, 1, ""), session{}, errAborted},
		{"abort with data", opts(optionBytes(2, []byte("bye"))), optReply(2, 1, ""), session{}, errAborted},
		{"list", opts(optionBytes(3, nil)), optReply(3, 2, "\x00\x00\x00\x00") + optReply(3, 1, ""), session{}, io.EOF},
		{"list with data", opts(optionBytes(3, []byte{1})), optReply(3, invalid, ""), session{}, io.EOF},
		{"TLS", opts(optionBytes(5, nil), optionBytes(1, nil)), optReply(5, unsup, "") + size + flagsFull, session{}, nil},
		{"extended headers", opts(optionBytes(11, nil)), optReply(11, unsup, ""), session{}, io.EOF},
		{"an option nobody knows", opts(optionBytes(0xffffffff, []byte("data")), optionBytes(1, nil)),
			optReply(0xffffffff, unsup, "") + size + flagsFull, session{}, nil},
		{"a long option", opts(optionBytes(7, []byte(long)), optionBytes(1, nil)),
			optReply(7, tooBig, "") + size + flagsFull, session{}, nil},
		{"a long option that ends", opts(optionBytes(7, []byte(long))[:100]), "", session{}, io.EOF},
		{"structured replies", opts(structured, optionBytes(7, infoData(""))), ack + infoReply(7, flagsStructured), session{structured: true}, nil},
		{"structured replies with data", opts(optionBytes(8, []byte{1})), optReply(8, invalid, ""), session{}, io.EOF},
		{"list contexts", opts(structured, optionBytes(9, metaData(""))),
			ack + optReply(9, 4, "\x00\x00\x00\x00base:allocation") + optReply(9, 1, ""), session{structured: true}, io.EOF},
		{"list a namespace", opts(structured, optionBytes(9, metaData("", "base:"))),
			ack + optReply(9, 4, "\x00\x00\x00\x00base:allocation") + optReply(9, 1, ""), session{structured: true}, io.EOF},
		{"list other contexts", opts(structured, optionBytes(9, metaData("", "qemu:", "base:x", "base"))),
			ack + optReply(9, 1, ""), session{structured: true}, io.EOF},
		{"list contexts first", opts(optionBytes(9, metaData(""))), optReply(9, invalid, ""), session{}, io.EOF},
		{"set a context", opts(structured, optionBytes(10, metaData("", "x:y", "base:allocation"))),
			ack + optReply(10, 4, context) + optReply(10, 1, ""), both, io.EOF},
		{"set contexts first", opts(optionBytes(10, metaData("", "base:allocation"))), optReply(10, invalid, ""), session{}, io.EOF},
		{"set a wildcard", opts(structured, optionBytes(10, metaData("", "base:"))), ack + optReply(10, 1, ""), session{structured: true}, io.EOF},
		{"set no context", opts(structured, optionBytes(10, metaData("", "base:allocation")), optionBytes(10, metaData(""))),
			ack + optReply(10, 4, context) + optReply(10, 1, "") + optReply(10, 1, ""), session{structured: true}, io.EOF},
		{"set wrongly after setting", opts(structured, optionBytes(10, metaData("", "base:allocation")), optionBytes(10, nil)),
			ack + optReply(10, 4, context) + optReply(10, 1, "") + optReply(10, invalid, ""), session{structured: true}, io.EOF},
		{"set for another export", opts(structured, optionBytes(10, metaData("x", "base:allocation"))),
			ack + optReply(10, unknown, ""), session{structured: true}, io.EOF},
		{"queries past the end", opts(structured, optionBytes(10, be32(0, 0xffffffff, 0))), ack + optReply(10, invalid, ""), session{structured: true}, io.EOF},
		{"a query past the end", opts(structured, optionBytes(10, be32(0, 1, 0xffffffff))), ack + optReply(10, invalid, ""), session{structured: true}, io.EOF},
		{"something behind queries", opts(structured, optionBytes(10, be32(0, 0, 0))), ack + optReply(10, invalid, ""), session{structured: true}, io.EOF},
		{"unknown client flags", "\x00\x00\x00\x07" + string(optionBytes(1, nil)), "", session{}, errAny},
		{"no magic number", opts([]byte("IHAVEOPS\x00\x00\x00\x01\x00\x00\x00\x00")), "", session{}, errAny},
		{"nothing", "", "", session{}, io.EOF},
		{"half an option", opts([]byte("IHAVE")), "", session{}, io.ErrUnexpectedEOF},
		{"half its data", opts(optionBytes(7, infoData(""))[:18]), "", session{}, io.ErrUnexpectedEOF},
	}
}

// errAny stands for an error that is the server's own and is reported.
var errAny = errors.New("any")

func TestHandshake(t *testing.T) {
	for _, c := range hagglings() {
		t.Run(c.name, func(t *testing.T) {
			s, got, err := haggle(newFull(1<<20), c.input)
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if s != c.session && c.err != errAny {
				t.Errorf("session %+v, want %+v", s, c.session)
			}
			if c.err == errAny && (err == nil || left(err)) || c.err != errAny && !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
		})
	}
}

// TestHandshakeOffersWhatThereIs: nothing that the disk cannot do.
func TestHandshakeOffersWhatThereIs(t *testing.T) {
	readOnly := newFull(1 << 20)
	readOnly.readOnly = true
	for _, c := range []struct {
		name, flags string
		disk        disk.Disk
		contexts    bool
	}{
		{"plain", flagsPlain, newPlain(1 << 20), false},
		{"full", flagsFull, newFull(1 << 20), true},
		{"read-only", "\x01\x0f", readOnly, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, got, _ := haggle(c.disk, opts(optionBytes(7, infoData("")))); got != infoReply(7, c.flags) {
				t.Errorf("got  %q\nwant %q", got, infoReply(7, c.flags))
			}
			s, got, _ := haggle(c.disk, opts(optionBytes(8, nil), optionBytes(10, metaData("", "base:allocation"))))
			if s.allocation != c.contexts || strings.Contains(got, "base:allocation") != c.contexts {
				t.Errorf("metadata contexts: session %+v, reply %q", s, got)
			}
		})
	}
}
