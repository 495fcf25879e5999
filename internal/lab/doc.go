// Package lab boots real Xen on an ordinary machine and drives it.
//
// What: it downloads a hypervisor, a kernel and Xen's tools as packages of a
// Debian suite, packs them into memory-only images, boots them under QEMU
// without hardware virtualisation, and gives its caller a dom0 to run
// processes in and guests to run shell scripts in.
//
// Why: a block backend is right only when frontends that we did not write
// agree. Linux blkfront and GRUB are such frontends, and libxl is such a
// toolstack; all three run here on a laptop and in CI.
//
// Who calls it: the conformance tests (build tag "lab"), the demo and the
// benchmarks. It is the only room that knows QEMU's flags and where Debian
// puts Xen's files. It never touches the network after Prepare, never writes
// outside the cache directory and its own temporary directories, and knows
// nothing of xen-disk beyond the name of its module.
//
// The way of a boot:
//
//	Prepare    packages -> images             ~/.cache/xen-disk/lab/<suite>-<hash>
//	Boot       QEMU: Xen, dom0, its agent     one Machine
//	  agent    JSON lines over virtio-serial  internal/lab/agent, internal/lab/wire
//	StartGuest xl create, console over a pty  one Guest
package lab
