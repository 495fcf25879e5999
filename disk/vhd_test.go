package disk

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"xen-disk/vhd"
)

// vhdSubject is an image made by package vhd.
func vhdSubject(path string) subject { return imageSubject(path, VHD) }

func newVHD(t *testing.T, o vhd.CreateOptions) string {
	t.Helper()
	path := filepath.Join(ext4(t), "disk.vhd")
	must(t, vhd.Create(path, o))
	return path
}

func TestVHDConformance(t *testing.T) {
	for _, c := range []struct {
		name string
		o    vhd.CreateOptions
	}{
		{"fixed", vhd.CreateOptions{SizeBytes: subjectBytes, Type: vhd.TypeFixed}},
		{"dynamic", vhd.CreateOptions{SizeBytes: subjectBytes}},
		{"dynamic, small blocks", vhd.CreateOptions{SizeBytes: subjectBytes, BlockBytes: 8192}},
		{"dynamic, one sector", vhd.CreateOptions{SizeBytes: sectorBytes}},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			testDisk(t, vhdSubject(newVHD(t, c.o)))
		})
	}
}

// TestVHDIsLocked: one writer of a chain, readers of its parents.
func TestVHDIsLocked(t *testing.T) {
	path := newVHD(t, vhd.CreateOptions{SizeBytes: subjectBytes})
	d := mustOpen(t, path, VHD, Options{})
	for _, o := range []Options{{}, {ReadOnly: true}} {
		if _, err := Open(path, VHD, o); !errors.Is(err, ErrInUse) {
			t.Errorf("second open, %+v: %v", o, err)
		}
	}
	must(t, d.Close())
	a := mustOpen(t, path, VHD, Options{ReadOnly: true})
	b := mustOpen(t, path, VHD, Options{ReadOnly: true, MapParents: true})
	if _, err := Open(path, VHD, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("a writer beside readers: %v", err)
	}
	must(t, a.Close())
	must(t, b.Close())
}

// TestVHDMapped: a mapped image reads the same.
func TestVHDMapped(t *testing.T) {
	noLeaks(t)
	path := newVHD(t, vhd.CreateOptions{SizeBytes: subjectBytes})
	want := pattern(subjectBytes)
	d := mustOpen(t, path, VHD, Options{})
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	must(t, d.Close())
	d = mustOpen(t, path, VHD, Options{ReadOnly: true, MapParents: true})
	got := make([]byte, subjectBytes)
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read differs, %v", err)
	}
	must(t, d.Close())
}
