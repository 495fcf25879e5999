package cli

import (
	"errors"
	"os"
	"strings"
	"testing"

	"xen-disk/disk"
)

// TestImageSession is a day with images, as people see it.
func TestImageSession(t *testing.T) {
	dir := here(t)
	r := newImageRig(t)
	r.note("an image of each type")
	r.run(t, exitOK, "create disk.vhd --size 1GiB")
	r.run(t, exitOK, "create fixed.vhd --size 10MiB --type fixed")
	r.run(t, exitOK, "create xen.vhd --size 10GiB --for xenserver")
	r.run(t, exitOK, "info disk.vhd")
	r.run(t, exitOK, "info fixed.vhd")
	r.run(t, exitOK, "info xen.vhd")

	r.note("a chain")
	fill(t, "disk.vhd", 0, strings.Repeat("x", 3<<20))
	r.run(t, exitOK, "snapshot disk.vhd child.vhd")
	fill(t, "child.vhd", 1<<20, strings.Repeat("y", 4096))
	r.run(t, exitOK, "info child.vhd --chain")
	r.run(t, exitOK, "check child.vhd")
	r.run(t, exitOK, "map child.vhd")
	r.run(t, exitOK, "convert child.vhd flat.raw")
	r.run(t, exitOK, "compare child.vhd flat.raw")
	r.run(t, exitDiffer, "compare disk.vhd flat.raw")
	makeFile(t, "short.raw", 1<<20)
	makeFile(t, "long.raw", 1<<20+512)
	r.run(t, exitOK, "compare short.raw long.raw")
	r.run(t, exitOK, "snapshot short.raw over.vhd")
	r.run(t, exitUsage, "map over.vhd")
	r.run(t, exitOK, "map over.vhd --raw-parent")

	r.note("a parent that was moved")
	if err := os.Mkdir("images", 0o700); err != nil {
		t.Fatal(err)
	}
	rename(t, "disk.vhd", "images/disk.vhd")
	r.run(t, exitMissing, "map child.vhd")
	r.run(t, exitOK, "info child.vhd")
	r.run(t, exitMissing, "check child.vhd")
	r.run(t, exitOK, "map child.vhd --search-path images")

	golden(t, dir, "image.golden", r.steady(r.session.String()))
}

// TestImageDamage: what is said of damage, and what repair makes of it.
func TestImageDamage(t *testing.T) {
	dir := here(t)
	r := newImageRig(t)
	r.made(t, "create disk.vhd --size 16MiB")
	fill(t, "disk.vhd", 0, strings.Repeat("x", 16<<20))

	r.note("the footer is gone")
	writeAt(t, "disk.vhd", sizeOf(t, "disk.vhd")-512, strings.Repeat("\x00", 512))
	r.run(t, exitCorrupt, "check disk.vhd")
	r.run(t, exitOK, "repair disk.vhd")
	r.run(t, exitOK, "check disk.vhd")

	r.note("two blocks are one")
	twin := readAt(t, "disk.vhd", tableAt, 4)
	writeAt(t, "disk.vhd", tableAt+4, twin)
	r.run(t, exitCorrupt, "check disk.vhd")
	r.run(t, exitOK, "info disk.vhd")
	r.run(t, exitCorrupt, "snapshot disk.vhd child.vhd")
	r.run(t, exitCorrupt, "repair disk.vhd")
	r.run(t, exitLeaks, "repair disk.vhd --force")
	r.run(t, exitLeaks, "check disk.vhd")

	r.note("neither footer is left")
	writeAt(t, "disk.vhd", 0, strings.Repeat("\x00", 512))
	writeAt(t, "disk.vhd", sizeOf(t, "disk.vhd")-512, strings.Repeat("\x00", 512))
	r.run(t, exitUsage, "check disk.vhd")
	r.run(t, exitUsage, "repair disk.vhd --force")
	golden(t, dir, "image-damage.golden", r.steady(r.session.String()))
}

// tableAt is where the BAT of images made by create lies (vhd/create.go).
const tableAt = 4096

func readAt(t *testing.T, path string, off int64, n int) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text[off:][:n])
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// fill writes into a disk.
func fill(t *testing.T, path string, off int64, text string) {
	t.Helper()
	d, err := disk.Open(path, disk.VHD, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.WriteAt([]byte(text), off)
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
}
