package nbd

import (
	"encoding/binary"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
)

// request is what a client asks, decoded and not yet checked.
type request struct {
	flags, kind uint16
	cookie, off uint64
	length      uint32
}

// decodeRequest reads the requestBytes of a request. ok is false when they do
// not begin with its magic number: client and server have lost each other.
func decodeRequest(b []byte) (r request, ok bool) {
	_ = b[requestBytes-1]
	return request{
		flags:  binary.BigEndian.Uint16(b[4:]),
		kind:   binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}, binary.BigEndian.Uint32(b) == magicRequest
}

// session is what a client and the server agreed on in the handshake.
type session struct {
	structured bool
	allocation bool // base:allocation was selected
}

// kindRules are what the protocol says of a kind of request.
type kindRules struct {
	flags  uint16 // that it may have, besides cmdFUA
	writes bool   // it is refused on a read-only export
	beyond errno  // the answer to a range that ends past the export
	needs  uint16 // transmission flag
}

// rulesOf has the rules of a kind that works on a range.
func rulesOf(kind uint16) (k kindRules, known bool) {
	switch kind {
	case cmdRead:
		return kindRules{flags: cmdDF, beyond: errInval, needs: canFlags}, true
	case cmdWrite:
		return kindRules{writes: true, beyond: errNoSpace, needs: canFlags}, true
	case cmdTrim:
		return kindRules{writes: true, beyond: errInval, needs: canTrim}, true
	case cmdWriteZeroes:
		return kindRules{flags: cmdNoHole, writes: true, beyond: errNoSpace, needs: canWriteZeroes}, true
	case cmdBlockStatus:
		return kindRules{flags: cmdReqOne, beyond: errInval, needs: canFlags}, true
	}
	return kindRules{}, false
}

// check says what is wrong with a request, 0 when it may be served ("Error
// values"). Afterwards its range is whole sectors inside the export.
func (e *export) check(r request, s session) errno {
	if r.kind == cmdFlush {
		if r.flags&^cmdFUA != 0 || r.off != 0 || r.length != 0 {
			return errInval
		}
		return 0
	}
	rules, known := rulesOf(r.kind)
	can := e.flags(s)
	size, length := uint64(e.sizeBytes), uint64(r.length)
	switch {
	case !known, r.flags&^(rules.flags|cmdFUA) != 0:
		return errInval
	case rules.writes && can&canOnlyRead != 0:
		return errPerm
	case can&rules.needs == 0, r.kind == cmdBlockStatus && !s.allocation,
		r.flags&cmdDF != 0 && can&canDF == 0:
		return errInval
	case r.kind == cmdRead && length > maxPayloadBytes && s.structured:
		return errOverflow
	case (r.kind == cmdRead || r.kind == cmdWrite) && length > maxPayloadBytes:
		return errInval
	case length > size || r.off > size-length:
		return rules.beyond
	case length == 0, r.off%sectorBytes != 0, length%sectorBytes != 0:
		return errInval
	}
	return 0
}

// errnoOf is the protocol's word for what a disk failed with.
func errnoOf(err error) errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return errNoSpace
	case errors.Is(err, disk.ErrReadOnly):
		return errPerm
	case errors.Is(err, fs.ErrClosed):
		return errShutdown
	}
	return errIO
}

// putReply writes the header of a reply into h and returns it; n bytes of data
// follow. A read gets chunks where the client knows them, since it must, and
// so does an extent list, since it has data; everything else is simple.
func putReply(h *[headerBytes]byte, r request, s session, fail errno, n int) []byte {
	chunk := s.structured && (r.kind == cmdRead || r.kind == cmdBlockStatus)
	if !chunk {
		binary.BigEndian.PutUint32(h[0:], magicSimple)
		binary.BigEndian.PutUint32(h[4:], uint32(fail))
		binary.BigEndian.PutUint64(h[8:], r.cookie)
		return h[:simpleBytes]
	}
	b := binary.BigEndian.AppendUint32(h[:0], magicStructured)
	b = binary.BigEndian.AppendUint16(b, chunkDone)
	switch {
	case fail != 0:
		b = binary.BigEndian.AppendUint16(b, chunkError)
		b = binary.BigEndian.AppendUint64(b, r.cookie)
		b = binary.BigEndian.AppendUint32(b, 4+2)
		b = binary.BigEndian.AppendUint32(b, uint32(fail))
		return binary.BigEndian.AppendUint16(b, 0) // no text
	case r.kind == cmdRead:
		b = binary.BigEndian.AppendUint16(b, chunkOffsetData)
		b = binary.BigEndian.AppendUint64(b, r.cookie)
		b = binary.BigEndian.AppendUint32(b, uint32(8+n))
		return binary.BigEndian.AppendUint64(b, r.off)
	default:
		b = binary.BigEndian.AppendUint16(b, chunkBlockStatus)
		b = binary.BigEndian.AppendUint64(b, r.cookie)
		b = binary.BigEndian.AppendUint32(b, uint32(4+n))
		return binary.BigEndian.AppendUint32(b, contextID)
	}
}

// headerBytes is the longest header of a reply: a chunk's, and an offset.
const headerBytes = chunkBytes + 8
