// Package grant is the door to the kernel's two Xen devices: /dev/xen/gntdev,
// which maps and copies pages that a guest has granted, and /dev/xen/evtchn,
// which binds event channels.
package grant
