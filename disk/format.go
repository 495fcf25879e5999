package disk

import (
	"fmt"
	"strconv"
)

// Format names how an image is laid out and reached. The zero value is Raw,
// which keeps data and reports every error as an error.
type Format uint8

const (
	// Raw is the bytes of the file as they are, by pread(2) and pwrite(2).
	Raw Format = iota
	// Mmap is the same bytes, by mmap(2) and memcpy.
	Mmap
	// VHD is Microsoft's virtual hard disk, by package vhd.
	VHD
	// Discard is no image at all: it acknowledges everything and does nothing.
	Discard
)

// String returns the name that ParseFormat takes.
func (f Format) String() string {
	switch f {
	case Raw:
		return "raw"
	case Mmap:
		return "mmap"
	case VHD:
		return "vhd"
	case Discard:
		return "discard"
	}
	return "Format(" + strconv.Itoa(int(f)) + ")"
}

// ParseFormat is the inverse of String. It knows every named format, also one
// that Open does not support; the error names those that there are.
func ParseFormat(s string) (Format, error) {
	for f := Raw; f <= Discard; f++ {
		if f.String() == s {
			return f, nil
		}
	}
	return Raw, fmt.Errorf("parse format %q: want raw, mmap, vhd or discard", s)
}
