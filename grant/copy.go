package grant

// Flags of a CopySegment (include/uapi/xen/gntdev.h).
const (
	CopySourceGref = 1 << 0 // Source is a grant of a foreign domain
	CopyDestGref   = 1 << 1 // Dest is a grant of a foreign domain
)

// Status values of a CopySegment (xen/include/public/grant_table.h, GNTST_*).
const (
	StatusOKAY         = 0
	StatusGeneralError = -1
	StatusBadDomain    = -2
	StatusBadGref      = -3
	StatusPermission   = -8
	StatusBadCopyArg   = -10
	StatusEagain       = -12
	StatusNoSpace      = -13
)

// CopySegment is struct gntdev_grant_copy_segment, byte for byte: 24 bytes.
// Source and Dest each hold either a virtual address of this process or the
// grant that Foreign packs, as Flags says. Exactly one side may be a grant.
type CopySegment struct {
	Source uint64
	Dest   uint64
	Len    uint16 // bytes; offset + Len of the foreign side is at most 4096
	Flags  uint16
	Status int16 // out: Status*, one for each segment
	_      uint16
}

// Foreign packs a grant as the foreign half of a CopySegment: ref in bits
// 0-31, offset in the page in bits 32-47, domid in bits 48-63.
func Foreign(domid uint16, ref uint32, offset uint16) uint64 {
	return uint64(ref) | uint64(offset)<<32 | uint64(domid)<<48
}
