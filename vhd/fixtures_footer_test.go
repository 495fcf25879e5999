package vhd

import (
	"bytes"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func footerFixtures() []fixture {
	good := aDynamic().bytes()
	n := len(good)
	flip := func(at ...int) []byte {
		b := slices.Clone(good)
		for _, i := range at {
			b[i]++
		}
		return b
	}
	field32 := func(at int, v uint32) []byte {
		return withFooter(aDynamic(), func(f []byte) { put32(f, at, v) })
	}
	return []fixture{
		{name: "m01 empty", image: nil, ro: "footer-missing", rw: "footer-missing"},
		{name: "m02 one byte short of a footer", image: good[n-511:], ro: "footer-missing", rw: "footer-missing"},
		{name: "m02 a footer alone", image: good[n-512:], ro: "header-offset", rw: "header-offset"},
		{name: "m03 text", image: bytes.Repeat([]byte("text"), 1<<18), ro: "footer-missing", rw: "footer-missing"},
		{name: "m04 both sums wrong", image: flip(100, n-1), ro: "footer-checksum", rw: "footer-checksum"},
		{name: "m05 last sum wrong", image: flip(n - 1), problems: []string{"footer-missing"}},
		{name: "m05 last footer gone", image: good[:n-512], problems: []string{"footer-missing"}},
		{name: "m05 last footer cut", image: good[:n-200], problems: []string{"footer-missing"}},
		{name: "m05 last footer zeros", image: append(slices.Clone(good[:n-512]), make([]byte, 512)...),
			problems: []string{"footer-missing"}},
		{name: "m05 zeros behind the footer", image: append(slices.Clone(good), make([]byte, 1<<20)...),
			problems: []string{"footer-missing"}},
		{name: "m06 mirror's sum wrong", image: flip(100), problems: []string{"mirror-bad"}},
		{name: "m06 mirror gone", image: append(make([]byte, 512), good[512:]...), problems: []string{"mirror-bad"}},
		{name: "m07 mirror of another size", image: edited(aDynamic(), func(b []byte) {
			put64(b, 48, 2<<20)
			resum(b[:512], 64)
		}), problems: []string{"mirror-differs"}},
		{name: "m08 type none", image: field32(60, 0), ro: "disk-type", rw: "disk-type"},
		{name: "m09 type 1", image: field32(60, 1), ro: "disk-type", rw: "disk-type"},
		{name: "m09 type 5", image: field32(60, 5), ro: "disk-type", rw: "disk-type"},
		{name: "m09 type 6", image: field32(60, 6), ro: "disk-type", rw: "disk-type"},
		{name: "m10 type of all ones", image: field32(60, 1<<32-1), ro: "disk-type", rw: "disk-type"},
		{name: "m11 footer version 2", image: field32(12, 0x00020000), ro: "footer-version", rw: "footer-version"},
		{name: "m11 footer version 1.1", image: field32(12, 0x00010001)},
		{name: "m59 reserved bytes", image: withFooter(aDynamic(), func(f []byte) { f[300] = 1 })},
		{name: "m60 no feature", image: field32(8, 0)},
		{name: "m61 saved state 2", image: withFooter(aDynamic(), func(f []byte) { f[84] = 2 })},
		{name: "m62 poisoned", image: withFooter(aDynamic(), func(f []byte) { copy(f, "v_poison") }),
			ro: "poisoned", rw: "poisoned"},
		{name: "m62 poisoned mirror", image: append(withFooter(aDynamic(), func(f []byte) { copy(f, "v_poison") })[:n-512], make([]byte, 512)...),
			ro: "poisoned", rw: "poisoned"},
		{name: "c05 dynamic of 511 bytes of footer", image: good[:n-1], problems: []string{"footer-511"}},
		{name: "c05 mirror of 511 bytes too", image: append(slices.Clone(good[:511]), good[511:n-1]...), problems: []string{"footer-511"}},
		{name: "hidden without a new sum", image: edited(aDynamic(), func(b []byte) { b[85], b[n-512+85] = 1, 1 })},
		{name: "timestamp of the future", image: field32(24, 1<<32-1)},
		{name: "m46 split", place: placeSplit("x.vhd", "x.v01"), ro: "split", rw: "split"},
		{name: "m46 last part of a split", place: placeSplit("x.vhd", "x.v01.gone"), ro: "footer-missing", rw: "footer-missing"},
		{name: "m46 middle of a split", place: placeSplit("x.v01", "x.v02"), ro: "split", rw: "split"},
	}
}

// placeSplit makes the parts of a split fixed image: the first has no footer.
func placeSplit(first, second string) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		b := aFixed().bytes()
		save(t, dir, second, b[len(b)/2:])
		return save(t, dir, first, b[:len(b)/2])
	}
}

func sizeFixtures() []fixture {
	size := func(v uint64) []byte {
		return withFooter(aDynamic(), func(f []byte) { put64(f, 48, v) })
	}
	return []fixture{
		{name: "m38 size 0", image: size(0), ro: "size", rw: "size"},
		{name: "m38 size 511", image: size(511), ro: "size", rw: "size"},
		{name: "m39 size not of whole sectors", image: size(1<<20 - 100), problems: []string{"size-odd"}},
		{name: "m40 size 2^63", image: size(1 << 63), ro: "size", rw: "size"},
		{name: "m41 size 2^64-1", image: size(1<<64 - 1), ro: "size", rw: "size"},
		{name: "m41 size 2^63-1", image: size(1<<63 - 1), ro: "block-count", rw: "block-count"},
		{name: "size of one sector", image: size(512)},
		{name: "size one sector more than the BAT", image: size(1<<20 + 512), ro: "bat-size", rw: "bat-size"},
	}
}

func fixedFixtures() []fixture {
	good := aFixed().bytes()
	size := func(v uint64) []byte {
		return withFooter(aFixed(), func(f []byte) { put64(f, 48, v) })
	}
	slack := func(n int) []byte {
		return slices.Concat(good[:1<<20], make([]byte, n), good[1<<20:])
	}
	planted := edited(aFixed(), func(b []byte) {
		h := aChild(0xC1, 0, locMacX("file:///etc/passwd"))
		copy(b, h.bytes())
	})
	return []fixture{
		{name: "fixed", image: good},
		{name: "m42 fixed of 1 TiB in 1 MiB", image: size(1 << 40), ro: "fixed-short", rw: "fixed-short"},
		{name: "m42 fixed, one sector short", image: size(1<<20 + 512), ro: "fixed-short", rw: "fixed-short"},
		{name: "m42 fixed of 2^63-1", image: size(1<<63 - 1), ro: "fixed-short", rw: "fixed-short"},
		{name: "m43 fixed, file too long", image: slack(1 << 20), problems: []string{"fixed-slack"}},
		{name: "m43 fixed, one sector too long", image: slack(512), problems: []string{"fixed-slack"}},
		{name: "m39 fixed, size not of whole sectors", image: size(1<<20 - 100), problems: []string{"size-odd"}},
		{name: "m44 fixed, a guest's VHD in its first sector", image: planted},
		{name: "m45 raw, a guest's VHD in its first sector", image: planted[:1<<20], ro: "raw-parent", rw: "raw-parent"},
		{name: "m45 the same, raw parents permitted", image: planted[:1<<20], with: Options{RawParent: true},
			ro: "raw-parent", rw: "raw-parent"},
		{name: "m45 raw, a guest's footer of a fixed disk in its first sector",
			image: append(aFixed().footer(), make([]byte, 1<<20)...), ro: "footer-missing", rw: "footer-missing"},
		{name: "m45 raw, a guest's footer and no header",
			image: append(aDynamic().footer(), make([]byte, 1<<20)...), ro: "footer-missing", rw: "footer-missing"},
		{name: "c04 fixed with 511 bytes of footer", image: good[:len(good)-1], problems: []string{"footer-511"}},
		{name: "fixed without a footer", image: good[:1<<20], ro: "footer-missing", rw: "footer-missing"},
		{name: "m44 directory", place: func(t testing.TB, dir string) string { return dir }, ro: "not-regular", rw: "not-regular"},
		{name: "m44 not there", place: func(t testing.TB, dir string) string { return dir + "/x" }, ro: "not-exist", rw: "not-exist"},
		{name: "m44 /dev/zero", place: func(testing.TB, string) string { return "/dev/zero" }, ro: "not-regular", rw: "not-regular"},
		{name: "m44 fifo", place: placeFifo, ro: "not-regular", rw: "not-regular"},
		{name: "m44 sparse file of 2 EiB", with: withThin(1<<61, nil), ro: "footer-missing", rw: "footer-missing"},
		{name: "m44 sparse file of more", with: withThin(1<<61+512, nil), ro: "file-size", rw: "file-size"},
		{name: "m44 sparse file of 8 EiB", with: withThin(1<<63-1, nil), ro: "file-size", rw: "file-size"},
	}
}

func placeFifo(t testing.TB, dir string) string {
	path := filepath.Join(dir, "x.vhd")
	if err := syscall.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}
