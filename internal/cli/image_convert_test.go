package cli

import (
	"os"
	"strings"
	"testing"
)

// TestConvertStopped: what was half made is removed, and the source is as it
// was.
func TestConvertStopped(t *testing.T) {
	for _, dst := range []string{"out.raw"} {
		r := newImageRig(t)
		r.stopAtOnce()
		makeFile(t, "in.raw", 1<<20)
		r.run(t, 130, "convert in.raw "+dst)
		if want := "xen-disk: cannot convert in.raw to " + dst + "\n  stopped by interrupt; " + dst + " was removed again\n"; r.err.String() != want || r.out.String() != "" {
			t.Errorf("it says %q%q, want %q", &r.out, &r.err, want)
		}
		if exists(dst) || !exists("in.raw") {
			t.Error("files are missing or left over")
		}
	}
}

// TestConvertNeverOverwrites: not even with --force, and not the source.
func TestConvertNeverOverwrites(t *testing.T) {
	r := newImageRig(t)
	makeFile(t, "in.raw", 1<<20)
	writeAt(t, "out.raw", 0, "precious")
	writeAt(t, "out.vhd", 0, "precious")
	for _, line := range []string{"in.raw out.raw", "in.raw out.raw --force", "in.raw out.vhd --force", "in.raw in.raw --force"} {
		r.run(t, exitFailed, "convert "+line)
		if !strings.Contains(r.err.String(), "images are never overwritten") {
			t.Errorf("%s: it says: %s", line, &r.err)
		}
	}
	for _, name := range []string{"out.raw", "out.vhd"} {
		if text, err := os.ReadFile(name); err != nil || string(text) != "precious" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}
