//go:build lab

package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestGuestRun(t *testing.T) {
	g := startGuest(t, GuestOptions{Args: "test.args=1"})
	ctx := testContext(t)
	t.Run("output and code", func(t *testing.T) {
		out, code, err := g.Run(ctx, "echo to out; echo to err >&2; exit 7")
		if out != "to out\nto err\n" || code != 7 || err != nil {
			t.Errorf("got %q, %d, %v", out, code, err)
		}
	})
	t.Run("binary output, long script", func(t *testing.T) {
		script := "# " + strings.Repeat("long ", 1000) + "\nprintf '\\001\\000\\377\\r\\n<j2:1:x>'"
		out, code, err := g.Run(ctx, script)
		if out != "\x01\x00\xff\r\n<j2:1:x>" || code != 0 || err != nil {
			t.Errorf("got %q, %d, %v", out, code, err)
		}
	})
	t.Run("no output", func(t *testing.T) {
		if out, code, err := g.Run(ctx, ""); out != "" || code != 0 || err != nil {
			t.Errorf("got %q, %d, %v", out, code, err)
		}
	})
	t.Run("kernel messages in between", func(t *testing.T) {
		want := strings.Repeat("0123456789abcdef\n", 4000)
		out, err := g.MustRun(ctx, `dmesg -n 8
			(for i in $(seq 300); do echo "<0>noise $i" >/dev/kmsg; done) &
			for i in $(seq 4000); do echo 0123456789abcdef; done
			wait; dmesg -n 1`)
		if out != want || err != nil {
			t.Errorf("got %d bytes, want %d; %v", len(out), len(want), err)
		}
		if !strings.Contains(g.ConsoleLog(), "noise 300") {
			t.Error("the kernel's messages are not in the console's log")
		}
	})
	t.Run("side by side", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				out, err := g.MustRun(ctx, fmt.Sprintf("for n in $(seq 200); do echo job %d; done", i))
				if err != nil || out != strings.Repeat(fmt.Sprintf("job %d\n", i), 200) {
					t.Errorf("job %d: got %q, %v", i, out, err)
				}
			}()
		}
		wg.Wait()
	})
}

// TestGuestTools lists what the conformance tests rely on.
func TestGuestTools(t *testing.T) {
	ctx := testContext(t)
	g := startGuest(t, GuestOptions{Fio: true})
	out, err := g.MustRun(ctx, `set -e
		modprobe null_blk
		modprobe loop
		modprobe ext4
		fio --version
		for tool in mkfs.ext3 mkfs.ext4 fsck.ext4 e2fsck blkdiscard fstrim blockdev sha256sum dd losetup; do
			command -v $tool
		done
		dd if=/dev/nullb0 of=/dev/null iflag=direct bs=1M count=4 2>/dev/null
		fio --name=a --filename=/dev/nullb0 --rw=randread --bs=4k --ioengine=libaio --direct=1 \
			--iodepth=8 --size=4M --output-format=terse >/dev/null
		truncate -s 16M /tmp/disk
		mkfs.ext3 -q /tmp/disk
		e2fsck -f -n /tmp/disk >/dev/null 2>&1
		mount -o loop /tmp/disk /mnt
		umount /mnt
		echo all is there`)
	if err != nil || !strings.HasSuffix(out, "all is there\n") {
		t.Errorf("got %q, %v", out, err)
	}
}

// blkbackDisk lets the kernel's own backend serve a file of dom0 as xvda, until
// the test ends.
func blkbackDisk(t *testing.T, file string) string {
	t.Helper()
	if _, err := machine.Dom0().Shell(testContext(t), "modprobe xen-blkback && modprobe loop"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := machine.Dom0().Run(testContext(t), "rmmod", "xen_blkback"); err != nil {
			t.Error(err)
		}
	})
	return fmt.Sprintf("disk = [%q]", "phy:"+file+",xvda,w")
}

func TestKernelBlkback(t *testing.T) {
	for _, kind := range []string{PV, PVH} {
		t.Run(kind, func(t *testing.T) {
			ctx := testContext(t)
			if _, err := machine.Dom0().Run(ctx, "truncate", "-s", "32M", "/tmp/blkback.img"); err != nil {
				t.Fatal(err)
			}
			disk := blkbackDisk(t, "/tmp/blkback.img")
			g := startGuest(t, GuestOptions{Type: kind, ExtraConfig: disk,
				Blkfront: []string{"feature_persistent=0", "max_queues=1"}})
			out, err := g.MustRun(ctx, `set -e
				mkfs.ext4 -q /dev/xvda
				mount /dev/xvda /mnt
				echo hello >/mnt/file
				umount /mnt
				e2fsck -f -n /dev/xvda >/dev/null 2>&1
				cat /sys/module/xen_blkfront/parameters/feature_persistent`)
			if err != nil || out != "N\n" {
				t.Errorf("got %q, %v", out, err)
			}
		})
	}
}

func TestGrub(t *testing.T) {
	blob := bytes.Repeat([]byte("sixteen letters\n"), 1<<16)
	sum := sha256.Sum256(blob)
	image := filepath.Join(machine.ShareDir(), "grub.img")
	if err := GrubImage(testContext(t), image, 8, map[string][]byte{"/blob": blob, "/empty": nil}); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(image)
	for _, kind := range []string{PV, PVH} {
		t.Run(kind, func(t *testing.T) {
			ctx := testContext(t)
			if _, err := machine.Dom0().Run(ctx, "cp", "/share/grub.img", "/tmp/grub.img"); err != nil {
				t.Fatal(err)
			}
			disk := blkbackDisk(t, "/tmp/grub.img")
			g, err := machine.StartGrub(ctx, GuestOptions{Type: kind, ExtraConfig: disk})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Destroy(ctx)
			if err := g.Unpause(ctx); err != nil {
				t.Fatal(err)
			}
			sums, err := g.GrubSums(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if sums["/blob"] != hex.EncodeToString(sum[:]) || len(sums) != 2 {
				t.Errorf("got %v, want %x for /blob", sums, sum)
			}
		})
	}
}
