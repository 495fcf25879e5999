package cli

import (
	"strings"
	"testing"

	"xen-disk/internal/blkback"
)

// TestHelp: both levels fit a terminal and have examples.
func TestHelp(t *testing.T) {
	dir := here(t)
	for _, c := range []struct{ name, args string }{
		{"help.golden", "--help"}, {"help-connect.golden", "connect --help"},
	} {
		r := newRig(t)
		r.start(strings.Fields(c.args)...)
		r.wait(t, exitOK)
		if !strings.Contains(r.out.String(), "Examples:\n\n    xen-disk connect debian\n") || r.err.String() != "" {
			t.Errorf("%s: no examples in:\n%s%s", c.args, &r.out, &r.err)
		}
		golden(t, dir, c.name, r.out.String())
	}
}

// TestNoArguments is a cry for help.
func TestNoArguments(t *testing.T) {
	r := newRig(t)
	r.start()
	r.wait(t, exitOK)
	if !strings.HasPrefix(r.out.String(), "Usage: xen-disk <command>") {
		t.Errorf("it says:\n%s", &r.out)
	}
}

func TestVersion(t *testing.T) {
	r := newRig(t)
	r.env.version = version("abc1234-dirty")
	r.start("--version")
	r.wait(t, exitOK)
	if !strings.HasPrefix(r.out.String(), "xen-disk "+release+" (commit abc1234-dirty, go1.") {
		t.Errorf("it says: %s", &r.out)
	}
	if v := version(""); !strings.Contains(v, "(commit ") {
		t.Errorf("without a linker's word: %s", v)
	}
}

func TestPrintable(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain, \"quoted\" and 'quoted'", "plain, \"quoted\" and 'quoted'"},
		{"Grüße 日本", "Grüße 日本"},
		{"\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
		{"a\r\nb\tc\x00\x7f", `a\r\nb\tc\x00\x7f`},
		{"\u009b31m", `\u009b31m`}, // CSI in one rune
		{"\xc3\x28\xff", `\xc3(\xff`},
		{"\u202ereversed\ufffd", "\\u202ereversed\ufffd"},
	} {
		if got := printable(c.in); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestWrap(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, c := range []struct{ in, want string }{
		{"short", "short"},
		{strings.Repeat("ten bytes ", 8) + "more", strings.Repeat("ten bytes ", 7) + "ten bytes\n  more"},
		{strings.Repeat("zehn ü öü ", 7) + "zehn ü öüü nx", strings.Repeat("zehn ü öü ", 7) + "zehn ü öüü\n  nx"},
		{long, long},
		{"Disk: " + long + ", raw", "Disk:\n  " + long + ",\n  raw"},
		{long + " " + long, long + "\n  " + long},
		{"", ""},
	} {
		if got := wrap(c.in, "  "); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

// TestLabel: what follows a label stays beside it.
func TestLabel(t *testing.T) {
	var out screen
	a := &attachment{out: &out}
	long := strings.Repeat("x", 100)
	a.label("Disk:", long+", raw")
	if want := "Disk:    " + long + ",\n         raw\n"; out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}

// TestGuestPath: what Linux' blkfront calls the devices that vdevs name.
func TestGuestPath(t *testing.T) {
	for vdev, want := range map[string]string{
		"xvda": "/dev/xvda", "xvdb3": "/dev/xvdb3", "xvdaa": "/dev/xvdaa",
		"sda": "/dev/xvda", "sdb2": "/dev/xvdb2",
		"hda": "/dev/xvda", "hdc1": "/dev/xvdc",
	} {
		devid, err := blkback.ParseVdev(vdev)
		if err != nil {
			t.Fatal(err)
		}
		if got := guestPath(blkback.VdevName(devid)); got != want {
			t.Errorf("%s: got %s, want %s", vdev, got, want)
		}
	}
}

func TestProcessors(t *testing.T) {
	for _, c := range []struct{ now, workers, want int }{{1, 8, 10}, {2, 8, 10}, {64, 8, 64}} {
		if got := processors(c.now, c.workers); got != c.want {
			t.Errorf("%d CPUs, %d workers: got %d, want %d", c.now, c.workers, got, c.want)
		}
	}
}
