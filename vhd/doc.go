// Package vhd reads, writes, makes, checks and mends images in Microsoft's
// Virtual Hard Disk format: fixed, dynamic and differencing, and chains of
// them.
//
// Why: no implementation at hand is right everywhere. QEMU reads differencing
// disks as zeros and spoils them by writing; blktap's libvhd is wrong for
// blocks that are not 2 MiB, never flushes, and leaves an image without its
// footer when it is killed.
//
// Who calls it: package disk of xen-disk, and anyone who has a VHD. It needs
// the standard library only.
//
// What it never does: it does not guess whether a file is a VHD (the first
// sector of a raw disk belongs to its guest, who can put a footer there), it
// follows no parent that is not checked, it allocates nothing that the file's
// length does not justify, and it writes no metadata through a mapping.
//
// # The bytes
//
// All integers are big-endian, a sector is 512 bytes ("Virtual Hard Disk
// Image Format Specification" 1.0, Microsoft, 2006-10-11).
//
//	fixed:        | data (current size) | footer 512 |
//
//	dynamic and   | footer copy 512 | header 1024 | parent locators | BAT |
//	differencing: | batmap | { gap | block bitmap | block data } ... | slack |
//	              | footer 512 |
//
//	BAT:          one u32 a block: the sector of its bitmap, or 0xFFFFFFFF
//	block bitmap: one bit a sector, most significant first; 1: it is here,
//	              0: it is in the parent, or zeros where there is none
//	batmap:       of blktap's images: one bit a block; 1: all its sectors are
//	              here, 0: look at its bitmap
//
// All but the first and the last may lie anywhere between them.
//
// # What is believed
//
// The footer at the end is the one that counts. Its copy at the beginning is
// believed where that is missing or bad, if a good header bears it out, and
// never for a fixed image. Lengths, offsets and BAT entries are held against
// the length of the file. What is wrong with them is a [Problem] with a
// [Severity], or an [ImageError] where there is nothing to go on. An image
// with Damage opens for reading; to be written it needs [Repair], but for
// missing footers, which opening it for writing brings back.
//
// A parent is what has the UUID that the child names. It is looked for where
// the locators say, in their order, and then by name.
package vhd

// SectorBytes is the unit of the format, whatever the device below has.
const SectorBytes = 512
