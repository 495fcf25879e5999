//go:build lab

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestXenstore runs the conformance suite of package xs, which fakexen's
// xenstored passes, against the real one, over both of its doors.
func TestXenstore(t *testing.T) {
	noLeaks(t)
	cmd := exec.Command("go", "test", "-c", "-o", filepath.Join(machine.ShareDir(), "xs.test"), "xen-disk/xs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the suite: %v: %s", err, out)
	}
	dom0(t, "cp /share/xs.test /tmp/xs.test")
	t.Cleanup(func() { dom0(t, "rm /tmp/xs.test") })
	for _, path := range []string{"/run/xenstored/socket", "/dev/xen/xenbus"} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			// What it says belongs into the error, if it fails.
			dom0(t, "XS_TEST_PATH="+path+" /tmp/xs.test -test.v -test.timeout 60s -test.run Conformance >&2")
		})
	}
}

// TestXenstoreWithoutXen runs what package xs asks of a real xenstored on this
// machine, with the C and the OCaml one of the suite's packages: there it can
// be killed, restarted and refused, which a dom0's must not be.
func TestXenstoreWithoutXen(t *testing.T) {
	pkgs, err := packages(DefaultSuite)
	if err != nil {
		t.Fatal(err)
	}
	base, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := unpack(testContext(t), filepath.Join(base, packagesKey(DefaultSuite, pkgs)), root); err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Glob(filepath.Join(root, "usr/lib/xen-*/bin/*xenstored"))
	if err != nil || len(programs) != 2 {
		t.Fatalf("xenstoreds: %v, %v, want the C and the OCaml one", programs, err)
	}
	cmd := exec.Command("go", "test", "-tags", "realxenstored", "-count", "1", "-run", "Real", "xen-disk/xs")
	cmd.Env = append(os.Environ(), "XS_REAL_XENSTORED="+strings.Join(programs, ":"),
		"XS_REAL_LIBS="+filepath.Join(root, "usr/lib/x86_64-linux-gnu"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%v: %s", programs, out)
}
