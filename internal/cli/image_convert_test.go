package cli

import (
	"math/rand"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestConvertAndBack: a disk survives all ways from raw to VHD and back.
func TestConvertAndBack(t *testing.T) {
	r := newImageRig(t)
	makeFile(t, "disk.raw", 9<<20+512)
	random := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(random)
	writeAt(t, "disk.raw", 1<<20+4096, string(random))
	writeAt(t, "disk.raw", 9<<20, "the last sector")
	for _, way := range []string{"--to vhd", "--to vhd --type fixed", "--to vhd --block-size 64K", "--to vhd --for xenserver", "--to raw"} {
		from := strings.Join(strings.Fields(way)[1:2], "")
		r.run(t, exitOK, "convert disk.raw there "+way)
		r.run(t, exitOK, "compare disk.raw there --b-format "+from)
		r.run(t, exitOK, "convert there back.img --from "+from)
		back, err := os.ReadFile("back.img")
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile("disk.raw")
		if err != nil {
			t.Fatal(err)
		}
		if string(back) != string(want) {
			t.Errorf("%s: other bytes came back", way)
		}
		var st unix.Stat_t
		if err := unix.Stat("back.img", &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 > 4<<20 {
			t.Errorf("%s: zeros take space: %d bytes", way, st.Blocks*512)
		}
		if err := os.Remove("there"); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove("back.img"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConvertStopped: what was half made is removed, and the source is as it
// was.
func TestConvertStopped(t *testing.T) {
	for _, dst := range []string{"out.raw", "out.vhd"} {
		r := newImageRig(t)
		r.stopAtOnce()
		makeFile(t, "in.raw", 1<<20)
		r.run(t, 130, "convert in.raw "+dst)
		if want := "xen-disk: stopped by SIGINT\n  " + dst + " was removed again\n"; r.err.String() != want || r.out.String() != "" {
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

// TestConvertToDevice: only with --force, and then all of it is the disk.
func TestConvertToDevice(t *testing.T) {
	r := newImageRig(t)
	makeFile(t, "disk.raw", 1<<20)
	writeAt(t, "disk.raw", 4096, "data")
	makeFile(t, "small", 512<<10)
	writeAt(t, "large", 0, strings.Repeat("old ", 512<<10))
	device := loopDevice(t, "large")
	r.run(t, exitUsage, "convert disk.raw "+device+" --to raw")
	r.run(t, exitUsage, "convert disk.raw "+device+" --to vhd --force")
	r.run(t, exitFailed, "convert disk.raw "+loopDevice(t, "small")+" --to raw --force")
	if text := readAt(t, "large", 0, 4); text != "old " {
		t.Errorf("it was written: %q", text)
	}
	r.run(t, exitOK, "convert disk.raw "+device+" --to raw --force")
	r.run(t, exitOK, "compare disk.raw "+device+" --b-format raw")
	if want := "The disks are the same, but " + device + " is longer by 1.0 MiB of zeros.\n"; r.out.String() != want {
		t.Errorf("it says %q, want %q", &r.out, want)
	}
	r.stopAtOnce()
	r.run(t, 130, "convert disk.raw "+device+" --to raw --force")
	if !strings.HasSuffix(r.err.String(), "  "+device+" holds a part of the copy\n") {
		t.Errorf("it says: %s", &r.err)
	}
}

// TestConvertFull: where there is no space, nothing half made stays.
func TestConvertFull(t *testing.T) {
	r := newImageRig(t)
	writeAt(t, "disk.raw", 0, strings.Repeat("full", 1<<20))
	if err := os.Mkdir("small", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", "small", "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err) // takes root, as loop devices do
	}
	t.Cleanup(func() {
		if err := unix.Unmount("small", 0); err != nil {
			t.Error(err)
		}
	})
	for _, dst := range []string{"small/out.raw", "small/out.vhd"} {
		r.run(t, exitFailed, "convert disk.raw "+dst)
		if exists(dst) || !strings.Contains(r.err.String(), "no space left on device\n  hint: make space") {
			t.Errorf("%s is there: %v; it says: %s", dst, exists(dst), &r.err)
		}
	}
}

// loopDevice puts a block device over a file; it takes root and losetup, which
// make deps installs.
func loopDevice(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}
