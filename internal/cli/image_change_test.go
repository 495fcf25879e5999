package cli

import (
	"strings"
	"testing"
)

// TestImageChange: what is said of images that are there and change.
func TestImageChange(t *testing.T) {
	dir := here(t)
	r := newImageRig(t)
	r.made(t, "create base.vhd --size 64MiB")
	fill(t, "base.vhd", 8<<20, strings.Repeat("base", 5<<20))
	r.made(t, "snapshot base.vhd child.vhd")
	fill(t, "child.vhd", 9<<20, strings.Repeat("child", 1<<18)[:1<<20])
	r.made(t, "snapshot child.vhd grandchild.vhd")
	r.made(t, "convert grandchild.vhd before.raw")

	r.note("a chain becomes shorter")
	r.run(t, exitOK, "coalesce child.vhd")
	r.run(t, exitFailed, "reparent grandchild.vhd base.vhd")
	r.run(t, exitOK, "reparent grandchild.vhd base.vhd --force")
	r.run(t, exitOK, "compare grandchild.vhd before.raw")
	r.run(t, exitUsage, "coalesce base.vhd")

	r.note("a parent is renamed")
	rename(t, "base.vhd", "other.vhd")
	r.run(t, exitOK, "reparent grandchild.vhd other.vhd")
	r.run(t, exitOK, "compare grandchild.vhd before.raw")

	r.note("other sizes")
	r.run(t, exitUsage, "resize other.vhd 32MiB")
	r.run(t, exitFailed, "resize other.vhd 16MiB --shrink")
	r.run(t, exitOK, "resize other.vhd 32MiB --shrink")
	r.run(t, exitOK, "resize other.vhd 16MiB --shrink --force")
	r.run(t, exitOK, "resize other.vhd 1GiB")
	r.run(t, exitUsage, "resize other.vhd 3TiB")
	r.run(t, exitOK, "check other.vhd")

	r.note("space comes back")
	fill(t, "other.vhd", 8<<20, strings.Repeat("\x00", 4<<20))
	r.run(t, exitOK, "compact other.vhd")
	r.run(t, exitOK, "check other.vhd")
	r.made(t, "create fixed.vhd --size 1MiB --type fixed")
	r.run(t, exitUsage, "compact fixed.vhd")

	golden(t, dir, "image-change.golden", r.steady(r.session.String()))
}

// TestImageStopped: a signal ends each kind of long work in order, with what
// there is to know of the files, and they are what they were.
func TestImageStopped(t *testing.T) {
	r := newImageRig(t)
	r.made(t, "create base.vhd --size 16MiB")
	fill(t, "base.vhd", 0, strings.Repeat("x", 4<<20))
	r.made(t, "snapshot base.vhd child.vhd")
	fill(t, "child.vhd", 1<<20, strings.Repeat("y", 4096))
	r.made(t, "convert child.vhd before.raw")
	working := r.env.untilSignal
	for _, c := range []struct{ line, state string }{
		{"check child.vhd", "nothing was changed"},
		{"repair child.vhd", "child.vhd is no worse than before; run the command again to go on"},
		{"compact child.vhd", "child.vhd is whole; run the command again to go on"},
		{"coalesce child.vhd", "child.vhd still shows the whole disk; run the command again to finish"},
		{"resize child.vhd 32MiB", "child.vhd is whole, and has the old size or the new one"},
		{"compare child.vhd before.raw", "nothing is known of child.vhd and before.raw"},
	} {
		r.stopAtOnce()
		r.run(t, 130, c.line)
		if want := "xen-disk: stopped by SIGINT\n  " + c.state + "\n"; r.err.String() != want || r.out.Len() != 0 {
			t.Errorf("%s: it says %q%q, want %q", c.line, &r.out, &r.err, want)
		}
		r.env.untilSignal = working
		r.run(t, exitOK, "compare child.vhd before.raw")
		r.run(t, exitOK, "check child.vhd")
	}
}
