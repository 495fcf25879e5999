package blkback

import (
	"fmt"

	"xen-disk/disk"
	"xen-disk/ring"
)

// limitsOf is what a vbd on this disk lets a frontend ask for. It says the
// same as features, to the ring.
func limitsOf(d disk.Disk) ring.Limits {
	info := d.Info()
	granularity, _ := discards(d)
	return ring.Limits{
		Sectors: uint64(info.SizeBytes) / ring.SectorBytes, ReadOnly: info.ReadOnly,
		Flush: true, Discard: granularity > 0,
	}
}

// features are the nodes that a frontend reads at Connected (blkif.h).
// Features that are not there are written as 0: MiniOS reads both
// feature-barrier and feature-flush-cache.
func features(d disk.Disk) []node {
	info := d.Info()
	flags := 0
	if info.ReadOnly {
		flags |= vdiskReadOnly
	}
	nodes := []node{
		{"feature-barrier", "0"},
		{"feature-flush-cache", "1"},
		{"feature-persistent", "0"},
		{"sectors", fmt.Sprint(info.SizeBytes / ring.SectorBytes)},
		{"info", fmt.Sprint(flags)},
		{"sector-size", fmt.Sprint(ring.SectorBytes)},
		{"physical-sector-size", fmt.Sprint(physicalSector(info))},
		{"hotplug-status", "connected"},
	}
	return append(nodes, discardNodes(d)...)
}

// discardNodes say whether and in which pieces a disk takes discards.
//
// Linux' blkfront (blkfront_setup_discard) and win-xenvbd
// (FrontendReadDiskInfo) read all four. Of granularity and alignment there
// must be both: blkfront before 2021 takes neither if one is missing, and
// blkif.h lets it. FreeBSD's and NetBSD's frontends read none and send no
// discards. discard-enable is a toolstack's to write; its default is 1.
func discardNodes(d disk.Disk) []node {
	granularity, alignment := discards(d)
	if granularity == 0 {
		return []node{{"feature-discard", "0"}}
	}
	return []node{
		{"feature-discard", "1"},
		{"discard-granularity", fmt.Sprint(granularity)},
		{"discard-alignment", fmt.Sprint(alignment)},
		{"discard-secure", "0"},
	}
}

// discards says in which pieces a disk takes discards, in bytes. None are
// offered where the granularity is 0. A disk that keeps nothing acknowledges
// them as it does everything, so that they can be tried without an image.
func discards(d disk.Disk) (granularity, alignment int64) {
	if d.Info().ReadOnly {
		return 0, 0
	}
	switch d := d.(type) {
	case disk.Discarder:
		return d.Granularity()
	case disk.Sink:
		return ring.SectorBytes, 0
	}
	return 0, 0
}

// vdiskReadOnly is the bit of the info node (blkif.h, VDISK_READONLY).
const vdiskReadOnly = 4

// physicalSector is the largest power of two, up to the disk's own physical
// sector, that divides the size: blkif.h asks for sectors * 512 to be a
// multiple of it.
func physicalSector(info disk.Info) int {
	n := max(info.PhysicalSectorBytes, ring.SectorBytes)
	for info.SizeBytes%int64(n) != 0 {
		n /= 2
	}
	return n
}
