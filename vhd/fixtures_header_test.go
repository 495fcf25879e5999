package vhd

import (
	"slices"
	"testing"
)

func headerFixtures() []fixture {
	good := aDynamic().bytes()
	offset := func(v uint64) []byte {
		return withFooter(aDynamic(), func(f []byte) { put64(f, 16, v) })
	}
	table := func(v uint64) []byte {
		return withHeader(aDynamic(), func(h []byte) { put64(h, 16, v) })
	}
	entries := func(v uint32) []byte {
		return withHeader(aDynamic(), func(h []byte) { put32(h, 28, v) })
	}
	bad := func(name string, image []byte, code string) fixture {
		return fixture{name: name, image: image, ro: code, rw: code}
	}
	flipped := slices.Clone(good)
	flipped[512+300]++
	more := aDynamic()
	more.entries = 4096
	return []fixture{
		{name: "dynamic", image: good},
		bad("m12 header version 2", withHeader(aDynamic(), func(h []byte) { put32(h, 24, 0x00020000) }), "header-version"),
		bad("m13 header cookie", withHeader(aDynamic(), func(h []byte) { h[0] = 'x' }), "header-cookie"),
		bad("m14 header sum", flipped, "header-checksum"),
		bad("m14 header bad, and no footer at the end", flipped[:len(flipped)-512], "footer-missing"),
		bad("m15 header past the end", offset(uint64(len(good))), "header-offset"),
		bad("m15 header cut by the footer", offset(uint64(len(good)-512-512)), "header-offset"),
		bad("m16 header not on a sector", offset(513), "header-offset"),
		bad("m17 header at 0", offset(0), "header-offset"),
		bad("m18 header at 2^64-1", offset(1<<64-1), "header-offset"),
		bad("m18 header at 2^64-512", offset(1<<64-512), "header-offset"),
		bad("m19 BAT past the end", table(uint64(len(good))), "bat-offset"),
		bad("m20 BAT at 2^64-512", table(1<<64-512), "bat-offset"),
		bad("m20 BAT at 2^63", table(1<<63), "bat-offset"),
		bad("m21 BAT over the header", table(1024), "bat-offset"),
		bad("m21 BAT over the footer copy", table(0), "bat-offset"),
		bad("BAT not on a sector", table(1537), "bat-offset"),
		bad("BAT over the footer", table(uint64(len(good)-512)), "bat-offset"),
		bad("m22 BAT of 2^32-1 entries", entries(1<<32-1), "bat-offset"),
		bad("m22 BAT of one entry too many for the file", entries(uint32(len(good)/4)), "bat-offset"),
		bad("m23 BAT one entry short", entries(15), "bat-size"),
		bad("m24 BAT without entries", entries(0), "bat-size"),
		{name: "c09 BAT larger than needed", image: more.bytes()},
		bad("m37 cut in the BAT", append(slices.Clone(good[:1536+32]), make([]byte, 3)...), "footer-missing"),
		bad("m37 cut in the BAT, with a footer", slices.Concat(good[:1536], good[:512]), "bat-offset"),
		{name: "m22 BAT in a hole of 2 EiB", with: withThin(1<<61, hollow(1<<45, 512, 1<<32-1)), ro: "block-count", rw: "block-count"},
		{name: "m22 one entry more than may be, in a hole", with: withThin(1<<61, hollow(1<<45+512, 2<<20, 1<<32-1)),
			ro: "block-count", rw: "block-count"},
		{name: "m22 BAT of 2 TiB in a hole", with: withThin(1<<61, hollow(1<<41, 2<<20, 1<<32-1)),
			rw: "bat-in-metadata", problems: []string{"bat-in-metadata", "footer-missing"}},
	}
}

// hollow is the metadata of a dynamic image whose BAT, at 4096, is a hole.
func hollow(sizeBytes uint64, block, entries uint32) map[int64][]byte {
	h := handmade{kind: 3, size: sizeBytes, block: block, entries: entries, uuid: 0xE1}
	b := make([]byte, 1536)
	copy(b, h.footer())
	h.putHeader(b)
	put64(b, 512+16, 4096)
	resum(b[512:], 36)
	return map[int64][]byte{0: b}
}

// BenchmarkLargestBAT: as many entries as there may be, all of them wrong.
func BenchmarkLargestBAT(b *testing.B) {
	f := newThinFile(1<<61, hollow(1<<45, 2<<20, 1<<32-1))
	b.ReportAllocs()
	for b.Loop() {
		if m, err := readImage("x.vhd", f); err != nil || m.blocks() != maxBlocks || m.writable() == nil {
			b.Fatal(err)
		}
	}
}

func blockSizeFixtures() []fixture {
	size := func(v uint32) []byte {
		return withHeader(aDynamic(), func(h []byte) { put32(h, 32, v) })
	}
	small := handmade{kind: 3, size: 64 << 10, block: 512, uuid: 0xD1, blocks: []int{127, 0}}
	four := handmade{kind: 3, size: 1 << 20, block: 4096, uuid: 0xD1, blocks: []int{255, 3}}
	large := handmade{kind: 3, size: 1 << 30, block: 256 << 20, uuid: 0xD1}
	usual := handmade{kind: 3, size: 5 << 20, block: 2 << 20, uuid: 0xD1, blocks: []int{2}}
	return []fixture{
		{name: "m25 block of 0", image: size(0), ro: "block-size", rw: "block-size"},
		{name: "m26 block of 3 sectors", image: size(1536), ro: "block-size", rw: "block-size"},
		{name: "m26 block of 2^32-1", image: size(1<<32 - 1), ro: "block-size", rw: "block-size"},
		{name: "m27 block of 256", image: size(256), ro: "block-size", rw: "block-size"},
		{name: "m28 block of 2 GiB", image: size(2 << 30), ro: "block-size", rw: "block-size"},
		{name: "m28 block of 512 MiB", image: size(512 << 20), ro: "block-size", rw: "block-size"},
		{name: "blocks of 512 bytes", image: small.bytes()},
		{name: "blocks of 4 KiB", image: four.bytes()},
		{name: "blocks of 2 MiB", image: usual.bytes()},
		{name: "blocks of 256 MiB", image: large.bytes()},
	}
}

func batFixtures() []fixture {
	good := aDynamic().bytes()
	h := aDynamic()
	n := len(good)
	sector := func(i int) uint32 { return uint32(h.blockAt(i) / 512) }
	past := uint32(n / 512)
	located := aDynamic()
	located.locators = []handLocator{locW2ru(`.\p`)}
	damaged := func(name string, image []byte, codes ...string) fixture {
		f := fixture{name: name, image: image, problems: codes}
		for _, c := range codes {
			if f.rw == "" && c != codeFooterMissing {
				f.rw = c
			}
		}
		return f
	}
	return []fixture{
		damaged("m29 entry past the end", withEntry(h, 9, past), "bat-beyond-end"),
		damaged("m29 entry at the footer", withEntry(h, 9, past-1), "bat-beyond-end"),
		damaged("m29 entry at 1 TiB", withEntry(h, 9, 1<<31), "bat-beyond-end"),
		damaged("m30 entry 0xFFFFFFFE", withEntry(h, 9, 1<<32-2), "bat-beyond-end"),
		damaged("m31 entry 0", withEntry(h, 9, 0), "bat-in-metadata"),
		damaged("m32 entry in the header", withEntry(h, 9, 2), "bat-in-metadata"),
		damaged("m32 entry in the BAT", withEntry(h, 9, 3), "bat-in-metadata"),
		damaged("m32 entry in a locator", withEntry(located, 9, 4), "bat-in-metadata"),
		damaged("m33 duplicate", withEntry(h, 9, sector(1)), "bat-overlap"),
		damaged("m33 three of one", edited(h, func(b []byte) {
			put32(b, handBATAt+4*9, sector(1))
			put32(b, handBATAt+4*10, sector(1))
		}), "bat-overlap"),
		damaged("m34 one sector of overlap", withEntry(h, 5, sector(1)-1), "bat-overlap"),
		damaged("m35 over the footer", withEntry(h, 2, sector(2)+1), "bat-over-footer"),
		damaged("m35 over where the footer was", withEntry(h, 2, sector(2)+1)[:n-512], "bat-cut", "footer-missing"),
		{name: "m35 blktap was killed", image: append(good[:n-512:n-512], good[n-512-h.stride():n-512]...),
			problems: []string{"footer-missing"}},
		damaged("m36 cut in a block", good[:n-4096], "bat-cut", "footer-missing"),
		damaged("m36 cut in a bitmap", good[:h.blockAt(2)+100], "bat-beyond-end", "footer-missing"),
		damaged("m36 cut between blocks", good[:h.blockAt(1)], "bat-beyond-end", "footer-missing"),
		damaged("m36 cut in a block, and a footer", slices.Concat(good[:n-4096], good[n-512:]), "bat-cut"),
		damaged("all entries 0", edited(h, func(b []byte) { clear(b[handBATAt : handBATAt+64]) }), "bat-in-metadata"),
		{name: "entries past those of the disk", image: edited(handmade{kind: 3, size: 1 << 20, block: handBlock, entries: 128},
			func(b []byte) { put32(b, handBATAt+4*16, 0) })},
		{name: "slack of 1 MiB before the footer", image: slices.Concat(good[:n-512], make([]byte, 1<<20), good[n-512:])},
	}
}
