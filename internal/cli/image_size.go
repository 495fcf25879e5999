package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// byteSize is a number of bytes on the command line.
type byteSize int64

// units are powers of 1024, as truncate(1) and qemu-img(1) have them. KB, MB
// and GB are left out: truncate takes them for powers of 1000, others do not,
// and a disk that is 7 % too small is noticed late.
func unitBytes(name string) (int64, bool) {
	switch name {
	case "", "B":
		return 1, true
	case "K", "KiB":
		return 1 << 10, true
	case "M", "MiB":
		return 1 << 20, true
	case "G", "GiB":
		return 1 << 30, true
	case "T", "TiB":
		return 1 << 40, true
	}
	return 0, false
}

var errSize = errors.New("sizes are like 10GiB, 512M, 1.5T or 1048576 (bytes)")

// UnmarshalText reads what a person types.
func (s *byteSize) UnmarshalText(text []byte) error {
	at := strings.TrimLeft(string(text), "0123456789.")
	number := strings.TrimSuffix(string(text), at)
	unit, ok := unitBytes(strings.TrimPrefix(at, " "))
	if !ok {
		return fmt.Errorf("%q: %w", text, errSize)
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n > math.MaxInt64/unit {
			return fmt.Errorf("%q is too large: %w", text, errSize)
		}
		*s = byteSize(n * unit)
		return nil
	}
	f, err := strconv.ParseFloat(number, 64)
	f *= float64(unit)
	if err != nil || f != math.Trunc(f) || f > 1<<53 { // above, floats have gaps
		return fmt.Errorf("%q: %w", text, errSize)
	}
	*s = byteSize(f)
	return nil
}

// sizeText is a number of bytes for people, exact where 3 digits are not.
func sizeText(n int64) string {
	short := humanize.IBytes(uint64(n))
	var s byteSize
	if s.UnmarshalText([]byte(strings.ReplaceAll(short, " ", ""))) == nil && int64(s) == n {
		return short
	}
	return fmt.Sprintf("%s (%d bytes)", short, n)
}
