//go:build lab

package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// machine is booted once and shared by all tests of the package.
var machine *Machine

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	start := time.Now()
	log := func(s string) { fmt.Fprintf(os.Stderr, "lab: %6.2fs %s\n", time.Since(start).Seconds(), s) }
	var err error
	machine, err = Boot(context.Background(), Options{Log: log})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer machine.Close()
	log("dom0 is up")
	return m.Run()
}

// testContext ends with the test, or after a minute.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
