package lab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCpioBytes compares one small archive with its bytes, written by hand
// from the layout's description.
func TestCpioBytes(t *testing.T) {
	var b bytes.Buffer
	c := newCpioWriter(&b)
	c.file("ab", 0o644, []byte("xyz"))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	field := func(values ...string) string { return strings.Join(values, "") }
	const zero = "00000000"
	want := "070701" + field("00000001", "000081A4", zero, zero, "00000001", zero, "00000003",
		zero, zero, zero, zero, "00000003", zero) + "ab\x00" + "\x00\x00\x00" + "xyz\x00" +
		"070701" + field(zero, zero, zero, zero, "00000001", zero, zero,
		zero, zero, zero, zero, "0000000B", zero) + "TRAILER!!!\x00\x00\x00\x00"
	got := b.String()
	if !strings.HasPrefix(got, want) || strings.Trim(got[len(want):], "\x00") != "" {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if len(got)%512 != 0 {
		t.Errorf("got %d bytes, want a multiple of 512", len(got))
	}
}

// TestCpioUnpacks lets another implementation read an archive: busybox or GNU
// cpio, whichever this machine has.
func TestCpioUnpacks(t *testing.T) {
	tr := tree{}
	tr.skeleton()
	tr.file("/bin/prog", 0o755, []byte("#!/bin/sh\n"))
	tr.link("/usr/bin/other", "prog")
	var b bytes.Buffer
	if err := tr.writeTo(&b); err != nil {
		t.Fatal(err)
	}
	argv := cpioReader(t)
	dir := t.TempDir()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "bin/other")) // through two links
	if string(got) != "#!/bin/sh\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	info, err := os.Stat(filepath.Join(dir, "usr/bin/prog"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("got %v, %v", info, err)
	}
}

// cpioReader finds a program that unpacks, and installs one where there is
// none.
func cpioReader(t *testing.T) []string {
	t.Helper()
	find := func() []string {
		if path, err := lookTool("cpio"); err == nil {
			return []string{path, "-idm", "--quiet"}
		}
		if path, err := lookTool("busybox"); err == nil {
			return []string{path, "cpio", "-idm"}
		}
		return nil
	}
	if argv := find(); argv != nil {
		return argv
	}
	out, err := exec.Command("apt-get", "install", "-y", "cpio").CombinedOutput()
	argv := find()
	if argv == nil {
		t.Fatalf("install cpio: %v: %s", err, out)
	}
	return argv
}

func TestCanonical(t *testing.T) {
	for path, want := range map[string]string{
		"/bin/dash": "usr/bin/dash", "/lib64/ld.so": "usr/lib64/ld.so", "usr/bin/x": "usr/bin/x",
		"/etc/xen": "etc/xen", "/library/x": "library/x", "init": "init",
	} {
		if got := canonical(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}
