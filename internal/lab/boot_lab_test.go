//go:build lab

package lab

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is booted once and shared by all tests of the package.
var machine *Machine

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	if os.Getenv("LAB_TEST_STARTER") != "" {
		return m.Run() // see TestQEMUDiesWithItsStarter
	}
	// go test may be killed: then this process must end too, and QEMU with it.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "set death signal:", err)
		return 1
	}
	start := time.Now()
	log := func(s string) { fmt.Fprintf(os.Stderr, "lab: %6.2fs %s\n", time.Since(start).Seconds(), s) }
	var err error
	machine, err = Boot(context.Background(), Options{Log: log, Suite: os.Getenv("LAB_SUITE")})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer machine.Close()
	log("dom0 is up")
	return m.Run()
}

// testContext ends with the test, or after minutes: an idle machine needs
// seconds, but several may share its cores.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// startGuest starts a guest that ends with the test.
func startGuest(t *testing.T, o GuestOptions) *Guest {
	t.Helper()
	g, err := machine.StartGuest(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestBootPV(t *testing.T)  { testBoot(t, PV) }
func TestBootPVH(t *testing.T) { testBoot(t, PVH) }

func testBoot(t *testing.T, kind string) {
	g := startGuest(t, GuestOptions{Type: kind})
	out, err := g.MustRun(testContext(t), "uname -s; cat /sys/hypervisor/type; cat /sys/hypervisor/guest_type; cat /proc/uptime")
	t.Log(out)
	if err != nil {
		t.Fatal(err)
	}
	if want := "Linux\nxen\n" + strings.ToUpper(kind) + "\n"; !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want prefix %q", out, want)
	}
}
