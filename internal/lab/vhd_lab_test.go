//go:build lab

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestVHD lets a guest make a file system on a dynamic image and then on a
// child of it, gives space back with fstrim, and has the images checked.
func TestVHD(t *testing.T) {
	noLeaks(t)
	if _, err := xenDisk(); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{PV, PVH} {
		t.Run(kind, func(t *testing.T) {
			g := startGuest(t, GuestOptions{Name: "vhd", Type: kind})
			dom0(t, "mkdir /tmp/vhd && cd /tmp/vhd && xen-disk image create base.vhd --size 96MiB")
			t.Cleanup(func() { dom0(t, "rm -r /tmp/vhd /share/vhd") })
			useVHD(t, g, "base.vhd", "mkfs.ext4 -q /dev/xvdb", "first")
			dom0(t, "cd /tmp/vhd && xen-disk image snapshot base.vhd child.vhd && sha256sum base.vhd >base.sum")
			useVHD(t, g, "child.vhd", "true", "second")
			sums := dom0(t, `cd /tmp/vhd && sha256sum -c base.sum >&2 && mkdir /share/vhd && cp base.vhd child.vhd /share/vhd &&
				for image in base child; do
					xen-disk image convert $image.vhd $image.raw >&2 && e2fsck -fn $image.raw >&2 && sha256sum <$image.raw
				done`)
			sum := strings.Fields(sums) // sum, "-", sum, "-"
			judgeVHD(t, filepath.Join(machine.ShareDir(), "vhd"), sum[0], sum[2])
		})
	}
}

// useVHD attaches an image, runs prepare in the guest, writes a file that
// stays and one that goes, trims, and attaches the image again to look.
func useVHD(t *testing.T, g *Guest, image, prepare, file string) {
	t.Helper()
	path := "/tmp/vhd/" + image
	a := connect(t, g, "--path", path, "--format", "vhd", "--vdev", "xvdb")
	inGuest(t, g, prepare+` && mkdir -p /mnt && mount -t ext4 /dev/xvdb /mnt && cd /mnt &&
		head -c 5000000 /dev/urandom >`+file+` && sha256sum `+file+` >>sums &&
		head -c 40000000 /dev/urandom >gone && sync`)
	full := kibUsed(t, path)
	inGuest(t, g, "cd /mnt && rm gone && sync && fstrim -v /mnt && cd / && umount /mnt")
	trimmed := kibUsed(t, path)
	t.Logf("%s: %d KiB on the host, %d after fstrim", image, full, trimmed)
	if full < 40_000 || trimmed > full-35_000 {
		t.Errorf("%s: fstrim of 40 MB left %d KiB of %d", image, trimmed, full)
	}
	a.detach()
	dom0(t, "xen-disk image check "+path)

	a = connect(t, g, "--path", path, "--format", "vhd", "--vdev", "xvdb", "--read-only")
	inGuest(t, g, "mount -t ext4 -o ro,noload /dev/xvdb /mnt && (cd /mnt && sha256sum -c sums) && umount /mnt")
	a.detach()
}

// kibUsed is the space that a file takes in dom0.
func kibUsed(t *testing.T, path string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.Fields(dom0(t, "du -k "+path))[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// judgeVHD asks others for their reading of the images: QEMU for the dynamic
// one (its driver for VHD has no check, so the data are compared), 7-Zip for
// both (QEMU reads a child as zeros).
func judgeVHD(t *testing.T, dir, base, child string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "base.raw")
	out, err := exec.Command("qemu-img", "convert", "-f", "vpc", "-O", "raw", dir+"/base.vhd", raw).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img convert: %v: %s", err, out)
	}
	content, err := os.ReadFile(raw)
	if err != nil || sha256Hex(content) != base {
		t.Errorf("QEMU does not read base.vhd as we do: %v", err)
	}
	for image, want := range map[string]string{"base.vhd": base, "child.vhd": child} {
		content, err := exec.Command("7zz", "e", "-tVHD", "-so", filepath.Join(dir, image)).Output()
		if err != nil || sha256Hex(content) != want {
			t.Errorf("7-Zip does not read %s as we do: %d bytes, %v", image, len(content), err)
		}
	}
}
