package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// store is where images lie; make makes one with random contents.
type store struct {
	name string
	make func(t *testing.T, sizeBytes int) string
}

// allStores differ in what they can do with space: ext4 all of it, tmpfs no
// zeros without a hole, ramfs nothing. The devices are as the files below.
func allStores() []store {
	tmpfs := func(t *testing.T) string { return tinyFS(t, 8<<20) }
	return []store{
		{"ext4", inDir(ext4)},
		{"tmpfs", inDir(tmpfs)},
		{"ramfs", inDir(ramfs)},
		{"loop over a file", onLoop(image, 0)},
		{"loop over tmpfs", onLoop(inDir(tmpfs), 0)},
		{"loop over ramfs", onLoop(inDir(ramfs), 0)},
		{"loop of 4 KiB sectors", onLoop(image, 4096)},
	}
}

func inDir(dir func(t *testing.T) string) func(t *testing.T, sizeBytes int) string {
	return func(t *testing.T, sizeBytes int) string {
		path := filepath.Join(dir(t), "disk.img")
		writeFile(t, path, pattern(sizeBytes))
		return path
	}
}

func onLoop(file func(t *testing.T, sizeBytes int) string, blockBytes uint32) func(t *testing.T, sizeBytes int) string {
	return func(t *testing.T, sizeBytes int) string {
		return loopOf(t, file(t, sizeBytes), blockBytes)
	}
}

// loop puts a loop device over the file at path. It needs root and the loop
// driver, and fails where they are missing: a skip would look like a pass.
func loop(t *testing.T, path string) string { return loopOf(t, path, 0) }

// loopOf makes logical blocks of that many bytes; 0 is 512. The device goes
// when the test ends, or dies.
func loopOf(t *testing.T, path string, blockBytes uint32) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		name := fmt.Sprintf("/dev/loop%d", n)
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		err = unix.IoctlLoopConfigure(fd, &unix.LoopConfig{
			Fd: uint32(file.Fd()), Size: blockBytes,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
			return name
		}
		unix.Close(fd)
		if !errors.Is(err, unix.EBUSY) { // EBUSY: another process was quicker
			t.Fatal(err)
		}
	}
}

// tinyFS returns a directory on a tmpfs of that size.
func tinyFS(t *testing.T, sizeBytes int) string {
	t.Helper()
	return dirOf(t, mountNowhere(t, "tmpfs", "size", fmt.Sprint(sizeBytes)))
}

func ramfs(t *testing.T) string {
	t.Helper()
	return dirOf(t, mountNowhere(t, "ramfs", "mode", "0755"))
}

// ext4 returns a directory on a new ext4 of 4 KiB blocks.
func ext4(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext4")
	writeFile(t, path, nil)
	must(t, os.Truncate(path, 16<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4 (e2fsprogs): %v: %s", err, out)
	}
	return dirOf(t, mountNowhere(t, "ext4", "source", loop(t, path)))
}

// mountNowhere mounts with one option and returns the only way to it, an fd.
func mountNowhere(t *testing.T, fstype, key, value string) int {
	t.Helper()
	fsfd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatalf("fsopen %s (needs root): %v", fstype, err)
	}
	defer unix.Close(fsfd)
	must(t, unix.FsconfigSetString(fsfd, key, value))
	must(t, unix.FsconfigCreate(fsfd))
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	return fd
}

// dirOf names a mount by its fd, which ends with the test, and the mount too.
func dirOf(t *testing.T, fd int) string {
	t.Cleanup(func() { unix.Close(fd) })
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}
