package vhd

import (
	"path/filepath"
	"testing"
)

// TestCreateReadBack: what Create writes is what readImage reads.
func TestCreateReadBack(t *testing.T) {
	for _, typ := range []Type{TypeFixed, TypeDynamic} {
		t.Run(typ.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.vhd")
			if err := Create(path, CreateOptions{SizeBytes: 10 << 20, Type: typ}); err != nil {
				t.Fatal(err)
			}
			f, err := OpenFile(path, false)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m, err := readImage(path, f)
			if err != nil {
				t.Fatal(err)
			}
			if m.footer.Type != typ || m.sizeBytes != 10<<20 || len(m.problems) != 0 {
				t.Errorf("got %v of %d bytes, problems %v", m.footer.Type, m.sizeBytes, m.problems)
			}
			if typ == TypeDynamic && m.blocks() != 5 {
				t.Errorf("got %d blocks, want 5", m.blocks())
			}
		})
	}
}
