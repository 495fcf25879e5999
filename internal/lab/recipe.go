package lab

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"sort"
)

// DefaultSuite is booted where the caller names no suite: Debian 12, which is
// Xen 4.17 and Linux 6.1.
const DefaultSuite = "bookworm"

// xenVersions names the hypervisor that each known suite ships; the package
// names carry it.
var xenVersions = map[string]string{
	"bookworm": "4.17",
	"trixie":   "4.20",
}

// packages are what apt is asked for; it adds all that they depend on.
func packages(suite string) ([]string, error) {
	v, ok := xenVersions[suite]
	if !ok {
		return nil, fmt.Errorf("choose suite %q: known are bookworm and trixie", suite)
	}
	return []string{
		"xen-hypervisor-" + v + "-amd64", "xen-utils-" + v, "xenstore-utils",
		"linux-image-amd64", "busybox-static", "dash", "coreutils", "util-linux", "mount",
		"e2fsprogs", "fio", "grub-xen-host",
	}, nil
}

// image is what goes into one initramfs. Programs bring their libraries
// along, modules the modules that they need.
type image struct {
	name     string
	init     string   // a file of init/, becomes /init
	programs []string // globs below the unpacked root
	data     []string // globs of files that are copied as they are
	modules  []string // packed; those that boot loads are named in its init
	scripts  map[string]string
}

var shell = []string{
	"/bin/dash", "/bin/busybox", "/bin/dd", "/bin/sync", "/usr/bin/sha256sum", "/usr/bin/flock",
	"/sbin/blockdev", "/sbin/blkdiscard", "/sbin/fstrim", "/sbin/losetup",
	"/sbin/mke2fs", "/sbin/mkfs.ext[34]", "/sbin/e2fsck", "/sbin/fsck.ext[34]",
	"/sbin/dumpe2fs", "/sbin/debugfs",
}

var images = []image{
	{
		name: "dom0",
		init: "init/dom0.sh",
		programs: append([]string{
			"/usr/lib/xen-*/bin/xl", "/usr/lib/xen-*/bin/xenstored",
			"/usr/lib/xen-*/bin/xenconsoled", "/usr/lib/xen-*/bin/xen-init-dom0",
			"/usr/lib/xen-*/bin/libxl-save-helper", "/usr/lib/xen-*/bin/lsevtchn",
			"/usr/lib/xen-*/bin/xen-diag", "/usr/lib/xen-*/bin/xenctx",
			"/usr/lib/xen-*/bin/xenstore-control", "/usr/lib/xen-*/bin/xentop",
			"/usr/bin/xenstore-*", "/usr/bin/xenstore",
		}, shell...),
		data: []string{
			"/etc/xen/xl.conf", "/usr/lib/xen-*/boot/xen-shim",
			"/usr/lib/grub-xen/grub-x86_64-xen.bin", "/usr/lib/grub-xen/grub-i386-xen_pvh.bin",
		},
		modules: []string{
			"xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc",
			"virtio_pci", "9pnet_virtio", "9p", "virtio_console",
			"xen-blkback", "xen-blkfront", "null_blk", "loop", "ext4",
			"crc32c_generic", "crc32c-intel", "nbd",
		},
		scripts: map[string]string{"/etc/xen/scripts/block": "init/block.sh"},
	},
	{name: "guest", init: "init/guest.sh", programs: shell, modules: guestModules},
	{
		name: "guest-fio", init: "init/guest.sh", modules: guestModules,
		programs: append([]string{"/usr/bin/fio"}, shell...),
	},
}

var guestModules = []string{"xen-blkfront", "null_blk", "loop", "ext4", "crc32c_generic", "crc32c-intel"}

// recipeFiles are the sources that decide what the images contain: their
// hash is the cache's key, so that a changed recipe is a different directory.
//
//go:embed recipe.go pack.go elf.go modules.go kernel.go cpio.go init/*.sh
var recipeFiles embed.FS

// recipeKey names the cache directory of the images of a suite.
func recipeKey(suite string) string {
	h := sha256.New()
	var names []string
	_ = fs.WalkDir(recipeFiles, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	sort.Strings(names)
	for _, name := range names {
		data, err := recipeFiles.ReadFile(name)
		if err != nil {
			panic(fmt.Sprintf("read embedded %s: %v", name, err)) // compiled in
		}
		fmt.Fprintf(h, "%s %d\n", name, len(data))
		h.Write(data)
	}
	return suite + "-" + hex.EncodeToString(h.Sum(nil))[:12]
}

// packagesKey names the cache directory of the downloaded packages: they
// outlive a change of what is made from them.
func packagesKey(suite string, pkgs []string) string {
	return fmt.Sprintf("%s-debs-%x", suite, sha256.Sum256([]byte(fmt.Sprint(pkgs))))[:len(suite)+6+12]
}
