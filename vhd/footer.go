package vhd

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"time"
)

const (
	footerBytes = 512
	// oldFooterBytes is what Virtual PC wrote before 2004.
	oldFooterBytes = 511

	footerCookie = "conectix"
	// poisonCookie marks an image whose resize by blktap was interrupted
	// (libvhd.h, VHD_POISON_COOKIE).
	poisonCookie = "v_poison"

	version1 = 0x00010000
	// featureReserved is the bit that "must always be set" (the specification).
	featureReserved = 0x2

	checksumAtFooter = 64
	noOffset         = ^uint64(0)
)

// epoch is where the format's seconds begin.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Type is the kind of an image (the specification, "Disk Type").
type Type uint32

const (
	TypeFixed        Type = 2
	TypeDynamic      Type = 3
	TypeDifferencing Type = 4
)

// String returns the specification's word.
func (t Type) String() string {
	switch t {
	case TypeFixed:
		return "fixed"
	case TypeDynamic:
		return "dynamic"
	case TypeDifferencing:
		return "differencing"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// UUID is the identity of an image: sixteen opaque bytes.
type UUID [16]byte

// String prints the bytes in their order, as libvhd and DiscUtils do.
func (u UUID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:36], u[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// Geometry is the cylinders, heads and sectors that a BIOS of 1996 would ask
// for. It limits nothing here.
type Geometry struct {
	Cylinders uint16 `json:"cylinders"`
	Heads     uint8  `json:"heads"`
	Sectors   uint8  `json:"sectors"` // a track
}

// Creator says which program made an image.
type Creator struct {
	App     [4]byte
	Version uint32 // major in the high half
	OS      [4]byte
}

// Footer is the 512 bytes at the end of every image, and at the beginning of
// those that are not fixed.
type Footer struct {
	Features   uint32
	Version    uint32
	DataOffset uint64 // of the header, in bytes; all ones for a fixed image
	Timestamp  uint32 // seconds since 2000
	Creator    Creator
	// OriginalSize and CurrentSize are the virtual size, in bytes.
	OriginalSize uint64
	CurrentSize  uint64
	Geometry     Geometry
	Type         Type
	UUID         UUID
	SavedState   uint8
	// Hidden is blktap's mark of a base copy that no one attaches (vhd.h).
	Hidden uint8

	// poisoned says that the cookie is blktap's mark of an unfinished resize.
	poisoned bool
	// reserved is kept as it was: another program's marks are not ours.
	reserved [426]byte
}

// parseFooter reads the 511 or 512 bytes of a footer. It checks the cookie and
// the sum, and nothing else.
func parseFooter(b []byte) (*Footer, error) {
	var full [footerBytes]byte
	copy(full[:], b)
	f := decodeFooter(&full)
	if f == nil {
		return nil, fmt.Errorf("%w: no footer cookie", ErrNotVHD)
	}
	got := binary.BigEndian.Uint32(full[checksumAtFooter:])
	want := checksum(full[:], checksumAtFooter)
	// blktap up to 1.1 set hidden without summing again.
	if got != want && got != want+uint32(f.Hidden) {
		return nil, fmt.Errorf("%w: footer checksum is %#08x, want %#08x", ErrCorrupt, got, want)
	}
	return f, nil
}

// decodeFooter reads a footer whatever its sum is. It returns nil where there
// is no cookie.
func decodeFooter(full *[footerBytes]byte) *Footer {
	be := binary.BigEndian
	f := &Footer{poisoned: string(full[:8]) == poisonCookie}
	if !f.poisoned && string(full[:8]) != footerCookie {
		return nil
	}
	f.Features = be.Uint32(full[8:])
	f.Version = be.Uint32(full[12:])
	f.DataOffset = be.Uint64(full[16:])
	f.Timestamp = be.Uint32(full[24:])
	copy(f.Creator.App[:], full[28:])
	f.Creator.Version = be.Uint32(full[32:])
	copy(f.Creator.OS[:], full[36:])
	f.OriginalSize = be.Uint64(full[40:])
	f.CurrentSize = be.Uint64(full[48:])
	f.Geometry = Geometry{be.Uint16(full[56:]), full[58], full[59]}
	f.Type = Type(be.Uint32(full[60:]))
	copy(f.UUID[:], full[68:])
	f.SavedState, f.Hidden = full[84], full[85]
	copy(f.reserved[:], full[86:])
	return f
}

// check refuses what a footer may not say. The size is that of the disk.
func (f *Footer) check(at int64) (sizeBytes int64, err error) {
	switch {
	case f.poisoned:
		return 0, fail(ErrUnsupported, "poisoned", at,
			"a resize by blktap was interrupted: \"vhd-util revert\" with its journal undoes it")
	case f.Version>>16 != version1>>16:
		return 0, fail(ErrUnsupported, "footer-version", at+12, "footer version is %#08x, want %#08x", f.Version, version1)
	case f.Type != TypeFixed && f.Type != TypeDynamic && f.Type != TypeDifferencing:
		return 0, fail(ErrUnsupported, "disk-type", at+60, "disk type is %d, want 2, 3 or 4", uint32(f.Type))
	case f.CurrentSize < SectorBytes || f.CurrentSize > math.MaxInt64:
		return 0, fail(ErrCorrupt, "size", at+48, "size is %d bytes, want 512 to 2^63-1", f.CurrentSize)
	}
	return int64(f.CurrentSize) / SectorBytes * SectorBytes, nil
}

// bytes is the footer as it lies in the file, with its sum.
func (f *Footer) bytes() []byte {
	b := make([]byte, footerBytes)
	be := binary.BigEndian
	copy(b, footerCookie)
	if f.poisoned {
		copy(b, poisonCookie)
	}
	be.PutUint32(b[8:], f.Features)
	be.PutUint32(b[12:], f.Version)
	be.PutUint64(b[16:], f.DataOffset)
	be.PutUint32(b[24:], f.Timestamp)
	copy(b[28:], f.Creator.App[:])
	be.PutUint32(b[32:], f.Creator.Version)
	copy(b[36:], f.Creator.OS[:])
	be.PutUint64(b[40:], f.OriginalSize)
	be.PutUint64(b[48:], f.CurrentSize)
	be.PutUint16(b[56:], f.Geometry.Cylinders)
	b[58], b[59] = f.Geometry.Heads, f.Geometry.Sectors
	be.PutUint32(b[60:], uint32(f.Type))
	copy(b[68:], f.UUID[:])
	b[84], b[85] = f.SavedState, f.Hidden
	copy(b[86:], f.reserved[:])
	be.PutUint32(b[checksumAtFooter:], checksum(b, checksumAtFooter))
	return b
}

// Created is the footer's time.
func (f *Footer) Created() time.Time { return epoch.Add(time.Duration(f.Timestamp) * time.Second) }

// stamp is t in the format's seconds, 0 for what lies before the epoch.
func stamp(t time.Time) uint32 {
	return uint32(max(0, min(t.Unix()-epoch.Unix(), 1<<32-1)))
}

// checksum is the ones' complement of the sum of all bytes but the four at
// skip, where the sum itself lies.
func checksum(b []byte, skip int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < skip || i >= skip+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// geometryOf is the specification's appendix "CHS Calculation".
func geometryOf(sizeBytes uint64) Geometry {
	const most = 65535 * 16 * 255
	total := min((sizeBytes+SectorBytes-1)/SectorBytes, most)
	var sectors, heads, tracks uint64
	if total >= 65535*16*63 {
		sectors, heads = 255, 16
		tracks = total / sectors
	} else {
		sectors = 17
		tracks = total / sectors
		heads = max(4, (tracks+1023)/1024)
		if tracks >= heads*1024 || heads > 16 {
			sectors, heads = 31, 16
			tracks = total / sectors
		}
		if tracks >= heads*1024 {
			sectors, heads = 63, 16
			tracks = total / sectors
		}
	}
	return Geometry{uint16(tracks / heads), uint8(heads), uint8(sectors)}
}
