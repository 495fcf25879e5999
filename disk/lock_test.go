package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestManyReadersOrOneWriter(t *testing.T) {
	rw, ro := Options{}, Options{ReadOnly: true}
	for _, c := range []struct {
		name          string
		first, second Options
		together      bool
	}{
		{"two writers", rw, rw, false},
		{"writer then reader", rw, ro, false},
		{"reader then writer", ro, rw, false},
		{"two readers", ro, ro, true},
	} {
		for _, f := range []Format{Raw, Mmap} {
			t.Run(fmt.Sprintf("%s/%v", c.name, f), func(t *testing.T) {
				noLeaks(t)
				path := image(t, sectorBytes)
				first := mustOpen(t, path, f, c.first)
				second, err := Open(path, f, c.second)
				if c.together {
					must(t, err)
					must(t, second.Close())
					return
				}
				if !errors.Is(err, ErrInUse) {
					t.Fatalf("second open: %v", err)
				}
				must(t, first.Close())
				must(t, mustOpen(t, path, f, c.second).Close())
			})
		}
	}
}

func TestLockIsOfTheInode(t *testing.T) {
	path := image(t, sectorBytes)
	d := mustOpen(t, path, Raw, Options{})
	for _, c := range []struct {
		name string
		link func(from, to string) error
	}{
		{"hard link", os.Link},
		{"symbolic link", os.Symlink},
	} {
		t.Run(c.name, func(t *testing.T) {
			other := filepath.Join(filepath.Dir(path), c.name)
			must(t, c.link(path, other))
			if _, err := Open(other, Mmap, Options{}); !errors.Is(err, ErrInUse) {
				t.Errorf("second name: %v", err)
			}
		})
	}
	must(t, d.Close())
}

func TestLockDiesWithTheProcess(t *testing.T) {
	path := image(t, sectorBytes)
	holder := startHolder(t, path)
	_, err := Open(path, Raw, Options{})
	var inUse *InUseError
	if !errors.As(err, &inUse) || !errors.Is(err, ErrInUse) {
		t.Fatalf("open while held: %v", err)
	}
	if inUse.PID != holder.Process.Pid || inUse.Command != "disk.test" {
		t.Errorf("holder is %d %q, want %d", inUse.PID, inUse.Command, holder.Process.Pid)
	}
	if !strings.Contains(err.Error(), fmt.Sprint(holder.Process.Pid)) {
		t.Errorf("error does not name the holder: %v", err)
	}
	must(t, holder.Process.Kill())
	_ = holder.Wait() // "signal: killed"
	mustOpen(t, path, Raw, Options{})
}

// TestCloseUnlocksDespiteCopiesOfTheFD stands for a child between fork and
// exec, which holds a copy of every fd.
func TestCloseUnlocksDespiteCopiesOfTheFD(t *testing.T) {
	path := image(t, sectorBytes)
	d := mustOpen(t, path, Raw, Options{})
	dup, err := unix.Dup(d.(*raw).file.fd)
	must(t, err)
	defer unix.Close(dup)
	must(t, d.Close())
	mustOpen(t, path, Raw, Options{})
}

// TestQEMU plays QEMU's part of the image locking protocol with bare locks, as
// its block/file-posix.c describes it.
func TestQEMU(t *testing.T) {
	// What /proc/locks shows of QEMU 7.2 with -drive if=virtio,format=raw, and
	// with readonly=on; then of qemu-nbd, which shares writing.
	writer := []int64{100, 101, 201}
	reader := []int64{100, 201}
	nbd := []int64{100, 101, 203}
	for _, c := range []struct {
		name     string
		bytes    []int64
		o        Options
		together bool
	}{
		{"QEMU writes, we write", writer, Options{}, false},
		{"QEMU writes, we read", writer, Options{ReadOnly: true}, false},
		{"qemu-nbd writes, we write", nbd, Options{}, false},
		{"qemu-nbd writes, we read", nbd, Options{ReadOnly: true}, false},
		{"QEMU reads, we write", reader, Options{}, false},
		{"QEMU reads, we read", reader, Options{ReadOnly: true}, true},
		{"QEMU does not share reading", []int64{200}, Options{ReadOnly: true}, false},
		{"QEMU may only resize", []int64{103}, Options{ReadOnly: true}, false},
		{"virtlockd reads, we read", []int64{0}, Options{ReadOnly: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := image(t, sectorBytes)
			qemu, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			defer qemu.Close()
			lockBytes(t, qemu, unix.F_RDLCK, c.bytes...)
			d, err := Open(path, Raw, c.o)
			if c.together {
				must(t, err)
				must(t, d.Close())
			} else if !errors.Is(err, ErrInUse) {
				t.Errorf("open: %v", err)
			}
		})
	}
	t.Run("virtlockd writes, we read", func(t *testing.T) {
		path := image(t, sectorBytes)
		virtlockd, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		defer virtlockd.Close()
		lockBytes(t, virtlockd, unix.F_WRLCK, 0)
		if _, err := Open(path, Raw, Options{ReadOnly: true}); !errors.Is(err, ErrInUse) {
			t.Errorf("open: %v", err)
		}
	})
}

// TestQEMUSeesUs asks what QEMU asks before it opens: are the bytes of what I
// want to do unlocked in the "not shared" half, and the other way round?
func TestQEMUSeesUs(t *testing.T) {
	for _, c := range []struct {
		name     string
		o        Options
		wants    []int64
		together bool
	}{
		{"we write, QEMU reads", Options{}, []int64{200, 101, 103}, false},
		{"we write, QEMU writes", Options{}, []int64{200, 201, 101, 103}, false},
		{"we read, QEMU reads", Options{ReadOnly: true}, []int64{200, 101, 103}, true},
		{"we read, QEMU writes", Options{ReadOnly: true}, []int64{200, 201, 101, 103}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := image(t, sectorBytes)
			mustOpen(t, path, Raw, c.o)
			qemu, err := os.Open(path)
			must(t, err)
			defer qemu.Close()
			together := true
			for _, b := range c.wants {
				l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: b, Len: 1}
				must(t, unix.FcntlFlock(qemu.Fd(), unix.F_OFD_GETLK, &l))
				together = together && l.Type == unix.F_UNLCK
			}
			if together != c.together {
				t.Errorf("QEMU may open: %v, want %v", together, c.together)
			}
		})
	}
}

func lockBytes(t *testing.T, f *os.File, kind int16, offs ...int64) {
	t.Helper()
	for _, b := range offs {
		must(t, setLock(int(f.Fd()), kind, b, 1))
	}
}

func TestBlockDeviceClaims(t *testing.T) {
	const size = 1 << 20
	device := loop(t, image(t, size))
	var st unix.Stat_t
	must(t, unix.Stat(device, &st))
	otherNode := filepath.Join(t.TempDir(), "node")
	must(t, unix.Mknod(otherNode, unix.S_IFBLK|0o600, int(st.Rdev)))

	t.Run("claimed by another program", func(t *testing.T) {
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		wantClaimed(t, device, Options{})
		mustOpen(t, device, Raw, Options{ReadOnly: true}) // readers claim nothing
	})
	t.Run("two writers by two nodes", func(t *testing.T) {
		mustOpen(t, device, Raw, Options{})
		wantClaimed(t, otherNode, Options{})
	})
	t.Run("two writers by one node", func(t *testing.T) {
		mustOpen(t, device, Mmap, Options{})
		wantClaimed(t, device, Options{})
	})
	t.Run("writer then reader by one node", func(t *testing.T) {
		mustOpen(t, device, Raw, Options{})
		_, err := Open(device, Raw, Options{ReadOnly: true})
		var inUse *InUseError
		if !errors.As(err, &inUse) || inUse.Claimed || inUse.PID != os.Getpid() {
			t.Errorf("got %v (%+v), want locked by this process", err, inUse)
		}
	})
	t.Run("mounted", func(t *testing.T) {
		if out, err := exec.Command("mkfs.ext2", "-q", device).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext2 (e2fsprogs): %v: %s", err, out)
		}
		mountFD := mountNowhere(t, "ext2", "source", device)
		wantClaimed(t, device, Options{})
		must(t, unix.Close(mountFD))
	})
}

func wantClaimed(t *testing.T, path string, o Options) {
	t.Helper()
	d, err := Open(path, Raw, o)
	if err == nil {
		d.Close()
	}
	var inUse *InUseError
	if !errors.As(err, &inUse) || !errors.Is(err, ErrInUse) || !inUse.Claimed {
		t.Errorf("open %s: got %v, want a claimed device", path, err)
	}
}

func TestMountPointIn(t *testing.T) {
	const text = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n" +
		"35 22 7:1 / /srv/a\\040b rw - ext4 /dev/loop1 rw\n" +
		"short line\n"
	for _, c := range []struct {
		major, minor uint32
		want         string
	}{{254, 0, "/"}, {7, 1, `/srv/a\040b`}, {7, 11, ""}, {25, 40, ""}} {
		if got := mountPointIn(text, c.major, c.minor); got != c.want {
			t.Errorf("%d:%d: got %q, want %q", c.major, c.minor, got, c.want)
		}
	}
}

func TestInUseErrorText(t *testing.T) {
	for _, c := range []struct {
		err  InUseError
		want string
	}{
		{InUseError{Path: "/a"}, "open /a: in use: locked by a process that the kernel does not name"},
		{InUseError{Path: "/a", PID: 7, Command: "x\x1b"}, `open /a: in use: locked by process 7 ("x\x1b")`},
		{InUseError{Path: "/a", Claimed: true}, "open /a: in use: claimed by the kernel or another program"},
		{InUseError{Path: "/a", Claimed: true, MountPoint: "/srv"}, "open /a: in use: mounted on /srv"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
