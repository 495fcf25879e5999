package grant

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	_, _ = os.ReadDir("/proc/self/fd") // what Go opens once is no leak of ours
	os.Exit(m.Run())
}

// checkFDs fails the test if it ends with other open descriptors than now.
func checkFDs(t *testing.T) {
	t.Helper()
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	want := count()
	t.Cleanup(func() {
		if got := count(); got != want {
			t.Errorf("open descriptors: got %d, want %d", got, want)
		}
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// plainFile returns the path of a regular file of so many pages: it opens and
// maps like a device, and says ENOTTY to each ioctl.
func plainFile(t *testing.T, pages int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, pages*pageBytes); err != nil {
		t.Fatal(err)
	}
	return path
}

// fake is a kernel whose ioctls are played here. Its gntdev is a regular file,
// so that mmap and munmap are real; its evtchn is a socket whose other end,
// peer, has the boundaries of reads and writes.
type fake struct {
	kernel // what the Door gets; a test may substitute more
	t      *testing.T
	door   *Door
	peer   int

	mu         sync.Mutex
	registered map[uint64]uint32 // MAP_GRANT_REF without UNMAP_GRANT_REF
	mapped     int               // mmap without munmap
	domid      uint32
	refs       []uint32
	ports      []uint32 // bound
	notified   []uint32
	copied     int
	resets     int
	open       map[int]bool
}

func (f *fake) check(fd int) {
	if !f.open[fd] {
		f.t.Errorf("a system call came for descriptor %d, which is not open", fd)
	}
}

// newFake opens a Door on a fake kernel; the test's end closes it.
func newFake(t *testing.T) *fake {
	t.Helper()
	checkFDs(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{kernel: linux(), t: t, peer: pair[1],
		registered: map[uint64]uint32{}, open: map[int]bool{}}
	gntdevPath := plainFile(t, 64)
	f.kernel.open = func(path string, flags int) (int, error) {
		if flags&(unix.O_RDWR|unix.O_CLOEXEC) != unix.O_RDWR|unix.O_CLOEXEC {
			t.Errorf("flags of %s: got %#x, want O_RDWR|O_CLOEXEC", path, flags)
		}
		fd := pair[0]
		if path == gntdevPath {
			var err error
			if fd, err = unix.Open(path, flags, 0); err != nil {
				return fd, err
			}
		} else if flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags of %s: got %#x, want O_NONBLOCK", path, flags)
		}
		f.open[fd] = true
		return fd, nil
	}
	f.kernel.close = func(fd int) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		delete(f.open, fd)
		return unix.Close(fd)
	}
	f.playGntdev()
	f.playEvtchn()
	if f.door, err = open(f.kernel, gntdevPath, "evtchn"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.door.Close(); err != nil {
			t.Error(err)
		}
		unix.Close(f.peer)
		if len(f.registered) != 0 || f.mapped != 0 {
			t.Errorf("after Close: got %d registrations, %d mappings, want none", len(f.registered), f.mapped)
		}
	})
	return f
}

func (f *fake) playGntdev() {
	f.kernel.mapRefs = func(fd int, domid uint32, refs []uint32) (uint64, unix.Errno) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		f.domid, f.refs = domid, slices.Clone(refs)
		for index := uint64(0); ; index += pageBytes {
			if _, taken := f.registered[index]; !taken {
				f.registered[index] = uint32(len(refs))
				return index, 0
			}
		}
	}
	f.kernel.unmapRefs = func(fd int, index uint64, count uint32) unix.Errno {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		if got, ok := f.registered[index]; !ok || got != count {
			f.t.Errorf("unregister %d at %d: not registered so", count, index)
			return unix.ENOENT
		}
		delete(f.registered, index)
		return 0
	}
	f.kernel.mmap = func(fd int, offset int64, length, prot, flags int) ([]byte, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		if count, ok := f.registered[uint64(offset)]; !ok || int(count)*pageBytes != length {
			f.t.Errorf("mmap of %d bytes at %d: not registered so", length, offset)
		}
		if flags != unix.MAP_SHARED {
			f.t.Errorf("mmap flags: got %#x, want MAP_SHARED", flags)
		}
		f.mapped++
		return unix.Mmap(fd, offset, length, prot, flags)
	}
	f.kernel.munmap = func(mem []byte) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.mapped--
		return unix.Munmap(mem)
	}
	f.kernel.copy = func(fd int, segs []CopySegment) unix.Errno {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		f.copied += len(segs)
		return 0
	}
}

func (f *fake) playEvtchn() {
	f.kernel.bind = func(fd int, domid, remotePort uint32) (uint32, unix.Errno) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		f.domid = domid
		f.ports = append(f.ports, remotePort+100)
		return remotePort + 100, 0
	}
	f.kernel.unbind = func(fd int, port uint32) unix.Errno {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		i := slices.Index(f.ports, port)
		if i < 0 {
			return unix.ENOTCONN
		}
		f.ports = slices.Delete(f.ports, i, i+1)
		return 0
	}
	f.kernel.notify = func(fd int, port uint32) unix.Errno {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		if !slices.Contains(f.ports, port) {
			return unix.ENOTCONN
		}
		f.notified = append(f.notified, port)
		return 0
	}
	f.kernel.reset = func(fd int) unix.Errno {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		f.resets++
		return 0
	}
}
