package blkback

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Device numbers: xen/docs/man/xen-vbd-interface.7. A devid names a disk and
// a partition of it in one of four spaces.
const (
	majorXVD = 202
	majorSD  = 8
	majorHD0 = 3
	majorHD1 = 22

	extendedFlag = 1 << 28
	maxDisk      = 1<<20 - 1
)

// ErrVdev reports a name that is no virtual device.
var ErrVdev = errors.New("not a virtual device name")

// ParseVdev turns a name such as xvdb, xvda1, sda or hdc into its devid.
func ParseVdev(name string) (devid uint32, err error) {
	bad := fmt.Errorf("%q: %w", name, ErrVdev)
	space, rest := "", ""
	for _, s := range []string{"xvd", "sd", "hd"} {
		if r, ok := strings.CutPrefix(name, s); ok {
			space, rest = s, r
			break
		}
	}
	letters := strings.TrimRight(rest, "0123456789")
	digits := rest[len(letters):]
	disk, ok := diskNumber(letters)
	if space == "" || !ok {
		return 0, bad
	}
	part := uint64(0)
	if digits != "" {
		part, err = strconv.ParseUint(digits, 10, 8)
		if err != nil || part == 0 || digits[0] == '0' {
			return 0, bad
		}
	}
	devid, ok = number(space, disk, uint32(part))
	if !ok {
		return 0, bad
	}
	return devid, nil
}

func number(space string, disk, part uint32) (uint32, bool) {
	switch space {
	case "sd":
		return majorSD<<8 | disk<<4 | part, disk < 16 && part < 16
	case "hd":
		if disk < 2 {
			return majorHD0<<8 | disk<<6 | part, part < 64
		}
		return majorHD1<<8 | (disk-2)<<6 | part, disk < 4 && part < 64
	}
	if disk < 16 && part < 16 {
		return majorXVD<<8 | disk<<4 | part, true
	}
	return extendedFlag | disk<<8 | part, disk <= maxDisk && part < 256
}

// VdevName is the name that a Linux guest gives to a devid.
func VdevName(devid uint32) string {
	space, disk, part := split(devid)
	if space == "" {
		return strconv.FormatUint(uint64(devid), 10)
	}
	name := space + diskLetters(disk)
	if part != 0 {
		name += strconv.FormatUint(uint64(part), 10)
	}
	return name
}

// split takes a devid apart. The space is empty for one that is not known.
func split(devid uint32) (space string, disk, part uint32) {
	if devid&extendedFlag != 0 {
		return "xvd", devid >> 8 & maxDisk, devid & 0xff
	}
	switch devid >> 8 {
	case majorXVD:
		return "xvd", devid >> 4 & 15, devid & 15
	case majorSD:
		return "sd", devid >> 4 & 15, devid & 15
	case majorHD0:
		return "hd", devid >> 6 & 3, devid & 63
	case majorHD1:
		return "hd", devid>>6&3 + 2, devid & 63
	}
	return "", 0, 0
}

// nextXVD picks the disk after the highest one in use, as the original
// xen-disk did. A number that any of hd, sd and xvd uses counts: in an HVM
// guest hda and xvda are the same disk.
func nextXVD(used []uint32) (devid uint32, err error) {
	next := uint32(0)
	for _, devid := range used {
		if space, disk, _ := split(devid); space != "" && disk+1 > next {
			next = disk + 1
		}
	}
	devid, ok := number("xvd", next, 0)
	if !ok {
		return 0, fmt.Errorf("no device number is left after %s", VdevName(extendedFlag|maxDisk<<8))
	}
	return devid, nil
}

// diskNumber reads a, b, ... z, aa, ab, ... as 0, 1, ...
func diskNumber(letters string) (uint32, bool) {
	n := uint32(0)
	for i, c := range []byte(letters) {
		if c < 'a' || c > 'z' || i > 4 {
			return 0, false
		}
		n = n*26 + uint32(c-'a') + 1
	}
	return n - 1, n > 0
}

func diskLetters(n uint32) string {
	s := ""
	for n++; n > 0; n = (n - 1) / 26 {
		s = string(rune('a'+(n-1)%26)) + s
	}
	return s
}
