package cli

import (
	"strings"
	"testing"

	"xen-disk/disk"
)

// TestImageProcess: exit codes and streams as a shell sees them, of the whole
// program.
func TestImageProcess(t *testing.T) {
	r := newImageRig(t)
	makeFile(t, "disk.raw", 1<<20)
	makeFile(t, "other.raw", 1<<20)
	writeAt(t, "other.raw", 4096, "other")
	makeFile(t, "held.raw", 1<<20)
	held, err := disk.Open("held.raw", disk.Raw, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.made(t, "create damaged.vhd --size 1M")
	writeAt(t, "damaged.vhd", 0, strings.Repeat("\x00", 512))
	r.made(t, "create leaking.vhd --size 4M")
	footer := readAt(t, "leaking.vhd", 0, 512)
	writeAt(t, "leaking.vhd", 8<<20, footer)
	for _, c := range []struct {
		line string
		code int
	}{
		{"create disk.vhd --size 1M", exitOK},
		{"create disk.vhd --size 1M", exitFailed},
		{"create new.vhd --size 1MB", exitUsage},
		{"info none.vhd", exitMissing},
		{"compare disk.raw held.raw", exitBusy},
		{"check damaged.vhd", exitCorrupt},
		{"check leaking.vhd", exitLeaks},
		{"compare disk.raw disk.vhd", exitOK},
		{"compare disk.raw other.raw", exitDiffer},
		{"compare disk.raw other.raw --json", exitDiffer},
	} {
		out, errs, state := startChild(t, "image "+c.line).wait(t)
		if state.ExitCode() != c.code {
			t.Errorf("%s: %v, want exit code %d\n%s%s", c.line, state, c.code, out, errs)
		}
		answered := c.code == exitOK || c.code == exitCorrupt || c.code == exitLeaks || c.code == exitDiffer
		if (out != "") != answered || (errs != "") == answered {
			t.Errorf("%s: standard output %q, standard error %q", c.line, out, errs)
		}
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
}
