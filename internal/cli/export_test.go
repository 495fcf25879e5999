package cli

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
)

// TestExport serves an image in a process of its own, until a signal.
func TestExport(t *testing.T) {
	r := newImageRig(t)
	r.made(t, "create disk.vhd --size 1M")
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM} {
		p := startChild(t, "export disk.vhd --format vhd --socket sock")
		first, err := p.stdout.ReadString('\n')
		if err != nil || first != "Serving disk.vhd: vhd, 1.0 MiB.\n" {
			t.Fatalf("it says %q, %v", first, err)
		}
		greet(t)
		if _, err := disk.Open("disk.vhd", disk.VHD, disk.Options{}); err == nil {
			t.Error("a second writer got the image")
		}
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if out, errs, state := p.wait(t); state.ExitCode() != exitOK || errs != "" {
			t.Errorf("%v: %v\n%s%s", sig, state, out, errs)
		}
		if _, err := os.Lstat("sock"); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind: %v", err)
		}
	}
	r.run(t, exitOK, "check disk.vhd")
}

// greet connects and reads the greeting of an NBD server.
func greet(t *testing.T) {
	t.Helper()
	if st, err := os.Stat("sock"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	c, err := net.Dial("unix", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello := make([]byte, 16)
	if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "NBDMAGICIHAVEOPT" {
		t.Errorf("it greets with %q, %v", hello, err)
	}
}

// TestExportWrongUse: each mistake gets an answer of three lines.
func TestExportWrongUse(t *testing.T) {
	dir := here(t)
	r := newImageRig(t)
	r.made(t, "create disk.vhd --size 1M")
	makeFile(t, "disk.raw", 1<<20)
	makeFile(t, "held.raw", 1<<20)
	makeFile(t, "file", 1)
	held, err := disk.Open("held.raw", disk.Raw, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ln, err := net.Listen("unix", "busy")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var said strings.Builder
	for _, c := range []struct {
		line string
		code int
	}{
		{"export disk.raw", exitUsage},
		{"export none.raw --socket sock", exitMissing},
		{"export disk.raw --format qcow2 --socket sock", exitUsage},
		{"export disk.raw --format discard --socket sock", exitUsage},
		{"export disk.raw --format vhd --socket sock", exitUsage},
		{"export held.raw --socket sock", exitBusy},
		{"export disk.raw --socket busy", exitBusy},
		{"export disk.raw --socket file", exitUsage},
		{"export disk.raw --socket none/sock", exitFailed},
		{"export disk.raw --socket " + strings.Repeat("long", 30), exitFailed},
	} {
		r.out.Reset()
		r.err.Reset()
		if code := run(strings.Fields(c.line), &r.env); code != c.code || r.out.Len() > 0 {
			t.Errorf("%s: exit code %d, want %d\n%s", c.line, code, c.code, &r.out)
		}
		if bytes.Count(r.err.Bytes(), []byte("\n")) > 3 {
			t.Errorf("%s: more than three lines:\n%s", c.line, &r.err)
		}
		fmt.Fprintf(&said, "$ xen-disk %s\n%s(exit code %d)\n\n", c.line, &r.err, c.code)
	}
	r.out.Reset()
	if code := run([]string{"export", "--help"}, &r.env); code != exitOK {
		t.Errorf("help: exit code %d", code)
	}
	holder := regexp.MustCompile(`process \d+ \([^)]*\)`)
	golden(t, dir, "wronguse-export.golden", holder.ReplaceAllString(said.String(), "process 7 (other)"))
	golden(t, dir, "help-export.golden", r.out.String())
}
