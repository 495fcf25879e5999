package vhd

import (
	"cmp"
	"slices"
)

// Report is what Check found, and Repair did and left.
type Report struct {
	// Images are those of the chain that could be opened, the leaf first.
	Images []ImageReport `json:"images"`
	// Problems are those of all images, of the leaf first.
	Problems []Problem `json:"problems"`
	// Mended are the problems that Repair has removed.
	Mended []Problem `json:"mended,omitempty"`
	// Lost are the parts of the disk whose data Repair could not keep, in
	// order; at most maxListed of them.
	Lost []Range `json:"lost,omitempty"`
	// LostBytes is the length of all of them.
	LostBytes int64 `json:"lost_bytes,omitempty"`
}

// ImageReport counts what one image has.
type ImageReport struct {
	Path   string `json:"path"`
	Blocks int64  `json:"blocks"`
	// Allocated blocks are in the BAT; of those that are complete, the image
	// has every sector.
	Allocated int64 `json:"blocks_allocated"`
	Complete  int64 `json:"blocks_complete"`
	// LeakedBytes is space in the file that nothing uses.
	LeakedBytes int64 `json:"leaked_bytes"`
}

// Range is a part of a disk, in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// worst is the severity of the worst problem.
func (r *Report) worst() Severity {
	if len(r.Problems) == 0 {
		return Note
	}
	return slices.MaxFunc(r.Problems, func(a, b Problem) int { return cmp.Compare(a.Severity, b.Severity) }).Severity
}

// Clean says that nothing is wrong: there are notes at most.
func (r *Report) Clean() bool { return r.worst() == Note }

// Leaks says that nothing is wrong but that space is wasted.
func (r *Report) Leaks() bool { return r.worst() == Leak }

// Corrupt says that an image must be repaired, or cannot be.
func (r *Report) Corrupt() bool { return r.worst() >= Damage }

// lose records that a part of the disk has lost its data. Parts come in order.
func (r *Report) lose(at, end int64) {
	if end <= at {
		return
	}
	r.LostBytes += end - at
	if n := len(r.Lost); n > 0 && r.Lost[n-1].Offset+r.Lost[n-1].Length == at {
		r.Lost[n-1].Length += end - at
	} else if n < maxListed {
		r.Lost = append(r.Lost, Range{at, end - at})
	}
}
