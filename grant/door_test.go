package grant

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenErrors(t *testing.T) {
	checkFDs(t)
	good := plainFile(t, 1)
	missing := filepath.Join(t.TempDir(), "missing")
	denied := func(path string, flags int) (int, error) {
		if path == "denied" {
			return -1, unix.EACCES // root may open anything: played
		}
		return unix.Open(path, flags, 0)
	}
	for _, tc := range []struct {
		name, gntdev, evtchn, names string
		want                        error
	}{
		{"no gntdev", missing, good, missing, fs.ErrNotExist},
		{"no evtchn", good, missing, missing, fs.ErrNotExist},
		{"gntdev denied", "denied", good, "denied", fs.ErrPermission},
		{"evtchn denied", good, "denied", "denied", fs.ErrPermission},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkFDs(t)
			sys := linux()
			sys.open = denied
			d, err := open(sys, tc.gntdev, tc.evtchn)
			if d != nil || !errors.Is(err, tc.want) {
				t.Fatalf("got %v, %v, want %v", d, err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.names) {
				t.Errorf("error %q does not name %q", err, tc.names)
			}
		})
	}
}

// Whatever machine this runs on, Open works or says which device and why.
func TestOpenNamesItsDevice(t *testing.T) {
	checkFDs(t)
	d, err := Open()
	if err == nil {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	var perr *fs.PathError
	if !errors.As(err, &perr) || !strings.HasPrefix(perr.Path, "/dev/xen/") {
		t.Errorf("got %v, want an error about a path below /dev/xen", err)
	}
}

// The real system calls, on files that are no devices: each ioctl has to reach
// the kernel and come back as its error.
func TestRealCallsOnPlainFiles(t *testing.T) {
	checkFDs(t)
	d, err := open(linux(), plainFile(t, 1), plainFile(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		call func() error
	}{
		{"Map", func() error { _, err := d.Map(1, []uint32{8, 9}, true); return err }},
		{"unregister", func() error { return d.unregister(mapping{count: 1}) }},
		{"Copy", func() error { return d.Copy(make([]CopySegment, 3)) }},
		{"Bind", func() error { _, err := d.Bind(1, 2); return err }},
		{"Unbind", func() error { return d.Unbind(3) }},
		{"Notify", func() error { return d.Notify(3) }},
	} {
		if err := tc.call(); !errors.Is(err, unix.ENOTTY) {
			t.Errorf("%s: got %v, want ENOTTY", tc.name, err)
		}
	}
	if errno := sysReset(d.evtchn); errno != unix.ENOTTY {
		t.Errorf("reset: got %v, want ENOTTY", errno)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseGivesEverythingBack(t *testing.T) {
	f := newFake(t)
	for range 3 {
		if _, err := f.door.Map(1, []uint32{5}, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.door.Close(); err != nil {
		t.Fatal(err)
	}
	if len(f.registered) != 0 || f.mapped != 0 || len(f.open) != 0 {
		t.Errorf("got %d registrations, %d mappings, %d descriptors, want none",
			len(f.registered), f.mapped, len(f.open))
	}
	if err := f.door.Close(); err != nil {
		t.Errorf("second Close: got %v, want nil", err)
	}
}

func TestCloseGoesOnAfterErrors(t *testing.T) {
	f := newFake(t)
	if _, err := f.door.Map(1, []uint32{5}, true); err != nil {
		t.Fatal(err)
	}
	munmap, unmapRefs := f.door.sys.munmap, f.door.sys.unmapRefs
	f.door.sys.munmap = func(mem []byte) error { _ = munmap(mem); return unix.ENOMEM }
	f.door.sys.unmapRefs = func(fd int, index uint64, count uint32) unix.Errno {
		_ = unmapRefs(fd, index, count)
		return unix.ENOENT
	}
	err := f.door.Close()
	if !errors.Is(err, unix.ENOMEM) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ENOMEM and ENOENT", err)
	}
	if len(f.open) != 0 {
		t.Errorf("open descriptors: got %d, want 0", len(f.open))
	}
}

func TestClosedDoor(t *testing.T) {
	f := newFake(t)
	d := f.door
	mem, err := d.Map(1, []uint32{5}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		call func() error
	}{
		{"Map", func() error { _, err := d.Map(1, []uint32{8}, true); return err }},
		{"Unmap", func() error { return d.Unmap(mem) }},
		{"Copy", func() error { return d.Copy(make([]CopySegment, 1)) }},
		{"Bind", func() error { _, err := d.Bind(1, 2); return err }},
		{"Unbind", func() error { return d.Unbind(3) }},
		{"Notify", func() error { return d.Notify(3) }},
		{"Pending", func() error { _, err := d.Pending(make([]uint32, 1)); return err }},
		{"Unmask", func() error { return d.Unmask(make([]uint32, 1)) }},
	} {
		if err := tc.call(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", tc.name, err)
		}
	}
	if fd := d.EventFD(); fd != -1 {
		t.Errorf("EventFD: got %d, want -1", fd)
	}
}

// A copy under way when Close is called must not meet another file under the
// descriptor's number.
func TestCloseWaitsForCopy(t *testing.T) {
	f := newFake(t)
	begun, end := make(chan struct{}), make(chan struct{})
	f.door.sys.copy = func(fd int, _ []CopySegment) unix.Errno {
		close(begun)
		<-end
		f.mu.Lock()
		defer f.mu.Unlock()
		f.check(fd)
		return 0
	}
	var both sync.WaitGroup
	both.Add(2)
	go func() {
		defer both.Done()
		if err := f.door.Copy(make([]CopySegment, 1)); err != nil {
			t.Error(err)
		}
	}()
	<-begun
	go func() {
		defer both.Done()
		if err := f.door.Close(); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "Close to wait", func() bool {
		if !f.door.use.TryRLock() {
			return true
		}
		f.door.use.RUnlock()
		return false
	})
	close(end)
	both.Wait()
}

// Everything at once, and Close in the middle of it: the fake kernel reports
// calls for a closed descriptor, the race detector the rest.
func TestConcurrentUseAndClose(t *testing.T) {
	f := newFake(t)
	d := f.door
	port, err := d.Bind(1, 2)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	until := func(name string, call func() error) {
		all.Add(1)
		go func() {
			defer all.Done()
			for {
				switch err := call(); {
				case errors.Is(err, fs.ErrClosed):
					return
				case err != nil:
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		}()
	}
	for range 3 {
		segs := make([]CopySegment, 4)
		until("Copy", func() error { return d.Copy(segs) })
		until("Notify", func() error { return d.Notify(port) })
		until("Map and Unmap", func() error {
			mem, err := d.Map(1, []uint32{5, 6}, true)
			if err != nil {
				return err
			}
			return d.Unmap(mem)
		})
	}
	ports := make([]uint32, 8)
	until("Pending", func() error { _, err := d.Pending(ports); return err })
	eventually(t, "some of each", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.copied > 1000 && len(f.notified) > 1000
	})
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	all.Wait()
}

func TestInterruptedCallsAreRepeated(t *testing.T) {
	f := newFake(t)
	d, sys := f.door, f.door.sys
	left := 0
	interrupted := func() bool { left--; return left >= 0 }
	d.sys.mapRefs = func(fd int, domid uint32, refs []uint32) (uint64, unix.Errno) {
		if interrupted() {
			return 0, unix.EINTR
		}
		return sys.mapRefs(fd, domid, refs)
	}
	d.sys.unmapRefs = func(fd int, index uint64, count uint32) unix.Errno {
		if interrupted() {
			return unix.EINTR
		}
		return sys.unmapRefs(fd, index, count)
	}
	d.sys.copy = func(int, []CopySegment) unix.Errno { return eintr(interrupted()) }
	d.sys.unbind = func(int, uint32) unix.Errno { return eintr(interrupted()) }
	d.sys.notify = func(int, uint32) unix.Errno { return eintr(interrupted()) }
	d.sys.bind = func(int, uint32, uint32) (uint32, unix.Errno) { return 9, eintr(interrupted()) }
	d.sys.read = func(int, []uint32) (int, unix.Errno) { return 4, eintr(interrupted()) }
	d.sys.write = func(int, []uint32) (int, unix.Errno) { return 4, eintr(interrupted()) }
	var mem []byte
	for _, tc := range []struct {
		name string
		call func() error
	}{
		{"Map", func() (err error) { mem, err = d.Map(1, []uint32{5}, true); return err }},
		{"Unmap", func() error { return d.Unmap(mem) }},
		{"Copy", func() error { return d.Copy(make([]CopySegment, 1)) }},
		{"Bind", func() error { _, err := d.Bind(1, 2); return err }},
		{"Unbind", func() error { return d.Unbind(1) }},
		{"Notify", func() error { return d.Notify(1) }},
		{"Pending", func() error { _, err := d.Pending(make([]uint32, 1)); return err }},
		{"Unmask", func() error { return d.Unmask(make([]uint32, 1)) }},
	} {
		left = 3
		if err := tc.call(); err != nil || left != -1 {
			t.Errorf("%s: got %v after %d interruptions, want nil after 3", tc.name, err, 3-max(left, 0))
		}
	}
}

func eintr(yes bool) unix.Errno {
	if yes {
		return unix.EINTR
	}
	return 0
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	checkFDs(t)
	// /dev/null takes each write and has nothing to read.
	d, err := open(linux(), os.DevNull, os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	sys := d.sys
	// The real ioctl is made; its error would be an allocation.
	d.sys.copy = func(fd int, segs []CopySegment) unix.Errno {
		if sys.copy(fd, segs) != unix.ENOTTY {
			t.Error("the ioctl did not reach the kernel")
		}
		return 0
	}
	d.sys.notify = func(fd int, port uint32) unix.Errno {
		if sys.notify(fd, port) != unix.ENOTTY {
			t.Error("the ioctl did not reach the kernel")
		}
		return 0
	}
	segs, ports := make([]CopySegment, 32), make([]uint32, 32)
	for _, tc := range []struct {
		name string
		call func() error
	}{
		{"Copy", func() error { return d.Copy(segs) }},
		{"Notify", func() error { return d.Notify(7) }},
		{"Pending", func() error { _, err := d.Pending(ports); return err }},
		{"Unmask", func() error { return d.Unmask(ports) }},
	} {
		n := testing.AllocsPerRun(1000, func() {
			if err := tc.call(); err != nil {
				t.Error(err)
			}
		})
		if n != 0 {
			t.Errorf("allocations of %s: got %v, want 0", tc.name, n)
		}
	}
}
