//go:build lab

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// xenDisk builds the binary once, puts it into dom0's path and returns its
// name there.
var xenDisk = sync.OnceValues(func() (string, error) {
	path := filepath.Join(machine.ShareDir(), "xen-disk")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "xen-disk")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build xen-disk: %w: %s", err, out)
	}
	_, err := machine.Dom0().Shell(context.Background(), "cp /share/xen-disk /bin/xen-disk")
	return "xen-disk", err
})

// attached is a xen-disk connect that runs in dom0.
type attached struct {
	t    *testing.T
	p    *Process
	vdev string
}

var deviceLine = regexp.MustCompile(`^Device: +(\S+) `)

// start starts xen-disk connect and waits until it has made the device.
func start(t *testing.T, g *Guest, args ...string) *attached {
	t.Helper()
	name, err := xenDisk()
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	p, err := machine.Dom0().Start(ctx, append([]string{name, "connect", g.Name()}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	a := &attached{t: t, p: p}
	line, err := p.WaitLine(ctx, deviceLine)
	if err != nil {
		t.Fatalf("xen-disk connect: %v\n%s%s", err, p.Stdout(), p.Stderr())
	}
	a.vdev = deviceLine.FindStringSubmatch(line)[1]
	return a
}

// connect is start, and waits until the guest has the disk.
func connect(t *testing.T, g *Guest, args ...string) *attached {
	t.Helper()
	a := start(t, g, args...)
	a.waitLine(`^Connected:`)
	if _, err := g.MustRun(testContext(t), "until test -b /dev/"+a.vdev+"; do sleep 0.01; done"); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *attached) waitLine(re string) {
	a.t.Helper()
	if _, err := a.p.WaitLine(testContext(a.t), regexp.MustCompile(re)); err != nil {
		a.t.Fatalf("xen-disk connect: no line %s: %v\n%s%s", re, err, a.p.Stdout(), a.p.Stderr())
	}
}

// detach presses Ctrl-C and waits for the end.
func (a *attached) detach() {
	a.t.Helper()
	a.p.Signal(syscall.SIGINT)
	a.wait(0)
}

func (a *attached) wait(want int) {
	a.t.Helper()
	code, err := a.p.Wait(testContext(a.t))
	if err != nil || code != want {
		a.t.Fatalf("xen-disk connect: exit code %d, %v, want %d\n%s%s", code, err, want, a.p.Stdout(), a.p.Stderr())
	}
	if a.p.Stderr() != "" && want == 0 {
		a.t.Errorf("xen-disk connect wrote to standard error: %s", a.p.Stderr())
	}
}

// noLeaks compares the machine at the end of the test with now: nodes,
// domains, event channels and grants.
func noLeaks(t *testing.T) {
	t.Helper()
	before, err := machine.Snapshot(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The toolstack goes on cleaning up after xl has returned.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for {
			after, err := machine.Snapshot(ctx)
			if err != nil {
				t.Fatal(err)
			}
			leaks := Leaks(before, after)
			if len(leaks) == 0 {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("leaked:\n%s", strings.Join(leaks, "\n"))
			}
		}
	})
}

// dom0 runs a shell script in dom0.
func dom0(t *testing.T, script string) string {
	t.Helper()
	out, err := machine.Dom0().Shell(testContext(t), script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// inGuest runs a shell script in the guest.
func inGuest(t *testing.T, g *Guest, script string) string {
	t.Helper()
	out, err := g.MustRun(testContext(t), script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestSeedDiscard(t *testing.T) {
	noLeaks(t)
	g := startGuest(t, GuestOptions{Name: "debian"})
	a := connect(t, g)
	out := inGuest(t, g, "dd if=/dev/"+a.vdev+" of=/dev/null bs=1M iflag=direct count=100 2>&1")
	t.Log(out)
	if !regexp.MustCompile(`\d (MB|GB|kB)/s`).MatchString(out) {
		t.Errorf("dd printed no rate: %s", out)
	}
	a.detach()
	t.Log(a.p.Stdout())
	for _, want := range []string{"ring occupancy", "segments a request", "answered ok"} {
		if !strings.Contains(a.p.Stdout(), want) {
			t.Errorf("no %q in what was printed at exit", want)
		}
	}
}

func TestDataPVMmap(t *testing.T)  { testData(t, PV, "mmap", "512", "4k", "64k", "1M") }
func TestDataPVHRaw(t *testing.T)  { testData(t, PVH, "raw", "512", "4k", "64k", "1M") }
func TestDataPVRaw(t *testing.T)   { testData(t, PV, "raw", "64k") }
func TestDataPVHMmap(t *testing.T) { testData(t, PVH, "mmap", "64k") }

const fioVerified = "--rw=write --ioengine=libaio --iodepth=32 --direct=1 --verify=crc32c --verify_fatal=1 --bs="

// testData writes 64 MiB through the disk at several block sizes and reads
// them back, which fio checks block by block, and compares the sum of what the
// guest sees with that of the image as dom0 sees it; then makes and checks a
// file system; then detaches, attaches again and looks once more.
func testData(t *testing.T, kind, format string, sizes ...string) {
	noLeaks(t)
	g := startGuest(t, GuestOptions{Name: "data", Type: kind, Fio: true})
	const image = "/tmp/data.raw"
	dom0(t, "truncate -s 72M "+image)
	t.Cleanup(func() { dom0(t, "rm "+image) })
	a := connect(t, g, "--path", image, "--format", format, "--vdev", "xvdb")
	for _, bs := range sizes {
		began := time.Now()
		// Submitted in batches, neighbours become one request of many
		// segments; a batch of one for the first MiB keeps them apart.
		inGuest(t, g, "fio --name=alone --filename=/dev/xvdb --size=1M "+fioVerified+bs+
			" && fio --name=batch --filename=/dev/xvdb --size=64M --iodepth_batch_submit=32 "+fioVerified+bs)
		guest := inGuest(t, g, "dd if=/dev/xvdb bs=1M count=64 iflag=direct status=none | sha256sum")
		image := dom0(t, "head -c 67108864 "+image+" | sha256sum")
		t.Logf("%s %s bs=%s: %.1fs", kind, format, bs, time.Since(began).Seconds())
		if guest != image {
			t.Fatalf("bs=%s: the guest sees %s, dom0 %s", bs, guest, image)
		}
	}
	inGuest(t, g, `mkfs.ext4 -q /dev/xvdb && mkdir -p /mnt && mount -t ext4 /dev/xvdb /mnt &&
		head -c 5000000 /dev/urandom >/mnt/file && (cd /mnt && sha256sum file >sum) && umount /mnt && e2fsck -fn /dev/xvdb`)
	a.detach()
	inGuest(t, g, "while test -e /dev/xvdb; do sleep 0.01; done")
	dom0(t, "e2fsck -fn "+image)

	a = connect(t, g, "--path", image, "--format", format, "--vdev", "xvdb", "--read-only")
	inGuest(t, g, `mount -t ext4 -o ro,noload /dev/xvdb /mnt && (cd /mnt && sha256sum -c sum) && umount /mnt &&
		! dd if=/bin/busybox of=/dev/xvdb bs=4k count=1 oflag=direct`)
	a.detach()
}

// TestDestroyUnderLoad destroys guests while they read and write.
func TestDestroyUnderLoad(t *testing.T) {
	for _, kind := range []string{PV, PVH} {
		for _, format := range []string{"mmap", "raw"} {
			t.Run(kind+"/"+format, func(t *testing.T) {
				noLeaks(t)
				ctx := testContext(t)
				g, err := machine.StartGuest(ctx, GuestOptions{Name: "doomed", Type: kind})
				if err != nil {
					t.Fatal(err)
				}
				destroyed := false
				t.Cleanup(func() {
					if !destroyed {
						_ = g.Destroy(context.Background()) // the test has failed already
					}
				})
				dom0(t, "truncate -s 64M /tmp/doomed.raw")
				t.Cleanup(func() { dom0(t, "rm /tmp/doomed.raw") })
				a := connect(t, g, "--path", "/tmp/doomed.raw", "--format", format)
				inGuest(t, g, fmt.Sprintf(`
					for i in 1 2 3 4; do
						(while :; do dd if=/dev/zero of=/dev/%[1]s bs=64k count=1000 oflag=direct; done) >/dev/null 2>&1 &
						(while :; do dd if=/dev/%[1]s of=/dev/null bs=4k count=1000 iflag=direct; done) >/dev/null 2>&1 &
					done
					until awk '$1 == 0 || $5 == 0 { exit 1 }' /sys/block/%[1]s/stat; do sleep 0.01; done`, a.vdev))
				destroyed = true
				if err := g.Destroy(ctx); err != nil {
					t.Fatal(err)
				}
				a.wait(0)
				if !strings.Contains(a.p.Stdout(), "is gone") {
					t.Errorf("it does not say that the guest is gone:\n%s", a.p.Stdout())
				}
			})
		}
	}
}

// TestConnectGrub lets GRUB, a frontend with code of its own, read a file.
func TestConnectGrub(t *testing.T) {
	for _, c := range []struct{ kind, protocol string }{{PV, "x86_64-abi"}, {PVH, "x86_32-abi"}} {
		t.Run(c.protocol, func(t *testing.T) {
			noLeaks(t)
			ctx := testContext(t)
			blob := make([]byte, 8<<20)
			for i := range blob {
				blob[i] = byte(i>>12) ^ byte(i*7)
			}
			image := filepath.Join(machine.ShareDir(), "grub.raw")
			if err := GrubImage(ctx, image, 32, map[string][]byte{"/blob": blob}); err != nil {
				t.Fatal(err)
			}
			dom0(t, "cp /share/grub.raw /tmp/grub.raw")
			t.Cleanup(func() { dom0(t, "rm /tmp/grub.raw") })
			g, err := machine.StartGrub(ctx, GuestOptions{Name: "grub", Type: c.kind})
			if err != nil {
				t.Fatal(err)
			}
			a := start(t, g, "--path", "/tmp/grub.raw", "--format", "raw")
			if err := g.Unpause(ctx); err != nil {
				t.Fatal(err)
			}
			a.waitLine("^Connected: protocol " + c.protocol)
			sums, err := g.GrubSums(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if want := sha256Hex(blob); sums["/blob"] != want {
				t.Errorf("GRUB says that /blob sums to %s, want %s", sums["/blob"], want)
			}
			if err := g.Destroy(ctx); err != nil {
				t.Fatal(err)
			}
			a.wait(0)
		})
	}
}

// TestSilentGuest: a guest whose driver never answers is waited for with a
// reason, and Ctrl-C leaves nothing behind.
func TestSilentGuest(t *testing.T) {
	noLeaks(t)
	g, err := machine.StartGuest(testContext(t), GuestOptions{Name: "silent", Paused: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	a := start(t, g)
	a.waitLine(`^Waiting for the guest's block driver \(frontend is Initialising\)`)
	a.p.Signal(syscall.SIGINT)
	a.wait(5)
	if !strings.Contains(a.p.Stderr(), "never took") {
		t.Errorf("it says: %s", a.p.Stderr())
	}
}

// TestWrongUse: each mistake gets an answer of three lines and its exit code.
func TestWrongUse(t *testing.T) {
	noLeaks(t)
	name, err := xenDisk()
	if err != nil {
		t.Fatal(err)
	}
	g := startGuest(t, GuestOptions{Name: "debian"})
	dom0(t, "truncate -s 1M /tmp/a.raw; truncate -s 1M /tmp/b.raw; mkdir -p /tmp/dir; truncate -s 100 /tmp/small.raw; truncate -s 1100 /tmp/tail.raw")
	t.Cleanup(func() { dom0(t, "rm -r /tmp/a.raw /tmp/b.raw /tmp/dir /tmp/small.raw /tmp/tail.raw") })
	a := connect(t, g, "--path", "/tmp/a.raw", "--vdev", "xvdb")
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no such VM", []string{"connect", "nobody"}, 3, `no virtual machine "nobody"`},
		{"no such image", []string{"connect", "debian", "--path", "/tmp/none.raw"}, 3, "no such file"},
		{"a directory", []string{"connect", "debian", "--path", "/tmp/dir"}, 2, "directory"},
		{"too small", []string{"connect", "debian", "--path", "/tmp/small.raw"}, 1, "sector"},
		{"image in use", []string{"connect", "debian", "--path", "/tmp/a.raw"}, 4, "in use"},
		{"vdev taken", []string{"connect", "debian", "--path", "/tmp/b.raw", "--vdev", "xvdb"}, 4, "xvdb is in use"},
		{"bad vdev", []string{"connect", "debian", "--vdev", "vda"}, 2, "vda"},
		{"format without path", []string{"connect", "debian", "--format", "raw"}, 2, "--path"},
	} {
		p, err := machine.Dom0().Start(testContext(t), append([]string{name}, c.args...)...)
		if err != nil {
			t.Fatal(err)
		}
		code, err := p.Wait(testContext(t))
		if err != nil || code != c.code || !strings.Contains(p.Stderr(), c.want) || strings.Count(p.Stderr(), "\n") > 3 {
			t.Errorf("%s: exit code %d, %v, want %d and %q in three lines:\n%s", c.name, code, err, c.code, c.want, p.Stderr())
		}
	}
	tail := connect(t, g, "--path", "/tmp/tail.raw", "--vdev", "xvdc")
	if !strings.Contains(tail.p.Stdout(), "last 76 bytes") {
		t.Errorf("nothing is said of the tail:\n%s", tail.p.Stdout())
	}
	if out := inGuest(t, g, "blockdev --getsize64 /dev/xvdc"); out != "1024" {
		t.Errorf("the guest sees %s bytes, want 1024", out)
	}
	tail.detach()
	a.detach()
}
