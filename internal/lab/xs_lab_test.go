//go:build lab

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
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
			out := dom0(t, "XS_TEST_PATH="+path+" /tmp/xs.test -test.v -test.timeout 60s -test.run Conformance 2>&1 || { echo failed; false; }")
			t.Log(out)
		})
	}
}
