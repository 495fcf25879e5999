package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// The platform codes of parent locators (the specification, "Parent Locator
// Entry"). An unknown one is ignored, as is platformMac, whose alias only a
// Macintosh of the time can follow.
const (
	platformW2ru = "W2ru" // relative path, UTF-16, little-endian
	platformW2ku = "W2ku" // absolute path, the same
	platformWi2r = "Wi2r" // relative path, 8-bit, deprecated
	platformWi2k = "Wi2k" // absolute path, the same
	platformMacX = "MacX" // file URL, UTF-8
	platformMac  = "Mac "
)

// maxLocatorBytes is what the longest path of Windows takes: 32767 units of
// UTF-16. Windows 10 reserves as much.
const maxLocatorBytes = 64 << 10

const fileURL = "file://"

// errLocator: a parent locator says nothing that can be used.
var errLocator = errors.New("bad parent locator")

// used says that the entry of the table is not empty.
func (l *Locator) used() bool { return l.Platform != [4]byte{} }

// space is how many bytes are reserved. The specification counts sectors;
// Microsoft, VirtualBox and blktap count bytes (libvhd.h,
// vhd_parent_locator_size).
func (l *Locator) space() int64 {
	if l.DataSpace < SectorBytes {
		return int64(l.DataSpace) * SectorBytes
	}
	return int64(l.DataSpace)
}

// check says whether the locator's text lies in a file of that length, behind
// the footer copy and inside the space that is reserved for it.
func (l *Locator) check(fileBytes int64) error {
	n := int64(l.DataLength)
	switch {
	case n == 0 || n > maxLocatorBytes:
		return fmt.Errorf("%w: length is %d, want 1 to %d", errLocator, n, maxLocatorBytes)
	case n > l.space():
		return fmt.Errorf("%w: length is %d in a space of %d", errLocator, n, l.space())
	case l.DataOffset < footerBytes || l.DataOffset > uint64(fileBytes) || n > fileBytes-int64(l.DataOffset):
		return fmt.Errorf("%w: %d bytes at %d are not in the file of %d", errLocator, n, l.DataOffset, fileBytes)
	}
	return nil
}

// decodeLocator returns the paths that a locator's text can mean, in the way
// that this system writes them, the likeliest first. There is none for a
// platform whose text is not a path.
func decodeLocator(platform [4]byte, text []byte) ([]string, error) {
	var paths []string
	switch string(platform[:]) {
	case platformW2ru, platformW2ku:
		s, err := decodeUTF16(text, binary.LittleEndian)
		if err != nil {
			return nil, err
		}
		paths = []string{windowsPath(s)}
	case platformWi2r, platformWi2k:
		paths = []string{windowsPath(decode8Bit(text))}
	case platformMacX:
		paths = decodeFileURL(string(text))
	default:
		return nil, nil
	}
	for _, p := range paths {
		if p == "" || !printable(p) {
			return nil, fmt.Errorf("%w: %q is not a path", errLocator, p)
		}
	}
	return paths, nil
}

// printable refuses what a hostile image would have a terminal or a log print.
func printable(path string) bool {
	return utf8.ValidString(path) && strings.IndexFunc(path, unicode.IsControl) < 0
}

// decodeUTF16 refuses what is not UTF-16. Zeros at the end are dropped: the
// specification wants none, and some programs end the text with one.
func decodeUTF16(b []byte, order binary.ByteOrder) (string, error) {
	if len(b)%2 != 0 {
		return "", fmt.Errorf("%w: %d bytes are not UTF-16", errLocator, len(b))
	}
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = order.Uint16(b[2*i:])
	}
	var s strings.Builder
	for i := 0; i < len(units); i++ {
		r := rune(units[i])
		if utf16.IsSurrogate(r) {
			r = utf8.RuneError
			if i+1 < len(units) {
				r = utf16.DecodeRune(rune(units[i]), rune(units[i+1]))
			}
			if r == utf8.RuneError {
				return "", fmt.Errorf("%w: half of a surrogate pair at byte %d", errLocator, 2*i)
			}
			i++
		}
		s.WriteRune(r)
	}
	return strings.TrimRight(s.String(), "\x00"), nil
}

func encodeUTF16(s string, order binary.AppendByteOrder) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, u)
	}
	return b
}

// decode8Bit takes what is not UTF-8 for ISO 8859-1, which Windows' Western
// code page is but for 27 signs.
func decode8Bit(b []byte) string {
	if utf8.Valid(b) {
		return strings.TrimRight(string(b), "\x00")
	}
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return strings.TrimRight(string(runes), "\x00")
}

// decodeFileURL takes file:///abs, file://localhost/abs and what blktap makes
// of a relative path, file://./p.vhd, which is no URL. blktap escapes nothing,
// so the text itself is the second meaning of one with a percent sign.
func decodeFileURL(s string) []string {
	s = strings.TrimRight(s, "\x00")
	if len(s) >= len(fileURL) && strings.EqualFold(s[:len(fileURL)], fileURL) {
		s = s[len(fileURL):]
		if host, path, ok := strings.Cut(s, "/"); ok && strings.EqualFold(host, "localhost") {
			s = "/" + path
		}
	}
	var paths []string
	if decoded, err := url.PathUnescape(s); err == nil && decoded != s {
		paths = append(paths, drivePath(decoded))
	}
	return append(paths, drivePath(s))
}

// drivePath turns the /C:/dir/p.vhd of a URL into p.vhd.
func drivePath(s string) string {
	if rest := strings.TrimPrefix(s, "/"); hasDrive(rest) {
		return lastComponent(rest)
	}
	return s
}

// windowsPath turns .\dir\p.vhd into ./dir/p.vhd. What hangs on a drive or a
// server is not here: only the last component is of use.
func windowsPath(s string) string {
	if hasDrive(s) || strings.HasPrefix(s, `\\`) {
		return lastComponent(s)
	}
	return strings.ReplaceAll(s, `\`, "/")
}

func hasDrive(s string) bool {
	return len(s) >= 2 && s[1] == ':' && (s[0]|0x20) >= 'a' && (s[0]|0x20) <= 'z'
}

// lastComponent is what follows the last slash or backslash, or the drive.
func lastComponent(s string) string {
	s = s[strings.LastIndexAny(s, `/\`)+1:]
	if hasDrive(s) {
		return s[2:]
	}
	return s
}

// name decodes the header's name of the parent: UTF-16, big-endian unless a
// byte order mark says otherwise, up to the first zero. Windows writes a full
// path, blktap the last component.
func (h *Header) name() (string, error) {
	b := h.parentName[:]
	for i := 0; i < len(b); i += 2 {
		if b[i] == 0 && b[i+1] == 0 {
			b = b[:i]
			break
		}
	}
	var order binary.ByteOrder = binary.BigEndian
	if len(b) >= 2 && b[0] == 0xFF && b[1] == 0xFE {
		order = binary.LittleEndian
	}
	s, err := decodeUTF16(b, order)
	if err != nil {
		return "", err
	}
	if s = strings.TrimPrefix(s, "\uFEFF"); !printable(s) {
		return "", fmt.Errorf("%w: %q is not a path", errLocator, s)
	}
	return s, nil
}

// setName stores the last component of a path. One that there is no room for
// is left to the locators.
func (h *Header) setName(path string) {
	h.parentName = [512]byte{}
	if b := encodeUTF16(filepath.Base(path), binary.BigEndian); len(b) <= len(h.parentName) {
		copy(h.parentName[:], b)
	}
}
