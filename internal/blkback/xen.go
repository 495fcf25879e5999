package blkback

import "xen-disk/grant"

// Xen is what a vbd asks of the hypervisor. One handle serves one vbd, so
// closing it gives back everything that the vbd held. grant.Door implements
// it with the kernel's devices, fakexen.Door in memory.
//
// Copy and Notify are called by several goroutines at a time.
type Xen interface {
	// Map maps pages that a domain granted, one after the other.
	Map(domid uint32, refs []uint32, writable bool) (mem []byte, err error)
	// Unmap undoes Map; the memory must not be touched afterwards.
	Unmap(mem []byte) error
	// Copy moves bytes between this process and granted pages. An error
	// means that nothing is known of any segment; with none, each has a
	// Status.
	Copy(segs []grant.CopySegment) error

	// EventFD is readable while a bound port is pending.
	EventFD() int
	// Bind binds a port that the remote domain allocated for us. The local
	// port is pending at once.
	Bind(domid, remotePort uint32) (port uint32, err error)
	Unbind(port uint32) error
	Notify(port uint32) error
	// Pending returns the local ports that fired. Each stays silent until
	// Unmask.
	Pending(ports []uint32) (n int, err error)
	Unmask(ports []uint32) error

	Close() error
}
