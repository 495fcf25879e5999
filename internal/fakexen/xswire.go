package fakexen

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Message types (xen/include/public/io/xs_wire.h, enum xsd_sockmsg_type).
const (
	xsControl          = 0
	xsDirectory        = 1
	xsRead             = 2
	xsGetPerms         = 3
	xsWatch            = 4
	xsUnwatch          = 5
	xsTxStart          = 6
	xsTxEnd            = 7
	xsIntroduce        = 8
	xsRelease          = 9
	xsGetDomainPath    = 10
	xsWrite            = 11
	xsMkdir            = 12
	xsRm               = 13
	xsSetPerms         = 14
	xsWatchEvent       = 15
	xsError            = 16
	xsDomainIntroduced = 17
	xsResetWatches     = 21
	xsDirectoryPart    = 22
)

// message is one packet: struct xsd_sockmsg, four little-endian words, and the
// payload.
type message struct {
	kind, req, tx uint32
	payload       []byte
}

const headerSize = 16

func readMessage(r io.Reader) (message, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return message{}, err
	}
	le := binary.LittleEndian
	m := message{kind: le.Uint32(h[0:]), req: le.Uint32(h[4:]), tx: le.Uint32(h[8:])}
	n := le.Uint32(h[12:])
	if n > maxPayload {
		return m, fmt.Errorf("payload of %d bytes", n)
	}
	m.payload = make([]byte, n)
	_, err := io.ReadFull(r, m.payload)
	return m, err
}

func (m message) encode() []byte {
	b := make([]byte, 0, headerSize+len(m.payload))
	for _, v := range []uint32{m.kind, m.req, m.tx, uint32(len(m.payload))} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, m.payload...)
}

// nulStrings joins strings, a NUL after each.
func nulStrings(ss ...string) []byte {
	var b []byte
	for _, s := range ss {
		b = append(append(b, s...), 0)
	}
	return b
}

// oneString is the payload of requests with one argument: exactly one NUL, at
// the end.
func oneString(p []byte) (string, error) {
	if len(p) == 0 || bytes.IndexByte(p, 0) != len(p)-1 {
		return "", unix.EINVAL
	}
	return string(p[:len(p)-1]), nil
}

// manyStrings splits at NULs; what follows the last one is ignored.
func manyStrings(p []byte) []string {
	ss := strings.Split(string(p), "\x00")
	return ss[:len(ss)-1]
}

var errNames = map[unix.Errno]string{
	unix.EINVAL: "EINVAL", unix.EACCES: "EACCES", unix.EEXIST: "EEXIST",
	unix.ENOENT: "ENOENT", unix.ENOMEM: "ENOMEM", unix.ENOSPC: "ENOSPC",
	unix.EIO: "EIO", unix.ENOSYS: "ENOSYS", unix.EBUSY: "EBUSY",
	unix.EAGAIN: "EAGAIN", unix.E2BIG: "E2BIG", unix.EPERM: "EPERM",
}

// reply answers a request. What is too long to send is E2BIG.
func reply(q message, payload []byte, err error) message {
	if err == nil && len(payload) > maxPayload {
		err = unix.E2BIG
	}
	if err != nil {
		name := "EINVAL"
		if e, ok := err.(unix.Errno); ok && errNames[e] != "" {
			name = errNames[e]
		}
		return message{xsError, q.req, q.tx, nulStrings(name)}
	}
	return message{q.kind, q.req, q.tx, payload}
}

// directoryPart answers DIRECTORY_PART: the generation, then as many children
// from byte offset off as fit, then an empty string if they are the last.
func directoryPart(children []string, gen uint64, off int) []byte {
	list := nulStrings(children...)
	b := nulStrings(strconv.FormatUint(gen, 10))
	if off < 0 || off >= len(list) {
		return append(b, 0)
	}
	room := maxPayload - len(b) - 1
	n := 0
	for off+n < len(list) {
		l := bytes.IndexByte(list[off+n:], 0)
		if n+l >= room {
			break
		}
		n += l + 1
	}
	b = append(b, list[off:off+n]...)
	if off+n == len(list) {
		b = append(b, 0)
	}
	return b
}
