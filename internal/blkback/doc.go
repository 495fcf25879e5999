// Package blkback is the backend of virtual block devices (vbd): it writes
// their xenstore nodes, follows the xenbus handshake with each frontend, and
// serves the requests on their rings from a disk.
//
// A Backend serves any number of vbds in one process. Each VBD has
//
//   - a control goroutine (vbd.go), which reads the state nodes whenever a
//     watch fires and takes the one step that decide (state.go) names;
//   - while connected, a link (link.go): the door to the hypervisor, the
//     frontend's ring and its queue (queue.go), which the reactor's loop and
//     the pool's workers serve;
//   - a disk, which outlives the links.
//
// The loop never waits for xenstore or for a disk. Package blkback writes
// nothing to a person: it tells the caller what happens as Events.
//
// The rules of the handshake are those of xen/include/public/io/blkif.h and
// of what toolstacks and frontends do with it; docs/architecture.md draws it.
package blkback
