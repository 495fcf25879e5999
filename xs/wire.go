package xs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Message types (xen: public/io/xs_wire.h, enum xsd_sockmsg_type).
const (
	opDirectory          = 1
	opRead               = 2
	opGetPerms           = 3
	opWatch              = 4
	opUnwatch            = 5
	opTransactionStart   = 6
	opTransactionEnd     = 7
	opGetDomainPath      = 10
	opWrite              = 11
	opMkdir              = 12
	opRm                 = 13
	opSetPerms           = 14
	opWatchEvent         = 15
	opError              = 16
	opIsDomainIntroduced = 17
	opDirectoryPart      = 22
)

const (
	// headerSize is sizeof(struct xsd_sockmsg).
	headerSize = 16
	// payloadMax is XENSTORE_PAYLOAD_MAX, for both directions. xenstored
	// drops a client that sends more.
	payloadMax = 4096
	// devicePayloadMax is what the kernel's device takes: its buffer of
	// XENSTORE_PAYLOAD_MAX bytes holds the header as well
	// (linux: drivers/xen/xenbus/xenbus_dev_frontend.c).
	devicePayloadMax = payloadMax - headerSize
	// directoryMax bounds the one reply that may exceed payloadMax:
	// oxenstored, over a socket, sends a list of children whole instead of
	// E2BIG (xen: tools/ocaml/xenstored/connection.ml, packet_of) and has no
	// DIRECTORY_PART. 64 KiB are some 9000 domids.
	directoryMax = 64 << 10
)

// errWire is a message that breaks the protocol. What follows it in the
// stream cannot be trusted, so it ends the connection.
var errWire = errors.New("malformed xenstore message")

// header is struct xsd_sockmsg.
type header struct {
	typ   uint32
	reqID uint32
	txID  uint32
	len   uint32
}

// appendMessage appends one message to b; its payload is the parts, joined.
func appendMessage(b []byte, typ, reqID, txID uint32, parts ...string) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b = slices.Grow(b, headerSize+n)
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = binary.LittleEndian.AppendUint32(b, reqID)
	b = binary.LittleEndian.AppendUint32(b, txID)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func parseHeader(b []byte) header {
	return header{
		typ:   binary.LittleEndian.Uint32(b[0:]),
		reqID: binary.LittleEndian.Uint32(b[4:]),
		txID:  binary.LittleEndian.Uint32(b[8:]),
		len:   binary.LittleEndian.Uint32(b[12:]),
	}
}

// check refuses a header that no xenstore sends to us, before a byte of
// memory is spent on its payload.
func (h header) check() error {
	limit := uint32(payloadMax)
	switch h.typ {
	case opDirectory:
		limit = directoryMax
	case opRead, opGetPerms, opWatch, opUnwatch, opTransactionStart,
		opTransactionEnd, opGetDomainPath, opWrite, opMkdir, opRm, opSetPerms,
		opWatchEvent, opError, opIsDomainIntroduced, opDirectoryPart:
	default:
		return fmt.Errorf("%w: unknown type %d", errWire, h.typ)
	}
	if h.len > limit {
		return fmt.Errorf("%w: payload of %d bytes in type %d, at most %d",
			errWire, h.len, h.typ, limit)
	}
	return nil
}

// decoder takes a stream of bytes apart into messages, however it is cut. It
// does no I/O. Its memory is one message, grown only for a long DIRECTORY.
type decoder struct {
	hdr  [headerSize]byte
	n    int // bytes of the current message that have arrived
	h    header
	body []byte
}

// next consumes bytes of p and reports a message once it is complete. The
// payload is valid until the next call. What was not consumed is in rest;
// without a message and without an error, rest is empty. After an error the
// decoder must not be used.
func (d *decoder) next(p []byte) (h header, payload, rest []byte, ok bool, err error) {
	if d.n < headerSize {
		k := copy(d.hdr[d.n:], p)
		d.n += k
		p = p[k:]
		if d.n < headerSize {
			return header{}, nil, nil, false, nil
		}
		d.h = parseHeader(d.hdr[:])
		if err := d.h.check(); err != nil {
			return header{}, nil, nil, false, err
		}
		if want := max(payloadMax, int(d.h.len)); cap(d.body) != want {
			d.body = make([]byte, 0, want)
		}
	}
	k := min(len(p), headerSize+int(d.h.len)-d.n)
	d.body = append(d.body[:d.n-headerSize], p[:k]...)
	d.n += k
	p = p[k:]
	if d.n < headerSize+int(d.h.len) {
		return header{}, nil, nil, false, nil
	}
	d.n = 0
	return d.h, d.body, p, true, nil
}

// errnoNumbers is past the last errno of Linux (133).
const errnoNumbers = 134

// errnoOf translates an ERROR's payload, the name of an errno. EDQUOT is what
// oxenstored calls EQUOTA. A name nobody knows is kept in the text of an EIO.
func errnoOf(payload []byte) error {
	name := string(trimNUL(payload))
	if name == "EQUOTA" {
		return unix.EDQUOT
	}
	for e := unix.Errno(1); e < errnoNumbers; e++ {
		if name != "" && unix.ErrnoName(e) == name { // 41 and 58 have no name
			return e
		}
	}
	return fmt.Errorf("xenstored answered %.64q: %w", name, unix.EIO)
}

// trimNUL removes the one NUL that ends a string on the wire, if it is there.
func trimNUL(b []byte) []byte {
	return bytes.TrimSuffix(b, []byte{0})
}

// splitStrings takes a payload of NUL-terminated strings apart.
func splitStrings(payload []byte) ([]string, error) {
	if len(payload) == 0 {
		return nil, nil
	}
	if payload[len(payload)-1] != 0 {
		return nil, fmt.Errorf("list of strings without a final NUL: %w", unix.EIO)
	}
	parts := bytes.Split(payload[:len(payload)-1], []byte{0})
	list := make([]string, len(parts))
	for i, p := range parts {
		list[i] = string(p)
	}
	return list, nil
}

// parseEvent takes a WATCH_EVENT apart: path, token, and (depth, with features
// that we do not ask for) ignored strings after them.
func parseEvent(payload []byte) (path, token []byte, err error) {
	path, rest, ok := bytes.Cut(payload, []byte{0})
	token, _, ok2 := bytes.Cut(rest, []byte{0})
	if !ok || !ok2 {
		return nil, nil, fmt.Errorf("%w: watch event without path and token", errWire)
	}
	return path, token, nil
}
