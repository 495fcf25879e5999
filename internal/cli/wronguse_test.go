package cli

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
	"xen-disk/internal/blkback"
	"xen-disk/internal/fakexen"
	"xen-disk/xs"
)

// wrongUse is a mistake, and the machine on which it is one.
type wrongUse struct {
	name  string
	args  string
	code  int
	setUp func(t *testing.T, r *rig)
}

func wrongUses() []wrongUse {
	image := func(size int64) func(*testing.T, *rig) {
		return func(t *testing.T, _ *rig) { makeFile(t, "disk.raw", size) }
	}
	return []wrongUse{
		{"no such virtual machine", "connect nobody", exitMissing, nil},
		{"no such domain id", "connect 99", exitMissing, nil},
		{"an empty name", "connect ", exitMissing, nil},
		{"a name with an escape sequence", "connect \x1b[2J", exitMissing, nil},
		{"an ambiguous name", "connect twin", exitMissing, twins},
		{"no Xen here", "connect debian", exitNoXen, noXen},
		{"xenstore, but no Xen", "connect debian", exitNoXen, noXenBelowStore},
		{"xenstored down", "connect debian", exitNoXen, staleSocket},
		{"no xenstored", "connect debian", exitNoXen, noSocket},
		{"no right to use xenstore", "connect debian", exitFailed, deniedStore},
		{"no right to use the devices", "connect debian", exitFailed, deniedDoor},
		{"an unprivileged domain", "connect debian", exitNoXen, inDomU},
		{"modules missing", "connect debian", exitNoXen, noModules},
		{"devices out of order", "connect debian", exitNoXen, brokenDoor},
		{"no such image", "connect debian --path none.raw", exitMissing, nil},
		{"an empty path", "connect debian --path=", exitUsage, nil},
		{"a directory", "connect debian --path .", exitUsage, nil},
		{"a fifo", "connect debian --path fifo", exitUsage, makeFIFO},
		{"an image that is too small", "connect debian --path disk.raw", exitFailed, image(511)},
		{"an image in use", "connect debian --path disk.raw", exitBusy, heldImage},
		{"a device in use", "connect debian --vdev xvdb", exitBusy, takenVdev},
		{"a bad device name", "connect debian --vdev vda", exitUsage, nil},
		{"a bad format", "connect debian --path disk.raw --format qcow2", exitUsage, nil},
		{"a format without an image", "connect debian --format raw", exitUsage, nil},
		{"an image for discard", "connect debian --path disk.raw --format discard", exitUsage, nil},
		{"a raw image as vhd", "connect debian --path disk.raw --format vhd", exitUsage, image(1 << 20)},
		{"no such vhd", "connect debian --path none.vhd --format vhd", exitMissing, nil},
		{"no virtual machine", "connect", exitUsage, nil},
		{"an unknown flag", "connect debian --pth disk.raw", exitUsage, nil},
		{"an unknown command", "conect debian", exitUsage, nil},
	}
}

// TestWrongUse: each mistake gets an answer of at most three lines that fit a
// terminal, and its exit code, and leaves nothing behind.
func TestWrongUse(t *testing.T) {
	dir := here(t)
	var all strings.Builder
	for _, c := range wrongUses() {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			if c.setUp != nil {
				c.setUp(t, r)
			}
			args := strings.Split(c.args, " ")
			r.start(args...)
			r.wait(t, c.code)
			r.clean(t)
			if r.out.String() != "" {
				t.Errorf("printed besides the error: %s", &r.out)
			}
			if strings.ContainsRune(r.err.String(), '\x1b') {
				t.Error("an escape sequence reached the terminal")
			}
			all.WriteString(sprintCase(c.name, args, c.code, r.err.String()))
		})
	}
	text := strings.ReplaceAll(all.String(), "\x1b", "ESC")
	golden(t, dir, "wronguse.golden", text)
}

func twins(t *testing.T, r *rig) {
	for _, id := range []uint32{3, 4} {
		if _, err := r.m.Boot(id, "twin", string(rune('a'+id))); err != nil {
			t.Fatal(err)
		}
	}
}

// dialPath is what xs.Dial does with a path.
func dialPath(t *testing.T, r *rig, path string) {
	t.Setenv("XENSTORED_PATH", path)
	r.env.dial = xs.Dial
}

func noXen(t *testing.T, r *rig) {
	dialPath(t, r, "none")
	r.env.onXen = func() bool { return false }
}

func noXenBelowStore(_ *testing.T, r *rig) {
	r.env.onXen = func() bool { return false }
	failDoor(r, unix.ENOENT)
}

// staleSocket leaves the socket of a xenstored that died.
func staleSocket(t *testing.T, r *rig) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "socket", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dialPath(t, r, "socket")
}

func noSocket(t *testing.T, r *rig) { dialPath(t, r, "none") }

func deniedStore(_ *testing.T, r *rig) {
	r.env.dial = func() (*xs.Conn, error) {
		return nil, &fs.PathError{Op: "connect", Path: "/run/xenstored/socket", Err: unix.EACCES}
	}
}

func failDoor(r *rig, err error) {
	r.env.openXen = func() (blkback.Xen, error) {
		return nil, &fs.PathError{Op: "open", Path: "/dev/xen/gntdev", Err: err}
	}
}

func deniedDoor(_ *testing.T, r *rig) { failDoor(r, unix.EACCES) }
func noModules(_ *testing.T, r *rig)  { failDoor(r, unix.ENOENT) }
func brokenDoor(_ *testing.T, r *rig) { failDoor(r, unix.EMFILE) }

func inDomU(t *testing.T, r *rig) {
	path, err := r.x.PathAs(guestID)
	if err != nil {
		t.Fatal(err)
	}
	dialPath(t, r, path)
}

func makeFIFO(t *testing.T, _ *rig) {
	if err := unix.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}
}

// heldImage has a holder whose name and number the golden file can hold.
func heldImage(t *testing.T, r *rig) {
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
	r.env.stderr = &replacer{&r.err, pidOf(os.Getpid()), "process 1234 (holder)"}
}

func takenVdev(t *testing.T, r *rig) {
	if err := r.m.AttachVBD(fakexen.Attach{DomID: guestID, DevID: xvda + 16, Vdev: "xvdb"}); err != nil {
		t.Fatal(err)
	}
}

// TestHolders: what is said of those who have an image and are hard to make.
func TestHolders(t *testing.T) {
	for _, c := range []struct {
		e         disk.InUseError
		why, hint string
	}{
		{disk.InUseError{Claimed: true, MountPoint: "/mnt"}, "mounted on /mnt", "unmount"},
		{disk.InUseError{Path: "/dev/sda", Claimed: true}, "RAID", "lsblk /dev/sda"},
		{disk.InUseError{PID: 7, Command: "qemu"}, "process 7 (qemu)", "detach"},
		{disk.InUseError{}, "does not name", "detach"},
	} {
		var u *userError
		err := explainOpen("x", disk.Raw, &c.e)
		if !errors.As(err, &u) || !strings.Contains(u.Why, c.why) || !strings.Contains(u.Hint, c.hint) || u.Code != exitBusy {
			t.Errorf("%v: %+v", &c.e, u)
		}
	}
}

// TestFailureOfStore: what xenstored refuses leaves nothing behind.
func TestFailureOfStore(t *testing.T) {
	r := newRig(t)
	makeFile(t, "disk.raw", 1<<20)
	r.x.FailCommits(1 << 20)
	r.start("connect", "debian", "--path", "disk.raw")
	r.wait(t, exitFailed)
	r.clean(t)
	if !strings.HasPrefix(r.err.String(), "xen-disk: cannot make the device in xenstore\n") {
		t.Errorf("it says: %s", &r.err)
	}
	d, err := disk.Open("disk.raw", disk.Raw, disk.Options{}) // is it free again?
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// replacer hides what differs from run to run.
type replacer struct {
	w        *screen
	old, new string
}

func (r *replacer) Write(p []byte) (int, error) {
	if _, err := r.w.Write([]byte(strings.ReplaceAll(string(p), r.old, r.new))); err != nil {
		return 0, err
	}
	return len(p), nil
}

func pidOf(pid int) string {
	comm, _ := os.ReadFile(filepath.Join("/proc/self/comm"))
	return "process " + itoa(pid) + " (" + strings.TrimSpace(string(comm)) + ")"
}
