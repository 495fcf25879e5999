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
	"time"

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
		{"export disk.raw --socket none/sock", exitMissing},
		{"export disk.raw --socket " + strings.Repeat("long", 30), exitUsage},
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

// TestExportOfWhatItIsNot: who exports the bytes of a VHD is told, and so is
// who has a disk that is no whole number of sectors.
func TestExportOfWhatItIsNot(t *testing.T) {
	newImageRig(t)
	makeFile(t, "disk.vhd", 1<<20+100)
	p := startChild(t, "export disk.vhd --socket sock --read-only")
	for _, want := range []string{
		"Serving disk.vhd: raw, 1.0 MiB, read-only.\n",
		"Its last 100 bytes are no whole sector of 512 bytes and are left out.\n",
	} {
		if got, err := p.stdout.ReadString('\n'); got != want {
			t.Errorf("it says %q, %v, want %q", got, err, want)
		}
	}
	line(t, p.stdout, "Connect to:")
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, errs, state := p.wait(t)
	if want := "xen-disk: disk.vhd is served as raw bytes; for the disk in it: --format vhd\n"; errs != want || state.ExitCode() != exitOK {
		t.Errorf("%v: it says %q, want %q", state, errs, want)
	}
}

func TestSocketURI(t *testing.T) {
	for _, c := range []struct{ path, want string }{
		{"/run/disk.sock", "nbd+unix:///?socket=/run/disk.sock"},
		{"/a b/c+d&e=f;g#h%i", "nbd+unix:///?socket=/a%20b/c%2Bd%26e%3Df%3Bg%23h%25i"},
		{"/\x1b[2J", "nbd+unix:///?socket=/%1B%5B2J"},
	} {
		if got := socketURI(c.path); got != c.want {
			t.Errorf("%q: got %s, want %s", c.path, got, c.want)
		}
	}
	if got := socketURI("sock"); got != "nbd+unix:///?socket="+here(t)+"/sock" {
		t.Errorf("relative: %s", got)
	}
}

// TestLimitedLog: clients cannot fill the file that our log goes to.
func TestLimitedLog(t *testing.T) {
	var out bytes.Buffer
	l, now := &limitedLog{log: newLog(&out, false)}, time.Unix(1000, 0)
	for range quotaLines + 1000 {
		l.error(now, io.ErrUnexpectedEOF)
	}
	if n := strings.Count(out.String(), "\n"); n != quotaLines {
		t.Errorf("%d lines, want %d", n, quotaLines)
	}
	l.error(now.Add(quotaPeriod), io.ErrUnexpectedEOF)
	if !strings.Contains(out.String(), `"lines":1000`) {
		t.Errorf("nothing is said of what was left out:\n%s", &out)
	}
}
