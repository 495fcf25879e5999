package lab

import (
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// packer makes the images of one suite from its unpacked packages.
type packer struct {
	root string // the unpacked packages
	out  string // where the images go
}

// pack writes everything that Boot needs into p.out: the hypervisor "xen",
// the kernel "vmlinux", one <name>.cpio an image, and GRUB.
func (p packer) pack() error {
	if err := p.hypervisor(); err != nil {
		return err
	}
	release, err := p.kernel()
	if err != nil {
		return err
	}
	for _, img := range images {
		if err := p.image(img, release); err != nil {
			return fmt.Errorf("pack image %s: %w", img.name, err)
		}
	}
	return nil
}

// hypervisor unpacks xen.gz: QEMU's multiboot loader wants the bare ELF.
func (p packer) hypervisor() error {
	path, err := p.one("/boot/xen-*-amd64.gz")
	if err != nil {
		return err
	}
	in, err := os.Open(filepath.Join(p.root, path))
	if err != nil {
		return err
	}
	defer in.Close()
	zr, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("unpack hypervisor: %w", err)
	}
	data, err := io.ReadAll(zr)
	if err != nil {
		return fmt.Errorf("unpack hypervisor: %w", err)
	}
	return os.WriteFile(filepath.Join(p.out, "xen"), data, 0o644)
}

// kernel unpacks the newest kernel and returns its release.
func (p packer) kernel() (release string, err error) {
	path, err := p.one("/boot/vmlinuz-*")
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(filepath.Join(p.root, path))
	if err != nil {
		return "", err
	}
	bare, err := bareKernel(data)
	if err != nil {
		return "", err
	}
	release = strings.TrimPrefix(filepath.Base(path), "vmlinuz-")
	return release, os.WriteFile(filepath.Join(p.out, "vmlinux"), bare, 0o644)
}

// one returns the last match of a glob below the root, as a path from there.
func (p packer) one(glob string) (string, error) {
	paths, err := p.glob(glob)
	if err != nil {
		return "", err
	}
	return paths[len(paths)-1], nil
}

// glob returns the matches below the root, as paths from there. Packages of
// newer suites have moved /bin and its like into /usr, so both are tried.
func (p packer) glob(glob string) ([]string, error) {
	for _, g := range []string{glob, "/usr" + glob} {
		found, err := filepath.Glob(filepath.Join(p.root, g))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			continue
		}
		for i := range found {
			found[i] = strings.TrimPrefix(found[i], p.root)
		}
		sort.Strings(found)
		return found, nil
	}
	return nil, fmt.Errorf("find %s: no package has it", glob)
}

// image writes one initramfs. It is not compressed: emulated decompression
// takes longer than reading the bytes.
func (p packer) image(img image, release string) (err error) {
	t := tree{}
	t.skeleton()
	if err := p.programs(t, img); err != nil {
		return err
	}
	for _, glob := range img.data {
		if err := p.add(t, glob); err != nil {
			return err
		}
	}
	mods, err := loadModules(p.root, release, img.modules)
	if err != nil {
		return err
	}
	dir := "usr/lib/modules/" + release + "/"
	for _, m := range mods {
		t.file(dir+m.name+".ko", 0o644, m.data)
	}
	t.file(dir+"modules.dep", 0o644, []byte(modulesDep(mods)))
	t.file(dir+"modules.alias", 0o644, []byte(modulesAlias(mods)))
	builtin, err := os.ReadFile(filepath.Join(moduleDir(p.root, release), "modules.builtin"))
	if err != nil {
		return err
	}
	t.file(dir+"modules.builtin", 0o644, builtin) // modprobe of these succeeds
	for path, source := range img.scripts {
		if err := t.script(path, source); err != nil {
			return err
		}
	}
	if err := t.script("init", img.init); err != nil {
		return err
	}
	return t.writeFile(filepath.Join(p.out, img.name+".cpio"))
}

// programs adds the image's programs, their libraries, and a link for each
// busybox applet in a directory that stands last in PATH, so that a real
// program of the same name wins.
func (p packer) programs(t tree, img image) error {
	libs := map[string]bool{}
	for _, glob := range img.programs {
		paths, err := p.glob(glob)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := libraries(p.root, path, libs); err != nil {
				return err
			}
		}
		if err := p.add(t, glob); err != nil {
			return err
		}
	}
	for lib := range libs {
		if err := p.add(t, lib); err != nil {
			return err
		}
	}
	busybox, err := p.one("/bin/busybox")
	if err != nil {
		return err
	}
	list, err := exec.Command(filepath.Join(p.root, busybox), "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox applets: %w", err)
	}
	for _, applet := range strings.Fields(string(list)) {
		t.link("usr/lib/busybox/"+applet, "/usr/bin/busybox")
	}
	t.link("usr/bin/sh", "dash")
	t.link("usr/sbin/modprobe", "/usr/bin/busybox") // the kernel calls this path
	return nil
}

// add copies what a glob matches; the target of a symbolic link is copied
// too, under the link's own name.
func (p packer) add(t tree, glob string) error {
	paths, err := p.glob(glob)
	if err != nil {
		return err
	}
	for _, path := range paths {
		real, err := filepath.EvalSymlinks(filepath.Join(p.root, path))
		if err != nil {
			return err
		}
		info, err := os.Stat(real)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(real)
		if err != nil {
			return err
		}
		t.file(path, info.Mode().Perm(), data)
	}
	return nil
}

// tree is a file system in memory, by path without a leading slash.
type tree map[string]node

type node struct {
	mode   fs.FileMode
	data   []byte
	target string // of a symbolic link
}

// skeleton adds the directories and links that every image has. Everything
// lives below /usr, as in Debian since bookworm.
func (t tree) skeleton() {
	for _, dir := range []string{
		"proc", "sys", "dev", "run", "tmp", "var/log/xen/console", "var/lib/xen",
		"etc/xen/scripts", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "root", "mnt",
	} {
		t.dir(dir)
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		t[name] = node{mode: fs.ModeSymlink, target: "usr/" + name}
	}
	t.link("var/run", "/run")
	t.link("var/lock", "/run/lock")
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\n"))
	t.file("etc/filesystems", 0o644, []byte("ext4\next3\next2\n")) // what mount tries
}

// canonical moves the paths of the four merged directories below usr.
func canonical(path string) string {
	path = strings.TrimPrefix(filepath.Clean("/"+path), "/")
	for _, top := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(path, top) {
			return "usr/" + path
		}
	}
	return path
}

func (t tree) dir(path string) {
	for path = canonical(path); path != "."; path = filepath.Dir(path) {
		t[path] = node{mode: fs.ModeDir | 0o755}
	}
}

func (t tree) file(path string, perm fs.FileMode, data []byte) {
	path = canonical(path)
	t.dir(filepath.Dir(path))
	t[path] = node{mode: perm, data: data}
}

func (t tree) link(path, target string) {
	path = canonical(path)
	t.dir(filepath.Dir(path))
	t[path] = node{mode: fs.ModeSymlink, target: target}
}

func (t tree) script(path, source string) error {
	data, err := recipeFiles.ReadFile(source)
	if err != nil {
		return err
	}
	t.file(path, 0o755, data)
	return nil
}

// writeTo writes the tree as a cpio archive, parents before children.
func (t tree) writeTo(w io.Writer) error {
	c := newCpioWriter(w)
	paths := make([]string, 0, len(t))
	for path := range t {
		paths = append(paths, path)
	}
	sort.Strings(paths)
	for _, path := range paths {
		n := t[path]
		switch {
		case n.mode.IsDir():
			c.dir(path, int(n.mode.Perm()))
		case n.mode&fs.ModeSymlink != 0:
			c.symlink(path, n.target)
		default:
			c.file(path, int(n.mode.Perm()), n.data)
		}
	}
	return c.close()
}

func (t tree) writeFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := t.writeTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
