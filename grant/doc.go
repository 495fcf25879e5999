// Package grant is the door to the kernel's two Xen devices: /dev/xen/gntdev,
// which maps and copies pages that a guest has granted, and /dev/xen/evtchn,
// which binds event channels.
//
// It exists so that everything which only root in a Xen dom0 can try, ioctl
// numbers, struct layouts and the rules of undoing, is in one small room with
// plain Go types at its walls. blkback opens one Door for each vbd: what the
// vbd held is given back when its Door is closed, or when the process dies.
// fakexen, which plays the same part in memory, uses the CopySegment type.
//
// It knows nothing of rings, requests or xenstore. It never interprets the
// status of a copied segment, never retries what Xen refused, never waits for
// an event and never logs.
//
// The structs are those of 64-bit little-endian kernels (amd64, arm64), where
// the C layout and Go's agree.
package grant
