package vhd

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// lying is a child with one locator that is changed, and a good second one.
func lying(edit func(entry []byte, file []byte, textAt int)) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		h := aChild(0xC1, 0xAA, locMacX("file://./none"), locW2ru(`.\p.vhd`))
		save(t, dir, "p.vhd", aParent(0xAA))
		return save(t, dir, "x.vhd", withHeaderAndFile(h, edit))
	}
}

func withHeaderAndFile(h handmade, edit func(entry []byte, file []byte, textAt int)) []byte {
	b := h.bytes()
	edit(b[512+576:], b, h.locatorAt(0))
	resum(b[512:1536], 36)
	return b
}

func locatorFixtures() []fixture {
	entry := func(at int, v uint32) func(testing.TB, string) string {
		return lying(func(e, _ []byte, _ int) { put32(e, at, v) })
	}
	text := func(code string, s []byte) func(testing.TB, string) string {
		return lying(func(e, file []byte, at int) {
			copy(e, code)
			put32(e, 8, uint32(len(s)))
			copy(file[at:], s)
		})
	}
	return []fixture{
		{name: "m46 locator past the end", place: lying(func(e, _ []byte, _ int) { put64(e, 16, 1<<40) })},
		{name: "m46 locator at 2^64-1", place: lying(func(e, _ []byte, _ int) { put64(e, 16, 1<<64-1) })},
		{name: "m47 locator of 4 GiB", place: entry(8, 1<<32-1)},
		{name: "m47 locator of 4 GiB in as much space", place: lying(func(e, _ []byte, _ int) {
			put32(e, 4, 1<<32-1)
			put32(e, 8, 1<<32-1)
		})},
		{name: "m48 locator longer than its space", place: entry(8, 513)},
		{name: "locator of 0 bytes", place: entry(8, 0)},
		{name: "locator without space", place: entry(4, 0)},
		{name: "m49 odd space", place: entry(4, 777)},
		{name: "m50 UTF-16 of odd length", place: text("W2ku", []byte("abc"))},
		{name: "m51 lone surrogate", place: text("W2ku", []byte{0x3d, 0xd8, 'a', 0})},
		{name: "m56 zero inside", place: text("W2ku", utf16LE("p.vhd\x00/etc"))},
		{name: "m52 unknown platform", place: text("what", []byte("p.vhd"))},
		{name: "Mac alias", place: text("Mac ", []byte("p.vhd"))},
		{name: "locator that names itself", place: text("MacX", []byte("file://./x.vhd"))},
		{name: "locator that names a directory", place: text("MacX", []byte("file://."))},
		{name: "m55 locator that names a device", place: text("MacX", []byte("file:///dev/zero"))},
		{name: "locator longer than a path may be", place: lying(func(e, file []byte, at int) {
			for i := range 512 {
				file[at+i] = 'x'
			}
			put32(e, 8, 512)
		})},
		{name: "all locators name nothing", place: func(t testing.TB, dir string) string {
			return save(t, dir, "x.vhd", aChild(0xC1, 0xAA, locMacX("file://./a"), locW2ku(`C:\b`), locW2ru("c")).bytes())
		}, ro: "parent", rw: "parent"},
		{name: "c16 no locators", image: aChild(0xC1, 0xAA).bytes(), ro: "parent", rw: "parent"},
	}
}

func parentFixtures() []fixture {
	files := func(child handmade, parent func(t testing.TB, dir string)) func(testing.TB, string) string {
		return func(t testing.TB, dir string) string {
			parent(t, dir)
			return save(t, dir, "x.vhd", child.bytes())
		}
	}
	image := func(b []byte) func(testing.TB, string) {
		return func(t testing.TB, dir string) { save(t, dir, "p.vhd", b) }
	}
	child := aChild(0xC1, 0xD1, locW2ru(`.\p.vhd`))
	rawChild := aChild(0xC1, 0, locW2ru(`.\p.vhd`))
	damaged := withEntry(aDynamic(), 9, 0)
	larger := handmade{kind: 3, size: 8 << 20, block: 4096, uuid: 0xD1, blocks: []int{7}}
	smaller := handmade{kind: 3, size: 512, block: 2 << 20, uuid: 0xD1, blocks: []int{0}}
	fixed := aFixed()
	fixed.uuid = 0xD1
	self := aChild(0xC1, 0xC1, locW2ru(`.\x.vhd`))
	return []fixture{
		{name: "dynamic parent", place: files(child, image(aDynamic().bytes()))},
		{name: "fixed parent", place: files(child, image(fixed.bytes()))},
		{name: "m53 itself", place: files(self, func(testing.TB, string) {}), ro: "parent", rw: "parent"},
		{name: "row 45 itself by a hard link", place: func(t testing.TB, dir string) string {
			path := save(t, dir, "x.vhd", child.bytes())
			if err := os.Link(path, filepath.Join(dir, "p.vhd")); err != nil {
				t.Fatal(err)
			}
			return path
		}, ro: "parent", rw: "parent"},
		{name: "row 45 itself by a symbolic link", place: func(t testing.TB, dir string) string {
			path := save(t, dir, "x.vhd", child.bytes())
			if err := os.Symlink("x.vhd", filepath.Join(dir, "p.vhd")); err != nil {
				t.Fatal(err)
			}
			return path
		}, ro: "parent", rw: "parent"},
		{name: "m55 fifo as parent", place: files(child, func(t testing.TB, dir string) {
			if err := syscall.Mkfifo(filepath.Join(dir, "p.vhd"), 0o666); err != nil {
				t.Fatal(err)
			}
		}), ro: "parent", rw: "parent"},
		{name: "m57 raw parent", place: files(rawChild, image([]byte("disk"))), ro: "raw-parent", rw: "raw-parent"},
		{name: "m57 raw parent, permitted", place: files(rawChild, image(make([]byte, 1<<20))), with: Options{RawParent: true}},
		{name: "m57 raw parent that looks like a VHD", place: files(rawChild, image(aDynamic().bytes())), with: Options{RawParent: true}},
		{name: "m58 parent of another UUID", place: files(child, image(aFixed().bytes())), ro: "parent", rw: "parent"},
		{name: "m58 the same, any permitted", place: files(child, image(aFixed().bytes())), with: Options{AnyParent: true}},
		{name: "parent that is no VHD", place: files(child, image(make([]byte, 1<<20))), ro: "parent", rw: "parent"},
		{name: "parent that is damaged", place: files(child, image(damaged))},
		{name: "c19 larger parent, smaller blocks", place: files(child, image(larger.bytes()))},
		{name: "c20 smaller parent, larger blocks", place: files(child, image(smaller.bytes()))},
	}
}

// hasBatmap is a dynamic image of blktap's.
func hasBatmap() handmade {
	return handmade{kind: 3, size: 10 << 20, block: 2 << 20, uuid: 0xB1, creator: "tap\x00", version: 0x00010003,
		blocks: []int{0, 3}, batmap: true}
}

func batmapFixtures() []fixture {
	edit := func(at int, v uint32) []byte {
		h := hasBatmap()
		return edited(h, func(b []byte) { put32(b, h.batmapAt()+at, v) })
	}
	none := hasBatmap()
	none.batmap = false
	old := none
	old.version = 0x00000001
	noted := func(name string, image []byte) fixture {
		return fixture{name: name, image: image, problems: []string{"batmap"}}
	}
	return []fixture{
		{name: "batmap", image: hasBatmap().bytes()},
		{name: "no batmap, as blktap 0.1 has none", image: old.bytes()},
		noted("m63 no batmap", none.bytes()),
		noted("m64 batmap of 0 sectors", edit(16, 0)),
		noted("m65 batmap at 2^50", edit(8, 1<<18)),
		{name: "m66 batmap of 2^32-1 sectors", image: edit(16, 1<<32-1)},
		noted("m67 batmap sum", edit(24, 1)),
		{name: "m68 batmap has what the BAT has not", image: edited(hasBatmap(), func(b []byte) {
			h := hasBatmap()
			b[h.batmapAt()+512] = 0xFF
			put32(b, h.batmapAt()+24, onesSum(b[h.batmapAt()+512:][:512]))
		}), problems: []string{"batmap-stale"}},
		noted("m69 batmap version 2", edit(20, 0x00020000)),
		{name: "encrypted", image: edited(hasBatmap(), func(b []byte) {
			h := hasBatmap()
			b[h.batmapAt()+29] = 1
		}), ro: "encrypted", rw: "encrypted"},
		{name: "encrypted, and the batmap is worthless", image: edited(hasBatmap(), func(b []byte) {
			h := hasBatmap()
			b[h.batmapAt()+29], b[h.batmapAt()+512] = 1, 0x7F
		}), ro: "encrypted", rw: "encrypted"},
	}
}
