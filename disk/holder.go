package disk

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxHolderFDs bounds the search for a lock's holder: a dom0 has a few
// thousand open fds, and the search reads one small file of each.
const maxHolderFDs = 1 << 16

// lockHolder finds a process other than the owner of fd's open file that holds
// a lock on the file, or returns 0. F_OFD_GETLK says -1 for an open file
// description lock and /proc/locks says the same, but /proc/PID/fdinfo/FD
// shows the locks of each open file:
//
//	lock:	1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 0 EOF
//
// It reads nothing but procfs, so it cannot hang on a dead filesystem. Where
// stat and the kernel's lock table give a file different device numbers
// (btrfs, some overlays) nothing is found.
func lockHolder(fd int, st *unix.Stat_t) (pid int, command string) {
	dev := uint64(st.Dev)
	key := fmt.Appendf(nil, " %02x:%02x:%d ", unix.Major(dev), unix.Minor(dev), st.Ino)
	self, own := os.Getpid(), strconv.Itoa(fd)
	left := maxHolderFDs
	processes, _ := os.ReadDir("/proc") // what cannot be read names nobody
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", p.Name(), "fdinfo")
		fds, _ := os.ReadDir(dir)
		for _, e := range fds {
			if left--; left < 0 {
				return 0, ""
			}
			if pid == self && e.Name() == own {
				continue
			}
			text, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			if holdsLock(text, key) {
				comm, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
				return pid, strings.TrimSuffix(string(comm), "\n")
			}
		}
	}
	return 0, ""
}

// holdsLock says whether fdinfo text has a lock line on the file that key is.
func holdsLock(text, key []byte) bool {
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte("lock:")) && bytes.Contains(line, key) {
			return true
		}
	}
	return false
}

// mountPoint says where the block device at path is mounted, or "".
func mountPoint(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	dev := uint64(st.Rdev)
	text, _ := os.ReadFile("/proc/self/mountinfo")
	return mountPointIn(string(text), unix.Major(dev), unix.Minor(dev))
}

// mountPointIn finds a device in the text of mountinfo: the third field of a
// line is major:minor, the fifth the mount point (proc(5)).
func mountPointIn(mountinfo string, major, minor uint32) string {
	want := fmt.Sprintf("%d:%d", major, minor)
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) > 4 && fields[2] == want {
			return fields[4]
		}
	}
	return ""
}
