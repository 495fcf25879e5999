//go:build lab

package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
)

// xenDisk builds the binary once and returns its path in dom0.
var xenDisk = sync.OnceValues(func() (string, error) {
	path := filepath.Join(machine.ShareDir(), "xen-disk")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "xen-disk")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return string(out), err
	}
	_, err := machine.Dom0().Shell(context.Background(), "cp /share/xen-disk /bin/xen-disk")
	return "/bin/xen-disk", err
})

// attached is a xen-disk connect that runs in dom0.
type attached struct {
	t    *testing.T
	p    *Process
	vdev string
}

var deviceLine = regexp.MustCompile(`^Device: +(\S+) `)

// connect starts xen-disk connect and waits until the guest has the disk.
func connect(t *testing.T, g *Guest, args ...string) *attached {
	t.Helper()
	path, err := xenDisk()
	if err != nil {
		t.Fatal(path, err)
	}
	ctx := testContext(t)
	p, err := machine.Dom0().Start(ctx, append([]string{path, "connect", g.Name()}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	a := &attached{t: t, p: p}
	for _, re := range []*regexp.Regexp{deviceLine, regexp.MustCompile(`^Connected:`)} {
		line, err := p.WaitLine(ctx, re)
		if err != nil {
			t.Fatalf("xen-disk connect: %v\n%s%s", err, p.Stdout(), p.Stderr())
		}
		if m := deviceLine.FindStringSubmatch(line); m != nil {
			a.vdev = m[1]
		}
	}
	return a
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
}

func TestSeedDiscard(t *testing.T) {
	g := startGuest(t, GuestOptions{Name: "debian"})
	a := connect(t, g, "-v")
	out, err := g.MustRun(testContext(t), "dd if=/dev/"+a.vdev+" of=/dev/null bs=1M iflag=direct count=100 2>&1")
	t.Log(out)
	if err != nil {
		t.Error(err)
	}
	a.detach()
	t.Log(a.p.Stdout(), a.p.Stderr())
}
