package grant

// ioctl numbers are _IOC(_IOC_NONE, type, nr, size of the argument):
//
//	 31 30 29        16 15     8 7      0
//	| dir |    size    |  type  |   nr   |
//
// dir is zero although arguments go both ways; so it is in the headers
// (include/uapi/xen/gntdev.h and evtchn.h of Linux).
const (
	sizeShift = 16
	gntdev    = 'G' << 8
	evtchn    = 'E' << 8
)

// The ioctls that Door uses.
const (
	ioctlMapGrantRef   = 24<<sizeShift | gntdev // nr 0
	ioctlUnmapGrantRef = 16<<sizeShift | gntdev | 1
	ioctlGrantCopy     = 16<<sizeShift | gntdev | 8

	ioctlBindInterdomain = 8<<sizeShift | evtchn | 1
	ioctlUnbind          = 4<<sizeShift | evtchn | 3
	ioctlNotify          = 4<<sizeShift | evtchn | 4
	ioctlReset           = evtchn | 5 // no argument
)

// grantRef is struct ioctl_gntdev_grant_ref.
type grantRef struct {
	domid uint32
	ref   uint32
}

// mapGrantRef is struct ioctl_gntdev_map_grant_ref. refs has count elements;
// the ioctl number has the size of this struct, with one, whatever count is.
type mapGrantRef struct {
	count uint32
	_     uint32
	index uint64 // out: the offset to mmap
	refs  [1]grantRef
}

// unmapGrantRef is struct ioctl_gntdev_unmap_grant_ref.
type unmapGrantRef struct {
	index uint64
	count uint32
	_     uint32
}

// grantCopy is struct ioctl_gntdev_grant_copy. The pointer is one, not an
// integer, so that the segments live as long as this struct does.
type grantCopy struct {
	count    uint32
	_        uint32
	segments *CopySegment
}

// bindInterdomain is struct ioctl_evtchn_bind_interdomain.
type bindInterdomain struct {
	remoteDomain uint32
	remotePort   uint32
}

// portArg is struct ioctl_evtchn_unbind, and struct ioctl_evtchn_notify.
type portArg struct {
	port uint32
}
