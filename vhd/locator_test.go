package vhd

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"
)

func TestDecodeLocator(t *testing.T) {
	cases := []struct {
		name, code string
		text       string
		want       []string // none: an error
	}{
		{"relative", "W2ru", string(utf16LE(`.\p.vhd`)), []string{"./p.vhd"}},
		{"one directory up", "W2ru", string(utf16LE(`..\base\p.vhd`)), []string{"../base/p.vhd"}},
		{"absolute of blktap", "W2ku", string(utf16LE(`\sr\p.vhd`)), []string{"/sr/p.vhd"}},
		{"drive", "W2ku", string(utf16LE(`C:\vm\p.vhd`)), []string{"p.vhd"}},
		{"drive and no root", "W2ku", string(utf16LE(`c:p.vhd`)), []string{"p.vhd"}},
		{"server", "W2ku", string(utf16LE(`\\host\share\p.vhd`)), []string{"p.vhd"}},
		{"beyond ASCII", "W2ru", string(utf16LE(`.\größe😀.vhd`)), []string{"./größe😀.vhd"}},
		{"zero at the end", "W2ru", string(utf16LE(".\\p.vhd\x00")), []string{"./p.vhd"}},
		{"odd length", "W2ru", "abc", nil},
		{"high half alone", "W2ru", "\x3d\xd8a\x00", nil},
		{"high half last", "W2ru", "a\x00\x3d\xd8", nil},
		{"low half alone", "W2ru", "\x00\xdea\x00", nil},
		{"zero inside", "W2ru", string(utf16LE("a\x00b")), nil},
		{"only zeros", "W2ru", "\x00\x00", nil},
		{"escape of a terminal", "W2ru", string(utf16LE("\x1b[2J.vhd")), nil},
		{"line break", "W2ru", string(utf16LE("a\nb")), nil},
		{"8 bits", "Wi2r", `.\p.vhd`, []string{"./p.vhd"}},
		{"8 bits of a drive", "Wi2k", `C:\p.vhd`, []string{"p.vhd"}},
		{"8 bits of Europe", "Wi2r", ".\\gr\xf6\xdfe.vhd", []string{"./größe.vhd"}},
		{"8 bits, zero inside", "Wi2r", "a\x00b", nil},
		{"URL of blktap", "MacX", "file://./p.vhd", []string{"./p.vhd"}},
		{"URL of blktap, up", "MacX", "file://../p.vhd", []string{"../p.vhd"}},
		{"URL", "MacX", "file:///sr/p.vhd", []string{"/sr/p.vhd"}},
		{"URL with a host", "MacX", "file://localhost/sr/p.vhd", []string{"/sr/p.vhd"}},
		{"URL in capitals", "MacX", "FILE://LOCALHOST/p.vhd", []string{"/p.vhd"}},
		{"URL with escapes", "MacX", "file:///a%20b.vhd", []string{"/a b.vhd", "/a%20b.vhd"}},
		{"URL with a bad escape", "MacX", "file://./100%.vhd", []string{"./100%.vhd"}},
		{"URL with a drive", "MacX", "file:///C:/vm/p.vhd", []string{"p.vhd"}},
		{"no URL", "MacX", "p.vhd", []string{"p.vhd"}},
		{"URL with an escaped zero", "MacX", "file://./a%00b", nil},
		{"URL that is no text", "MacX", "file://./\xff", nil},
		{"URL of nothing", "MacX", "file://", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := decodeLocator([4]byte([]byte(c.code)), []byte(c.text))
			if !slices.Equal(got, c.want) || (err != nil) != (c.want == nil) {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
			if err != nil && !errors.Is(err, errLocator) {
				t.Errorf("got %v, want errLocator", err)
			}
		})
	}
}

func TestIgnoredLocators(t *testing.T) {
	for _, code := range []string{"Mac ", "\x00\x00\x00\x00", "xxxx", "w2ru"} {
		paths, err := decodeLocator([4]byte([]byte(code)), []byte("p.vhd"))
		if paths != nil || err != nil {
			t.Errorf("%q: got %q, %v, want nothing", code, paths, err)
		}
	}
}

func TestLocatorCheck(t *testing.T) {
	const file = 1 << 20
	cases := []struct {
		name          string
		space, length uint32
		offset        uint64
		ok            bool
	}{
		{"in bytes", 512, 20, 1536, true},
		{"in sectors", 1, 512, 1536, true},
		{"odd space", 777, 777, 1536, true},
		{"to the end of the file", 512, 512, file - 512, true},
		{"empty", 512, 0, 1536, false},
		{"longer than its space", 512, 513, 1536, false},
		{"longer than its sectors", 1, 513, 1536, false},
		{"no space", 0, 20, 1536, false},
		{"4 GiB", 0xFFFFFFFF, 0xFFFFFFFF, 1536, false},
		{"longer than a path", 1 << 20, 64<<10 + 1, 1536, false},
		{"over the footer copy", 512, 20, 511, false},
		{"past the end", 512, 513, file - 512, false},
		{"beyond the end", 512, 20, file + 1, false},
		{"wraps", 512, 20, 1<<64 - 1, false},
		{"wraps to a negative", 512, 20, 1 << 63, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := Locator{DataSpace: c.space, DataLength: c.length, DataOffset: c.offset}
			if err := l.check(file); (err == nil) != c.ok {
				t.Errorf("got %v, want ok %v", err, c.ok)
			}
		})
	}
}

func TestParentName(t *testing.T) {
	cases := []struct {
		name string
		b    []byte
		want string
	}{
		{"last component", utf16BE("p.vhd"), "p.vhd"},
		{"path of Windows", utf16BE(`C:\vm\p.vhd`), `C:\vm\p.vhd`},
		{"byte order mark", utf16BE("\uFEFFp.vhd"), "p.vhd"},
		{"little-endian by its mark", utf16LE("\uFEFFp.vhd"), "p.vhd"},
		{"all the room", utf16BE(strings.Repeat("ä", 256)), strings.Repeat("ä", 256)},
		{"bytes behind the zero", utf16BE("p.vhd\x00junk"), "p.vhd"},
		{"empty", nil, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var h Header
			copy(h.parentName[:], c.b)
			got, err := h.name()
			if got != c.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
	var h Header
	copy(h.parentName[:], "\xd8\x00\x00a")
	if _, err := h.name(); err == nil {
		t.Error("half of a surrogate pair: got no error")
	}
}

func TestSetName(t *testing.T) {
	for path, want := range map[string]string{
		"/a/b/größe.vhd":               "größe.vhd",
		"p.vhd":                        "p.vhd",
		"/" + strings.Repeat("x", 257): "",
	} {
		var h Header
		h.setName(path)
		if got, err := h.name(); got != want || err != nil {
			t.Errorf("%q: got %q, %v, want %q", path, got, err, want)
		}
	}
}

// FuzzLocator: whatever a locator holds, its paths can be given to open(2).
func FuzzLocator(f *testing.F) {
	f.Add("W2ru", utf16LE(`.\p.vhd`))
	f.Add("W2ku", utf16LE(`C:\p.vhd`))
	f.Add("MacX", []byte("file://localhost/a%20b.vhd"))
	f.Add("Wi2r", []byte(`.\p.vhd`))
	f.Fuzz(func(t *testing.T, code string, text []byte) {
		var platform [4]byte
		copy(platform[:], code)
		paths, err := decodeLocator(platform, text)
		if err != nil && paths != nil {
			t.Errorf("got both %q and %v", paths, err)
		}
		for _, p := range paths {
			if p == "" || strings.IndexFunc(p, unicode.IsControl) >= 0 {
				t.Errorf("%q: got path %q", text, p)
			}
		}
	})
}
