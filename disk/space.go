package disk

// Discarder is a disk that can give the space of bytes back that nobody needs
// any more. A read of a discarded range returns the old bytes or zeros, sector
// by sector, until it is written again: that is all that blkif
// (BLKIF_OP_DISCARD) and NBD (NBD_CMD_TRIM) promise, and more: of a physical
// device's discarded sectors the device decides.
type Discarder interface {
	Disk
	// Discard gives the space of n bytes at off back, as far as the store
	// below can: an image on a file system without holes keeps it and the
	// call succeeds. It fails with ErrReadOnly, ErrRange or fs.ErrClosed as
	// WriteAt does. A discard is no write: it needs no order against others
	// and a crash may undo it.
	Discard(off, n int64) error
	// Granularity is the length, in bytes, that can be given back at once,
	// and alignment is where in the disk the first such piece begins
	// (blkif.h, discard-granularity and discard-alignment). A granularity of
	// 0 says that this disk is known to give nothing back: Discard succeeds
	// and does nothing, and nobody should be told that it is there.
	Granularity() (granularity, alignment int64)
}

// Zeroer is a disk that can write zeros without being given them.
type Zeroer interface {
	Disk
	// WriteZeroes makes n bytes at off read as zeros. With mayFree their
	// space may be given back; without, later writes there must not fail for
	// want of space more often than before. It is a write in all else: Flush
	// makes it durable.
	WriteZeroes(off, n int64, mayFree bool) error
}

// Mapper is a disk that knows where its data are.
type Mapper interface {
	Disk
	// NextExtent returns the extent that begins at off, a multiple of 512
	// below SizeBytes. Extents of the same kind that touch need not be joined.
	// It may be called while others write; then it tells of before or after.
	NextExtent(off int64) (Extent, error)
}

// Extent is a run of bytes of a disk that are alike.
type Extent struct {
	Off, Len int64 // multiples of 512; Len is more than 0
	// Zero says that all of it reads as zeros. False says nothing: zeros may
	// be stored as data.
	Zero bool
	// Allocated says that space is kept for it here, or in a parent.
	Allocated bool
}
