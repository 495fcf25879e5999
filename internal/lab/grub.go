package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// GRUB is a frontend with its own blkfront: polled, one page of ring, one
// segment a request. It comes in two ABIs.
const (
	grubPV  = "/usr/lib/grub-xen/grub-x86_64-xen.bin"   // x86_64-abi
	grubPVH = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin" // x86_32-abi
)

// maxGrubPath keeps a sum and its path within GRUB's 80 columns, where it
// would break the line.
const maxGrubPath = 80 - 64 - 2 - 1

// GrubDone is what the lab's grub.cfg prints last.
const GrubDone = "lab: grub is done"

// GrubImage writes a disk image for GRUB: an ext2 file system of sizeMiB with
// /boot/grub/grub.cfg and the files named (path in the image -> content). The
// script sums each file with SHA-256 and prints GrubDone. It runs on the host
// and mounts nothing.
func GrubImage(ctx context.Context, image string, sizeMiB int, files map[string][]byte) error {
	dir, err := os.MkdirTemp("", "xen-disk-grub-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	all := map[string][]byte{"/boot/grub/grub.cfg": []byte(grubConfig(files))}
	for path, data := range files {
		if len(path) > maxGrubPath {
			return fmt.Errorf("make grub image: path %s is longer than %d", path, maxGrubPath)
		}
		all[path] = data
	}
	for path, data := range all {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	mke2fs, err := lookTool("mke2fs")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext2", "-d", dir,
		image, fmt.Sprintf("%dM", sizeMiB)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make grub image: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// grubConfig sums every file, in the order of their names.
func grubConfig(files map[string][]byte) string {
	var b strings.Builder
	for _, path := range sortedKeys(files) {
		fmt.Fprintf(&b, "hashsum --hash sha256 %s\n", path)
	}
	fmt.Fprintf(&b, "echo %q\nsleep 3600\n", GrubDone) // else GRUB shows its menu
	return b.String()
}

// StartGrub creates a paused guest that boots GRUB: the 64-bit frontend for
// PV, the 32-bit one for PVH. Its disk xvda must be served before Unpause.
func (m *Machine) StartGrub(ctx context.Context, o GuestOptions) (*Guest, error) {
	o.Kernel = grubPV
	if o.Type == PVH {
		o.Kernel = grubPVH
	}
	o.Paused = true
	return m.StartGuest(ctx, o)
}

// GrubSums waits until GRUB is done and returns the sums that it printed, by
// path.
func (g *Guest) GrubSums(ctx context.Context) (map[string]string, error) {
	if _, err := g.WaitConsole(ctx, regexp.MustCompile(GrubDone)); err != nil {
		return nil, err
	}
	return grubSums(g.ConsoleLog()), nil
}

// escapes are the terminal sequences with which GRUB moves and colours.
var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")

var sumLine = regexp.MustCompile(`([0-9a-f]{64})\s+(/\S+)`)

func grubSums(console string) map[string]string {
	console = strings.ReplaceAll(escapes.ReplaceAllString(console, ""), "\r", "")
	sums := map[string]string{}
	for _, m := range sumLine.FindAllStringSubmatch(console, -1) {
		sums[m[2]] = m[1]
	}
	return sums
}
