package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/vhd"
)

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string)
		want error
	}{
		{"missing file", func(*testing.T, string) {}, fs.ErrNotExist},
		{"directory", func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, ErrDirectory},
		{"fifo", func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }, ErrNotRegular},
		{"character device", func(t *testing.T, path string) { must(t, os.Symlink("/dev/zero", path)) }, ErrNotRegular},
		{"socket", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, ErrNotRegular},
		{"empty file", func(t *testing.T, path string) { writeFile(t, path, nil) }, ErrTooSmall},
		{"511 bytes", func(t *testing.T, path string) { writeFile(t, path, make([]byte, 511)) }, ErrTooSmall},
		{"dangling link", func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) }, fs.ErrNotExist},
		{"file as directory", func(t *testing.T, path string) { must(t, os.Symlink("/etc/passwd/x", path)) }, unix.ENOTDIR},
	} {
		for _, f := range []Format{Raw, Mmap} {
			for _, readOnly := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/read-only=%v", c.name, f, readOnly), func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "image")
					c.make(t, path)
					before := openFDs(t)
					d, err := Open(path, f, Options{ReadOnly: readOnly})
					if err == nil {
						d.Close()
					}
					if !errors.Is(err, c.want) {
						t.Fatalf("got %v, want %v", err, c.want)
					}
					if d != nil {
						t.Errorf("disk is %T, want nil", d)
					}
					if !strings.Contains(err.Error(), path) {
						t.Errorf("error does not name the path: %v", err)
					}
					if now := openFDs(t); len(now) != len(before) {
						t.Errorf("open fds: %q, want %q", now, before)
					}
				})
			}
		}
	}
}

func TestOpenRefusesFormats(t *testing.T) {
	path := image(t, sectorBytes)
	if _, err := Open(path, Format(99), Options{}); !errors.Is(err, ErrUnsupportedFormat) {
		t.Error(err)
	}
	if _, err := Open(path, VHD, Options{}); !errors.Is(err, vhd.ErrNotVHD) {
		t.Error(err)
	}
	if d, err := Open(path, Discard, Options{}); err == nil {
		t.Errorf("discard with a path opened as %+v", d.Info())
	}
}

// TestOpenWithoutPermission opens as nobody: fsuid belongs to the thread, and
// root loses its power over files with it.
func TestOpenWithoutPermission(t *testing.T) {
	const nobody = 65534
	path := image(t, sectorBytes)
	for dir := filepath.Dir(path); dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	must(t, os.Chmod(path, 0o644))
	asNobody := func(o Options) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		old, err := unix.SetfsuidRetUid(nobody)
		must(t, err)
		defer func() { must(t, unix.Setfsuid(old)) }()
		d, err := Open(path, Raw, o)
		if err == nil {
			d.Close()
		}
		return err
	}
	if err := asNobody(Options{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("writer of a file that nobody may read only: %v", err)
	}
	if err := asNobody(Options{ReadOnly: true}); err != nil {
		t.Errorf("reader of a file that nobody may read: %v", err)
	}
	must(t, os.Chmod(filepath.Dir(path), 0o700))
	if err := asNobody(Options{ReadOnly: true}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("file in a directory that nobody may not enter: %v", err)
	}
}

func TestInfo(t *testing.T) {
	file, tailed := image(t, 8192), image(t, 8192+511)
	device := loop(t, file)
	for _, c := range []struct {
		name, path string
		format     Format
		want       Info
	}{
		{"discard", "", Discard, Info{SizeBytes: 1 << 30, PhysicalSectorBytes: 512}},
		{"raw", file, Raw, Info{SizeBytes: 8192, PhysicalSectorBytes: 4096}},
		{"mmap", file, Mmap, Info{SizeBytes: 8192, PhysicalSectorBytes: 4096}},
		{"raw with tail", tailed, Raw, Info{SizeBytes: 8192, TailBytes: 511, PhysicalSectorBytes: 4096}},
		{"mmap with tail", tailed, Mmap, Info{SizeBytes: 8192, TailBytes: 511, PhysicalSectorBytes: 4096}},
		{"raw block device", device, Raw, Info{SizeBytes: 8192, PhysicalSectorBytes: 512}},
		{"mmap block device", device, Mmap, Info{SizeBytes: 8192, PhysicalSectorBytes: 512}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Format, c.want.Path = c.format, c.path
			if got := mustOpen(t, c.path, c.format, Options{}).Info(); got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	path := image(t, sectorBytes)
	for _, c := range []struct {
		format       Format
		path         string
		sink, memory bool
	}{
		{Raw, path, false, false},
		{Mmap, path, false, true},
		{Discard, "", true, false},
	} {
		d := mustOpen(t, c.path, c.format, Options{})
		if _, sink := d.(Sink); sink != c.sink {
			t.Errorf("%v: Sink is %v", c.format, sink)
		}
		if _, memory := d.(Memory); memory != c.memory {
			t.Errorf("%v: Memory is %v", c.format, memory)
		}
		d.Close()
	}
}

// TestTailIsNeverTouched writes every byte that there is to write.
func TestTailIsNeverTouched(t *testing.T) {
	for _, f := range []Format{Raw, Mmap} {
		t.Run(f.String(), func(t *testing.T) {
			const size = 3*sectorBytes + 77
			path := image(t, size)
			before := readFile(t, path)
			d := mustOpen(t, path, f, Options{})
			if i := d.Info(); i.SizeBytes != 3*sectorBytes || i.TailBytes != 77 {
				t.Fatalf("info %+v", i)
			}
			ones := bytes.Repeat([]byte{0xff}, 3*sectorBytes)
			if _, err := d.WriteAt(ones, 0); err != nil {
				t.Fatal(err)
			}
			if m, ok := d.(Memory); ok {
				for _, n := range []int{sectorBytes, 3 * sectorBytes} {
					if b := m.Bytes(0, n); len(b) != n || cap(b) != n {
						t.Errorf("Bytes of %d: len %d, cap %d", n, len(b), cap(b))
					}
				}
			}
			must(t, d.Close())
			after := readFile(t, path)
			if len(after) != size || !bytes.Equal(after[:3*sectorBytes], ones) ||
				!bytes.Equal(after[3*sectorBytes:], before[3*sectorBytes:]) {
				t.Error("the file is not: ones, then its old tail")
			}
		})
	}
}

// TestOpenTakesNonblockOff: it protects the open only, and a FUSE server would
// see it with each request.
func TestOpenTakesNonblockOff(t *testing.T) {
	d := mustOpen(t, image(t, sectorBytes), Raw, Options{})
	flags, err := unix.FcntlInt(uintptr(d.(*raw).file.fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

func TestFileSectorBytes(t *testing.T) {
	for blksize, want := range map[int64]int{
		-1: 512, 0: 512, 511: 512, 512: 512, 1023: 512, 1024: 1024, 1536: 1024,
		4096: 4096, 131072: 4096, 1 << 20: 4096, 6144: 4096, 1<<63 - 1: 4096,
	} {
		if got := fileSectorBytes(blksize); got != want {
			t.Errorf("fileSectorBytes(%d) = %d, want %d", blksize, got, want)
		}
	}
}

func TestParseFormat(t *testing.T) {
	for _, f := range []Format{Raw, Mmap, VHD, Discard} {
		if got, err := ParseFormat(f.String()); got != f || err != nil {
			t.Errorf("ParseFormat(%q) = %v, %v", f, got, err)
		}
	}
	for _, s := range []string{"", "RAW", "qcow2", "Format(7)", "raw "} {
		if f, err := ParseFormat(s); err == nil {
			t.Errorf("ParseFormat(%q) = %v, want an error", s, f)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
