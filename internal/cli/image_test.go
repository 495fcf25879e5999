package cli

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"xen-disk/disk"
)

// imageCommands are the names of all commands under image.
func imageCommands(t *testing.T) (names []string) {
	t.Helper()
	parser, err := kong.New(&commands{}, kong.Vars{"version": "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range parser.Model.Leaves(true) {
		if name, ok := strings.CutPrefix(leaf.Path(), "image "); ok {
			names = append(names, name)
		}
	}
	return names
}

// TestImageHelp: each command explains itself and has an example of itself.
func TestImageHelp(t *testing.T) {
	dir := here(t)
	r := newImageRig(t)
	r.run(t, exitOK, "--help")
	for _, name := range imageCommands(t) {
		r.run(t, exitOK, name+" --help")
		if !strings.Contains(r.out.String(), "Examples:\n\n    xen-disk image "+name+" ") {
			t.Errorf("%s: no example in:\n%s", name, &r.out)
		}
	}
	golden(t, dir, "help-image.golden", r.session.String())
}

// TestImageWrongUse: each mistake gets an answer of at most three lines that
// fit a terminal, and its exit code, and makes nothing.
func TestImageWrongUse(t *testing.T) {
	dir := here(t)
	var all strings.Builder
	for _, c := range imageWrongUses() {
		t.Run(c.name, func(t *testing.T) {
			r := newImageRig(t)
			r.note(c.name)
			if c.setUp != nil {
				c.setUp(t, r)
			}
			r.run(t, c.code, c.line)
			if r.out.Len() != 0 {
				t.Errorf("printed besides the error: %s", &r.out)
			}
			if exists("new.vhd") || exists("new.raw") {
				t.Error("it made a file")
			}
			all.WriteString(r.session.String())
		})
	}
	golden(t, dir, "wronguse-image.golden", all.String())
}

type imageWrongUse struct {
	name, line string
	code       int
	setUp      func(t *testing.T, r *imageRig)
}

func imageWrongUses() []imageWrongUse {
	raw := func(t *testing.T, _ *imageRig) { makeFile(t, "disk.raw", 1<<20) }
	return []imageWrongUse{
		{"no command", "", exitUsage, nil},
		{"an unknown command", "chek disk.vhd", exitUsage, nil},
		{"no size", "create new.vhd", exitUsage, nil},
		{"a size in gigabytes of someone's", "create new.vhd --size 10GB", exitUsage, nil},
		{"a size of parts of sectors", "create new.vhd --size 1000", exitUsage, nil},
		{"a size of nothing", "create new.vhd --size 0", exitUsage, nil},
		{"a size past what others read", "create new.vhd --size 2041GiB", exitUsage, nil},
		{"blocks of no power of two", "create new.vhd --size 1G --block-size 3M", exitUsage, nil},
		{"an unknown type", "create new.vhd --size 1G --type sparse", exitUsage, nil},
		{"a VHD called raw", "create new.raw --size 1G", exitUsage, nil},
		{"an image that is there", "create disk.raw.vhd --size 1G", exitFailed, func(t *testing.T, _ *imageRig) { makeFile(t, "disk.raw.vhd", 512) }},
		{"a directory that is not", "create none/new.vhd --size 1G", exitMissing, nil},
		{"a snapshot of nothing", "snapshot none.vhd new.vhd", exitMissing, nil},
		{"a snapshot of a raw image called VHD", "snapshot raw.vhd new.vhd", exitUsage, func(t *testing.T, _ *imageRig) { makeFile(t, "raw.vhd", 1<<20) }},
		{"a child that is there", "snapshot base.vhd disk.raw", exitFailed, func(t *testing.T, r *imageRig) { raw(t, r); r.made(t, "create base.vhd --size 1M") }},
		{"a child without its parent", "map child.vhd", exitMissing, func(t *testing.T, r *imageRig) {
			r.made(t, "create base.vhd --size 1M")
			r.made(t, "snapshot base.vhd child.vhd")
			rename(t, "base.vhd", "other.vhd")
		}},
		{"no image", "map none.vhd", exitMissing, nil},
		{"a directory", "map .", exitUsage, nil},
		{"a fifo", "map fifo", exitUsage, func(t *testing.T, _ *imageRig) {
			if err := unix.Mkfifo("fifo", 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"a raw image taken for a VHD", "map disk.raw", exitUsage, raw},
		{"a format that a name does not say", "convert disk new.raw", exitUsage, nil},
		{"a destination whose name says nothing", "convert disk.raw new", exitUsage, raw},
		{"an unknown format", "convert disk.raw new.vhd --to qcow2", exitUsage, raw},
		{"a source that is not", "convert none.raw new.vhd", exitMissing, nil},
		{"a raw image of parts of sectors", "convert disk.raw new.vhd", exitFailed, func(t *testing.T, _ *imageRig) { makeFile(t, "disk.raw", 1<<20+100) }},
		{"a source in use", "convert disk.raw new.vhd", exitBusy, inUse},
		{"the other of two images that is not", "compare disk.raw none.raw", exitMissing, raw},
	}
}

// inUse has a holder whose name and number the golden file can hold.
func inUse(t *testing.T, r *imageRig) {
	makeFile(t, "disk.raw", 1<<20)
	d, err := disk.Open("disk.raw", disk.Raw, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	r.hide = strings.NewReplacer(pidOf(os.Getpid()), "process 1234 (holder)")
}

// TestJSONVersion: the zero value of each result says version 1, and paths are
// printed as they are.
func TestJSONVersion(t *testing.T) {
	r := newImageRig(t)
	image := &imageCmd{JSON: true}
	if err := image.show(&r.env, &imageCompared{A: "<a&b>"}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Version int
		A       string
	}
	if err := json.Unmarshal(r.out.Bytes(), &got); err != nil || got.Version != 1 || !strings.Contains(r.out.String(), `"<a&b>"`) {
		t.Errorf("%v: %s", err, &r.out)
	}
}

// failingWriter is a full disk, or a reader that went away.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, unix.ENOSPC }

// TestFullOutput: an answer that was not printed is a failure.
func TestFullOutput(t *testing.T) {
	r := newImageRig(t)
	makeFile(t, "disk.raw", 1<<20)
	r.env.stdout = failingWriter{}
	r.run(t, exitFailed, "compare disk.raw disk.raw")
	if !strings.HasPrefix(r.err.String(), "xen-disk: cannot print the answer\n") {
		t.Errorf("it says: %s", &r.err)
	}
}
