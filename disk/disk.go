// Package disk is what a vbd is backed by: bytes that a guest reads and
// writes, behind one small interface.
//
// Why: the ring code must not care whether a sector comes from nothing at
// all, from a mapped file or from a VHD chain, and the tool exists to try new
// disk formats. A format is one Go type that implements [Disk], and one line
// in the switch of [Open].
//
// Who calls it: internal/blkback, from the worker pool, many requests of one
// disk at a time (but for a [Sink], for which it answers itself). internal/cli
// opens, creates, copies and compares disks and explains the errors.
//
// What a disk can do besides reading and writing is in space.go: give space
// back, write zeros, tell where its data are. Ask for it by type assertion.
//
// What it never does: it knows nothing of Xen, of rings or of sector sizes
// other than 512 bytes; a Disk starts no goroutine, logs nothing, keeps no
// state outside itself, allocates nothing in ReadAt and WriteAt, and never
// touches the bytes that the guest does not see:
//
//	0                                     SizeBytes          end of file
//	|<------------- the guest sees ------------>|<- TailBytes ->|
//	|  512  |  512  |  512  |        ...  |  512  |    1..511     |
//
// # Locks
//
// An image has many readers or one writer. The rule is held by open file
// description locks (fcntl F_OFD_SETLK), which belong to the inode, so it is
// held across hard links, symbolic links and bind mounts, within one process
// and between processes, and ends with the process. See lock.go for how it
// meets the locks of QEMU, libvirt and mount(8), and for what it cannot see.
//
// # Wrappers
//
// Something that alters a disk (a delay, a fault, a snapshot, statistics)
// takes a Disk and returns a Disk; there is no registry. A wrapper must
// forward [Sink], [Memory], [Discarder], [Zeroer] and [Mapper] only if what they
// promise still holds.
package disk

import "fmt"

// sectorBytes is the blkif sector: the unit of every offset and length here,
// whatever the device below uses (xen/include/public/io/blkif.h, "sectors").
const sectorBytes = 512

// Disk is the seam between a vbd and its bytes.
//
// Offsets and lengths are bytes and multiples of 512. Callers check
// them against Info().SizeBytes; the disk checks again and fails with
// [ErrRange] before it touches anything. All methods may be called from many
// goroutines at once. Reads and writes that overlap in time and place have no
// order and may be torn at any byte, as on a real disk. After Close every
// method but Info and Close fails with an error that is fs.ErrClosed.
type Disk interface {
	// Info is fixed from Open on.
	Info() Info
	// ReadAt fills all of p or says why not. When it fails the contents of p
	// are undefined and the count is a lower bound that may be 0.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes all of p or says why not. When it fails any part of the
	// range may have been written; the count is a lower bound that may be 0.
	// It fails with ErrReadOnly on a disk opened read-only.
	WriteAt(p []byte, off int64) (int, error)
	// Flush returns nil when every write that had completed before the call
	// is durable. Once it has failed it fails for ever: see file.flush.
	Flush() error
	// Close waits for the calls in flight, flushes a writable disk, releases
	// lock, mapping and fd whatever the flush says, and returns the flush's
	// error. Later calls return nil and do nothing.
	Close() error
}

// Info describes an open disk.
type Info struct {
	// SizeBytes is what the guest sees, a multiple of 512 and more
	// than 0. It does not follow the file when that grows or shrinks.
	SizeBytes int64
	// TailBytes is what lies past the last whole sector, 0 to 511 bytes, which
	// the guest does not see and which are never read or written.
	TailBytes int64
	// ReadOnly says that WriteAt fails with ErrReadOnly.
	ReadOnly bool
	// PhysicalSectorBytes is the unit that can be written without a
	// read-modify-write below: a power of two, 512 to 4096 for a file. It is
	// what blkif calls physical-sector-size.
	PhysicalSectorBytes int
	Format              Format
	// Path is the path given to Open, empty for Discard.
	Path string
}

// Sink is a disk that keeps nothing: data of a write need not be fetched from
// the guest, and a read may be answered without touching the guest's buffer.
// It measures the block protocol and nothing else.
type Sink interface {
	Disk
	// AcknowledgesEverything marks the promise; it is not called.
	AcknowledgesEverything()
}

// Memory is a disk whose bytes are mapped into this process, so that a grant
// copy can use them as its source or target without a buffer in between.
type Memory interface {
	Disk
	// Bytes returns n bytes of the disk at off in place, or nil when the range
	// is not a valid one or the disk is closed. Stores into the slice are
	// writes to the disk, made durable by Flush; on a read-only disk they
	// fault.
	//
	// The slice is valid until Close, which cannot wait for its user: who uses
	// it must have stopped before Close is called. Touching it may fault when
	// the file was truncated, the device fails, or a hole cannot be filled. A
	// system call (the grant copy ioctl) then fails with EFAULT and nothing
	// else happens. Go code gets a SIGBUS, which ends the process unless the
	// goroutine has called debug.SetPanicOnFault(true) and recovers; ReadAt and
	// WriteAt do that and are the way to touch the bytes from Go.
	Bytes(off int64, n int) []byte
}

// Options say how Open opens. The zero value opens for reading and writing.
type Options struct {
	ReadOnly bool

	// These are for VHD alone; vhd.Options says more.

	// RawParent permits a parent that is no VHD: its guest can have written
	// anything to it.
	RawParent bool
	// SearchPath lists directories where a parent is looked for by name.
	SearchPath []string
	// MapParents reads files that nobody writes through a mapping: the parents,
	// and the leaf of a read-only disk. It saves a system call a read, and
	// where the page must come from a device, the others of the process wait
	// for it too.
	MapParents bool
}

// Open opens the image at path, which is a regular file or a block device, and
// locks it; Discard takes no path. The caller owns the disk and must Close it.
//
// Errors can be told apart with errors.Is: fs.ErrNotExist, fs.ErrPermission,
// and the Err values of this package; errors.As finds an [InUseError].
func Open(path string, f Format, o Options) (Disk, error) {
	switch f {
	case Discard:
		if path != "" {
			return nil, fmt.Errorf("open %s: the discard format keeps nothing and takes no path", path)
		}
		return newDiscard(o), nil
	case Raw:
		return openRaw(path, o)
	case Mmap:
		return openMmap(path, o)
	case VHD:
		return openVHD(path, o)
	}
	return nil, fmt.Errorf("open %s: %w: %s", path, ErrUnsupportedFormat, f)
}

// checkRange says whether n bytes at off are whole sectors inside sizeBytes.
// An empty range is valid.
func checkRange(n, off, sizeBytes int64) error {
	if n < 0 || off < 0 || off%sectorBytes != 0 || n%sectorBytes != 0 ||
		off > sizeBytes || n > sizeBytes-off {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrRange, n, off, sizeBytes)
	}
	return nil
}
