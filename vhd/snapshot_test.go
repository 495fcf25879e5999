package vhd

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSnapshot(t *testing.T) {
	other := handmade{kind: 3, size: 3 << 20, block: 4096, uuid: 0xD1}
	fixed := aFixed()
	cases := []struct {
		name          string
		parent, child string // file names
		image         []byte
		o             SnapshotOptions
		size, block   int64
		creator       Creator
	}{
		{"of dynamic", "p.vhd", "c.vhd", aDynamic().bytes(), SnapshotOptions{}, 1 << 20, handBlock, CreatorWindows},
		{"of other blocks", "p.vhd", "c.vhd", other.bytes(), SnapshotOptions{}, 3 << 20, 4096, CreatorWindows},
		{"of fixed", "p.vhd", "c.vhd", fixed.bytes(), SnapshotOptions{}, 1 << 20, 2 << 20, CreatorWindows},
		{"of blktap's", "p.vhd", "c.vhd", hasBatmap().bytes(), SnapshotOptions{}, 10 << 20, 2 << 20, CreatorXenServer},
		{"of blktap's, other blocks", "p.vhd", "c.vhd", hasBatmap().bytes(), SnapshotOptions{BlockBytes: 4096}, 10 << 20, 4096, CreatorWindows},
		{"of raw", "p.img", "c.vhd", make([]byte, 5<<20), SnapshotOptions{RawParent: true, Open: Options{RawParent: true}}, 5 << 20, 2 << 20, CreatorWindows},
		{"of raw with a part of a sector", "p.img", "c.vhd", make([]byte, 5<<20+511), SnapshotOptions{RawParent: true}, 5 << 20, 2 << 20, CreatorWindows},
		{"of raw that looks like a VHD", "p.img", "c.vhd", aDynamic().bytes(), SnapshotOptions{RawParent: true}, int64(len(aDynamic().bytes())), 2 << 20, CreatorWindows},
		{"in another directory", "a/b/p.vhd", "c/d/c.vhd", aDynamic().bytes(), SnapshotOptions{}, 1 << 20, handBlock, CreatorWindows},
		{"by its whole path", "a/p.vhd", "c/c.vhd", aDynamic().bytes(), SnapshotOptions{Absolute: true}, 1 << 20, handBlock, CreatorWindows},
		{"of a name beyond ASCII", "größe😀 %41.vhd", "c.vhd", aDynamic().bytes(), SnapshotOptions{}, 1 << 20, handBlock, CreatorWindows},
		{"of a name with a backslash", `a\b.vhd`, "c.vhd", aDynamic().bytes(), SnapshotOptions{}, 1 << 20, handBlock, CreatorWindows},
		{"of a name with a drive", `c:p.vhd`, "c.vhd", aDynamic().bytes(), SnapshotOptions{}, 1 << 20, handBlock, CreatorWindows},
		{"of a long name", strings.Repeat("p", 255), "c.vhd", aDynamic().bytes(), SnapshotOptions{}, 1 << 20, handBlock, CreatorWindows},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			parent := save(t, dir, c.parent, c.image)
			child := filepath.Join(dir, c.child)
			if err := os.MkdirAll(filepath.Dir(child), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := Snapshot(parent, child, c.o); err != nil {
				t.Fatal(err)
			}
			chain, err := openAll(t, child, Options{RawParent: true})
			if err != nil {
				t.Fatal(err)
			}
			m := chain[0]
			if len(chain) != 2 || len(m.problems) != 0 || m.footer.Type != TypeDifferencing ||
				m.sizeBytes != c.size || m.blockBytes() != c.block || m.footer.Creator != c.creator {
				t.Errorf("got %d images, %v of %d bytes in blocks of %d by %v, problems %+v",
					len(chain), m.footer.Type, m.sizeBytes, m.blockBytes(), m.footer.Creator, m.problems)
			}
			if got, err := os.ReadFile(parent); !slices.Equal(got, c.image) || err != nil {
				t.Error("the parent changed")
			}
			if chain[1].raw != c.o.RawParent || m.header.ParentTimestamp == 0 {
				t.Errorf("got raw %v, timestamp %d", chain[1].raw, m.header.ParentTimestamp)
			}
			holdInvariants(t, m)
		})
	}
}

// TestSnapshotBytes looks at the locators by the specification's offsets: they
// are what blktap writes.
func TestSnapshotBytes(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, "base/p.vhd", aDynamic().bytes())
	if err := Snapshot(filepath.Join(dir, "base/p.vhd"), filepath.Join(dir, "c.vhd"), SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "c.vhd"))
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	want := []struct{ code, text string }{
		{"MacX", "file://./base/p.vhd"},
		{"W2ku", string(utf16LE(`.\base\p.vhd`))},
		{"W2ru", string(utf16LE(`.\base\p.vhd`))},
		{"\x00\x00\x00\x00", ""},
	}
	last := uint64(0)
	for i, w := range want {
		e := b[512+576+24*i:]
		at, n := be.Uint64(e[16:]), be.Uint32(e[8:])
		if string(e[:4]) != w.code || string(b[at:at+uint64(n)]) != w.text {
			t.Errorf("locator %d: got %q, %q, want %q", i, e[:4], b[at:at+uint64(n)], w)
		}
		if space := be.Uint32(e[4:]); w.text != "" && (space < n || space%512 != 0 || at%512 != 0) {
			t.Errorf("locator %d: got %d bytes of space at %d", i, space, at)
		}
		last = max(last, at+uint64(be.Uint32(e[4:])))
	}
	if table := be.Uint64(b[512+16:]); table-last < last-4096 || table%4096 != 0 {
		t.Errorf("got locators up to %d and the BAT at %d, want room for as many", last, table)
	}
	if got := string(b[512+64:][:12]); got != string(utf16BE("p.vhd\x00")) {
		t.Errorf("got name %q", got)
	}
	if got := string(b[512+40:][:16]); got != strings.Repeat("\xD1", 16) {
		t.Errorf("got parent UUID %q", got)
	}
}

// TestMovedSnapshot: parent and child are moved together.
func TestMovedSnapshot(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, "a/base/p.vhd", aDynamic().bytes())
	if err := Snapshot(filepath.Join(dir, "a/base/p.vhd"), filepath.Join(dir, "a/c.vhd"), SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	readBack(t, filepath.Join(dir, "b/c.vhd"))
}

func TestSnapshotRefuses(t *testing.T) {
	good := aDynamic().bytes()
	noUUID := aDynamic()
	noUUID.uuid = 0
	cases := []struct {
		name, parent string
		image        []byte
		o            SnapshotOptions
		want         error
	}{
		{"raw disk", "p.img", make([]byte, 1<<20), SnapshotOptions{}, ErrNotVHD},
		{"raw disk without a sector", "p.img", make([]byte, 511), SnapshotOptions{RawParent: true}, fs.ErrInvalid},
		{"damaged", "p.vhd", withEntry(aDynamic(), 9, 0), SnapshotOptions{}, ErrDamaged},
		{"no UUID", "p.vhd", noUUID.bytes(), SnapshotOptions{}, fs.ErrInvalid},
		{"name with a line break", "p\n.vhd", good, SnapshotOptions{}, fs.ErrInvalid},
		{"name that is no text", "p\xff.vhd", good, SnapshotOptions{}, fs.ErrInvalid},
		{"too deep", "p.vhd", good, SnapshotOptions{Open: Options{MaxDepth: 1}}, ErrTooDeep},
		{"block size", "p.vhd", good, SnapshotOptions{BlockBytes: 1000}, fs.ErrInvalid},
		{"blktap's batmap for other blocks", "p.vhd", good, SnapshotOptions{Creator: CreatorXenServer}, fs.ErrInvalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			parent, child := save(t, dir, c.parent, c.image), filepath.Join(dir, "c.vhd")
			if err := Snapshot(parent, child, c.o); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if _, err := os.Lstat(child); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v, want no child", err)
			}
		})
	}
	dir := t.TempDir()
	parent, child := save(t, dir, "p.vhd", good), save(t, dir, "c.vhd", []byte("precious"))
	if err := Snapshot(parent, child, SnapshotOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("child exists: got %v, want fs.ErrExist", err)
	}
	if err := Snapshot(filepath.Join(dir, "none"), filepath.Join(dir, "n"), SnapshotOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no parent: got %v, want fs.ErrNotExist", err)
	}
}
