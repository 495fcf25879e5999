package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxOptionBytes bounds the data of an option that is looked at: the protocol
// allows an export's name 4096 bytes, and clients ask for a few metadata
// contexts. Longer ones are read past and refused, for as long as the client
// has time.
const maxOptionBytes = 16 << 10

// oldReplyZeroes follow the reply to optExportName unless flagNoZeroes.
const oldReplyZeroes = 124

// errAborted ends a handshake that the client does not want to finish.
var errAborted = errors.New("the client aborted the handshake")

// handshake is the first phase of a connection, as the server sees it.
type handshake struct {
	in     *bufio.Reader
	out    io.Writer
	export *export

	session  session
	noZeroes bool
	option   uint32
	reply    []byte // to the option, sent as a whole
}

// run haggles until the client chooses the export. It fails when the client
// goes away, breaks the protocol, or asks with optExportName, which knows no
// errors, for an export that there is not.
func (h *handshake) run() (session, error) {
	h.reply = binary.BigEndian.AppendUint64(h.reply, magicServer)
	h.reply = binary.BigEndian.AppendUint64(h.reply, magicOption)
	h.reply = binary.BigEndian.AppendUint16(h.reply, flagFixedNewstyle|flagNoZeroes)
	if err := h.send(); err != nil {
		return session{}, err
	}
	var b [4]byte
	if _, err := io.ReadFull(h.in, b[:]); err != nil {
		return session{}, err
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return session{}, fmt.Errorf("read client flags: %#x are not ours", flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	data := make([]byte, maxOptionBytes)
	for {
		end, err := h.next(data)
		if err == nil {
			err = h.send()
		}
		if end || err != nil {
			return h.session, err
		}
	}
}

func (h *handshake) send() error {
	_, err := h.out.Write(h.reply)
	h.reply = h.reply[:0]
	return err
}

// next reads one option and prepares the reply. end: transmission begins.
func (h *handshake) next(data []byte) (end bool, err error) {
	var b [16]byte
	if _, err := io.ReadFull(h.in, b[:]); err != nil {
		return false, err
	}
	if binary.BigEndian.Uint64(b[:]) != magicOption {
		return false, fmt.Errorf("read option: magic number %#x", b[:8])
	}
	h.option = binary.BigEndian.Uint32(b[8:])
	length := binary.BigEndian.Uint32(b[12:])
	if length > maxOptionBytes {
		if h.option == optExportName {
			return false, fmt.Errorf("read option: an export name of %d bytes", length)
		}
		h.add(repErrTooBig, nil)
		_, err := io.CopyN(io.Discard, h.in, int64(length))
		return false, err
	}
	data = data[:length]
	if _, err := io.ReadFull(h.in, data); err != nil {
		return false, err
	}
	return h.answer(data)
}

// answer acts on an option.
func (h *handshake) answer(data []byte) (end bool, err error) {
	switch h.option {
	case optExportName:
		if len(data) != 0 {
			return false, fmt.Errorf("find export: there is no %q", data)
		}
		h.reply = binary.BigEndian.AppendUint64(h.reply, uint64(h.export.sizeBytes))
		h.reply = binary.BigEndian.AppendUint16(h.reply, h.export.flags(h.session))
		if !h.noZeroes {
			h.reply = append(h.reply, make([]byte, oldReplyZeroes)...)
		}
		return true, nil
	case optAbort:
		h.add(repAck, nil)
		return false, errors.Join(h.send(), errAborted)
	case optList:
		if len(data) != 0 {
			h.add(repErrInvalid, nil)
			break
		}
		h.add(repServer, make([]byte, 4)) // an empty name
		h.add(repAck, nil)
	case optInfo, optGo:
		return h.info(data), nil
	case optStructuredReply:
		if len(data) != 0 {
			h.add(repErrInvalid, nil)
			break
		}
		h.session.structured = true
		h.add(repAck, nil)
	case optListMetaContext, optSetMetaContext:
		h.metaContext(data)
	default:
		h.add(repErrUnsup, nil)
	}
	return false, nil
}

// add appends one reply to the option.
func (h *handshake) add(kind uint32, data []byte) {
	h.reply = binary.BigEndian.AppendUint64(h.reply, magicOptReply)
	h.reply = binary.BigEndian.AppendUint32(h.reply, h.option)
	h.reply = binary.BigEndian.AppendUint32(h.reply, kind)
	h.reply = binary.BigEndian.AppendUint32(h.reply, uint32(len(data)))
	h.reply = append(h.reply, data...)
}

// info answers optInfo and optGo. Everything is told without being asked for.
func (h *handshake) info(data []byte) (end bool) {
	name, ok := parseInfo(data)
	switch {
	case !ok:
		h.add(repErrInvalid, nil)
		return false
	case len(name) != 0:
		h.add(repErrUnknown, nil)
		return false
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(h.export.sizeBytes))
	b = binary.BigEndian.AppendUint16(b, h.export.flags(h.session))
	h.add(repInfo, b)
	b = binary.BigEndian.AppendUint16(b[:0], infoBlockSize)
	b = binary.BigEndian.AppendUint32(b, sectorBytes)
	b = binary.BigEndian.AppendUint32(b, preferredBytes)
	b = binary.BigEndian.AppendUint32(b, maxPayloadBytes)
	h.add(repInfo, b)
	h.add(repAck, nil)
	return h.option == optGo
}

// metaContext answers optListMetaContext and optSetMetaContext. Setting
// replaces what was set before, also when it fails.
func (h *handshake) metaContext(data []byte) {
	set := h.option == optSetMetaContext
	if set {
		h.session.allocation = false
	}
	name, queries, ok := parseMetaContext(data)
	switch {
	case !ok, !h.session.structured:
		h.add(repErrInvalid, nil)
		return
	case len(name) != 0:
		h.add(repErrUnknown, nil)
		return
	}
	if h.export.mapper != nil && selects(queries, set) {
		id := uint32(0) // reserved in a list
		if set {
			h.session.allocation, id = true, contextID
		}
		h.add(repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), contextName...))
	}
	h.add(repAck, nil)
}

// selects says whether queries name base:allocation; a list has a wildcard,
// and one without queries is a list of all.
func selects(queries [][]byte, set bool) bool {
	for _, q := range queries {
		if string(q) == contextName || !set && string(q) == "base:" {
			return true
		}
	}
	return !set && len(queries) == 0
}

// parseInfo takes the data of optInfo and optGo apart:
//
//	0 length of name  4 name  n 16-bit count  n+2 16-bit wishes
//
// The wishes are ignored.
func parseInfo(data []byte) (name []byte, ok bool) {
	name, data, ok = cutString(data)
	if !ok || len(data) < 2 {
		return nil, false
	}
	wishes := int(binary.BigEndian.Uint16(data))
	return name, len(data) == 2+2*wishes
}

// parseMetaContext takes the data of the metadata options apart:
//
//	0 length of name  4 name  n count  n+4 (length, query) ...
func parseMetaContext(data []byte) (name []byte, queries [][]byte, ok bool) {
	name, data, ok = cutString(data)
	if !ok || len(data) < 4 {
		return nil, nil, false
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	for ; count > 0; count-- {
		var q []byte
		if q, data, ok = cutString(data); !ok {
			return nil, nil, false
		}
		queries = append(queries, q)
	}
	return name, queries, len(data) == 0
}

// cutString takes a string with a 32-bit length off the front.
func cutString(data []byte) (s, rest []byte, ok bool) {
	if len(data) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-4) {
		return nil, nil, false
	}
	return data[4 : 4+n], data[4+n:], true
}
