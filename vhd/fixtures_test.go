package vhd

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// fixture is an image with one lie in it, and what must come of opening it.
// Its name is that of the lie.
type fixture struct {
	name  string
	image []byte
	// place puts it, and files that it needs, into a directory and returns
	// its path. nil: image alone, as x.vhd.
	place func(t testing.TB, dir string) string
	with  Options
	// ro and rw are the codes of the errors of opening for reading and for
	// reading and writing; "" where that succeeds.
	ro, rw string
	// problems are the codes that the leaf has then, sorted.
	problems []string
}

// fixtures returns all of them. Their numbers are those of the table in the
// project's reference on the format, section 5.
func fixtures() []fixture {
	return slices.Concat(footerFixtures(), sizeFixtures(), fixedFixtures(),
		headerFixtures(), blockSizeFixtures(), batFixtures(), locatorFixtures(), parentFixtures(), batmapFixtures())
}

func (f *fixture) save(t testing.TB, dir string) string {
	if f.place != nil {
		return f.place(t, dir)
	}
	return save(t, dir, "x.vhd", f.image)
}

// edited returns an image with some bytes changed.
func edited(h handmade, edit func(b []byte)) []byte {
	b := h.bytes()
	edit(b)
	return b
}

// withFooter changes both footers and sums them again.
func withFooter(h handmade, edit func(f []byte)) []byte {
	return edited(h, func(b []byte) {
		last := b[len(b)-handFooter:]
		edit(last)
		resum(last, 64)
		if h.kind != 2 {
			copy(b, last)
		}
	})
}

// withHeader changes the header and sums it again.
func withHeader(h handmade, edit func(head []byte)) []byte {
	return edited(h, func(b []byte) {
		edit(b[512:1536])
		resum(b[512:1536], 36)
	})
}

// withEntry changes the BAT entry of a block.
func withEntry(h handmade, block int, entry uint32) []byte {
	return edited(h, func(b []byte) { put32(b, handBATAt+4*block, entry) })
}

func put32(b []byte, at int, v uint32) { binary.BigEndian.PutUint32(b[at:], v) }
func put64(b []byte, at int, v uint64) { binary.BigEndian.PutUint64(b[at:], v) }

// errorCode names an error of opening as the tables do.
func errorCode(err error) string {
	var image *ImageError
	var parent *ParentError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &parent):
		return "parent"
	case errors.As(err, &image):
		return image.Code
	case errors.Is(err, ErrRawParent):
		return "raw-parent"
	case errors.Is(err, ErrTooDeep):
		return "too-deep"
	case errors.Is(err, ErrNotRegular):
		return "not-regular"
	case errors.Is(err, fs.ErrNotExist):
		return "not-exist"
	}
	return err.Error()
}

func codesOf(problems []Problem) []string {
	var codes []string
	for _, p := range problems {
		codes = append(codes, p.Code)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// within fails the test when do does not end, or allocates what no lie may
// make it allocate.
func within(t testing.TB, do func()) {
	t.Helper()
	const hangs, most = 2 * time.Minute, 256 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(hangs):
		t.Fatal("hangs")
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > most {
		t.Errorf("allocated %d bytes, want at most %d", got, most)
	}
}

func TestFixtures(t *testing.T) {
	names := map[string]bool{}
	for _, f := range fixtures() {
		if names[f.name] {
			t.Errorf("%s: two fixtures of this name", f.name)
		}
		names[f.name] = true
		t.Run(f.name, func(t *testing.T) {
			path := f.save(t, t.TempDir())
			within(t, func() { f.openRO(t, path) })
			within(t, func() { f.openRW(t, path) })
		})
	}
}

func (f *fixture) openRO(t *testing.T, path string) {
	o := f.with
	o.ReadOnly = true
	chain, err := openChain(path, &o)
	if got := errorCode(err); got != f.ro {
		t.Errorf("read-only: got %q (%v), want %q", got, err, f.ro)
	}
	if err != nil {
		checkText(t, err.Error())
		return
	}
	defer closeChain(chain)
	leaf := chain[0]
	if got := codesOf(leaf.problems); !slices.Equal(got, f.problems) {
		t.Errorf("got problems %+v, want %q", leaf.problems, f.problems)
	}
	for _, p := range leaf.problems {
		checkText(t, p.Text)
		if p.Path != path || p.Code == "" || p.Severity > Damage || p.Offset > leaf.fileBytes {
			t.Errorf("got problem %+v", p)
		}
	}
	holdInvariants(t, leaf)
}

// openRW opens for writing, and has recoverFooter mend what it can.
func (f *fixture) openRW(t *testing.T, path string) {
	o := f.with
	chain, err := openChain(path, &o)
	if got := errorCode(err); got != f.rw {
		t.Errorf("for writing: got %q (%v), want %q", got, err, f.rw)
	}
	if err != nil {
		return
	}
	defer closeChain(chain)
	if err := recoverFooter(chain[0]); err != nil {
		t.Fatal(err)
	}
	again, err := readImage(path, chain[0].file)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range again.problems {
		if p.Severity >= Damage {
			t.Errorf("after opening for writing: got %+v", p)
		}
	}
	if again.footerAt != chain[0].footerAt || again.fileBytes != chain[0].fileBytes {
		t.Errorf("got footer at %d of %d, recoverFooter said %d of %d",
			again.footerAt, again.fileBytes, chain[0].footerAt, chain[0].fileBytes)
	}
}

// holdInvariants checks what the data path relies on.
func holdInvariants(t testing.TB, m *image) {
	t.Helper()
	if m.sizeBytes <= 0 || m.sizeBytes%SectorBytes != 0 {
		t.Errorf("got size %d", m.sizeBytes)
	}
	if m.footer.Type == TypeFixed {
		if m.bat != nil || m.dataEnd != m.sizeBytes || m.sizeBytes > m.fileBytes {
			t.Errorf("fixed: got %d of %d bytes", m.sizeBytes, m.fileBytes)
		}
		return
	}
	if m.blocks()*m.blockBytes() < m.sizeBytes || m.metaEnd < 1536 || m.dataEnd < m.metaEnd {
		t.Errorf("got %d blocks of %d bytes for %d, metadata to %d, data to %d",
			m.blocks(), m.blockBytes(), m.sizeBytes, m.metaEnd, m.dataEnd)
	}
	sound := m.writable() == nil
	for i := range m.bat {
		e := m.bat[i].Load()
		if e == unallocated {
			continue
		}
		if m.dataAt(e) > m.limit() || m.blockEnd(e) > m.dataEnd || sound && m.blockEnd(e) > m.limit() {
			t.Fatalf("block %d at %d to %d, image sound %v, data end %d, limit %d",
				i, e, m.blockEnd(e), sound, m.dataEnd, m.limit())
		}
		for _, p := range m.metadata() {
			if p.overlaps(extent{int64(e) * SectorBytes, m.blockEnd(e)}) {
				t.Fatalf("block %d lies over metadata at %d", i, p.start)
			}
		}
	}
}

// checkText: one line that a terminal can be shown.
func checkText(t testing.TB, s string) {
	t.Helper()
	if s == "" || strings.IndexFunc(s, unicode.IsControl) >= 0 {
		t.Errorf("got text %q", s)
	}
}
