package nbd

import (
	"encoding/binary"
	"fmt"

	"xen-disk/disk"
)

// export is a disk and what it can do; only that is offered to clients.
type export struct {
	disk      disk.Disk
	sizeBytes int64
	readOnly  bool
	discarder disk.Discarder // nil: it cannot
	zeroer    disk.Zeroer
	mapper    disk.Mapper
}

func newExport(d disk.Disk) *export {
	e := &export{disk: d, sizeBytes: d.Info().SizeBytes, readOnly: d.Info().ReadOnly}
	e.discarder, _ = d.(disk.Discarder)
	e.zeroer, _ = d.(disk.Zeroer)
	e.mapper, _ = d.(disk.Mapper)
	return e
}

// flags are the transmission flags. Several connections see the same disk at
// once, and its Flush covers the writes of all, which is canMultiConn.
func (e *export) flags(s session) uint16 {
	flags := uint16(canFlags | canFlush | canFUA | canMultiConn)
	if s.structured {
		flags |= canDF
	}
	if e.readOnly {
		return flags | canOnlyRead
	}
	flags |= canWriteZeroes
	if e.discarder != nil {
		flags |= canTrim
	}
	return flags
}

// do serves a request that passed check. data are those of a write, or what a
// read or the extents of a block status go into; n is how many bytes of them
// are the reply's.
func (e *export) do(r request, data []byte) (n int, err error) {
	off, length := int64(r.off), int64(r.length)
	switch r.kind {
	case cmdRead:
		_, err = e.disk.ReadAt(data, off)
		return len(data), err
	case cmdWrite:
		_, err = e.disk.WriteAt(data, off)
	case cmdTrim:
		err = e.discarder.Discard(off, length)
	case cmdWriteZeroes:
		err = e.writeZeroes(off, length, r.flags&cmdNoHole == 0)
	case cmdBlockStatus:
		return e.extents(data, off, length, r.flags&cmdReqOne != 0)
	case cmdFlush:
		return 0, e.disk.Flush()
	default:
		panic(fmt.Sprintf("nbd: do: got a request of kind %d that check let pass", r.kind))
	}
	if err == nil && r.flags&cmdFUA != 0 {
		err = e.disk.Flush()
	}
	return 0, err
}

// zeroesBytes is how many zeros are written at once where the disk cannot make
// them itself: enough that the calls do not count.
const zeroesBytes = 256 << 10

// zeroes is never written to.
var zeroes [zeroesBytes]byte

func (e *export) writeZeroes(off, length int64, mayFree bool) error {
	if e.zeroer != nil {
		return e.zeroer.WriteZeroes(off, length, mayFree)
	}
	for length > 0 {
		n, err := e.disk.WriteAt(zeroes[:min(length, zeroesBytes)], off)
		if err != nil {
			return err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return nil
}

const (
	// maxExtents bounds the extents of one reply; the client asks again where
	// it ends.
	maxExtents = 2048
	// maxLookups bounds how often the disk is asked for them, since extents
	// that are alike become one.
	maxLookups = 4 * maxExtents
)

// extents puts those of a range into b, each as its length and state, and
// returns how many bytes they take. At least one is put.
func (e *export) extents(b []byte, off, length int64, one bool) (n int, err error) {
	end, last := off+length, uint32(0)
	for range maxLookups {
		x, err := e.mapper.NextExtent(off)
		if err != nil {
			return 0, err
		}
		size := min(x.Off+x.Len, end) - off
		if x.Off != off || size <= 0 {
			return 0, fmt.Errorf("find extents: got %d bytes at %d for byte %d", x.Len, x.Off, off)
		}
		state := stateOf(x)
		switch {
		case n > 0 && state == last:
			grow := b[n-extentBytes:]
			binary.BigEndian.PutUint32(grow, binary.BigEndian.Uint32(grow)+uint32(size))
		case n > 0 && one, n+extentBytes > len(b):
			return n, nil
		default:
			binary.BigEndian.PutUint32(b[n:], uint32(size))
			binary.BigEndian.PutUint32(b[n+4:], state)
			n, last = n+extentBytes, state
		}
		if off += size; off == end {
			break
		}
	}
	return n, nil
}

func stateOf(x disk.Extent) (state uint32) {
	if !x.Allocated {
		state |= stateHole
	}
	if x.Zero {
		state |= stateZero
	}
	return state
}
