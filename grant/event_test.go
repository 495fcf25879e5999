package grant

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func portsToBytes(ports []uint32) []byte {
	var b []byte
	for _, port := range ports {
		b = binary.NativeEndian.AppendUint32(b, port)
	}
	return b
}

func TestBindNotifyUnbind(t *testing.T) {
	f := newFake(t)
	port, err := f.door.Bind(5, 17)
	if err != nil {
		t.Fatal(err)
	}
	if port != 117 || f.domid != 5 {
		t.Errorf("got port %d, domain %d, want 117, 5", port, f.domid)
	}
	if err := f.door.Notify(port); err != nil {
		t.Error(err)
	}
	if !slices.Equal(f.notified, []uint32{117}) {
		t.Errorf("notified: got %v, want [117]", f.notified)
	}
	if err := f.door.Unbind(port); err != nil {
		t.Error(err)
	}
	if err := f.door.Unbind(port); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("second unbind: got %v, want ENOTCONN", err)
	}
	if err := f.door.Notify(port); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("notify of an unbound port: got %v, want ENOTCONN", err)
	}
	if _, err := f.door.Bind(1<<16, 17); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a domid that 16 bits would make another: got %v, want EINVAL", err)
	}
	f.door.sys.bind = func(int, uint32, uint32) (uint32, unix.Errno) { return 0, unix.EINVAL }
	if _, err := f.door.Bind(5, 17); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a port that is bound elsewhere: got %v, want EINVAL", err)
	}
}

// The real read and write, with a socket for the device.
func TestPendingAndUnmask(t *testing.T) {
	f := newFake(t)
	ports := make([]uint32, 4)
	if n, err := f.door.Pending(ports); n != 0 || err != nil {
		t.Errorf("none pending (EAGAIN): got %d, %v, want 0, nil", n, err)
	}
	want := []uint32{7, 0x01020304, 9}
	if _, err := unix.Write(f.peer, portsToBytes(want)); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(f.door.EventFD()), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); n != 1 || err != nil {
		t.Errorf("EventFD is not readable: %d, %v", n, err)
	}
	n, err := f.door.Pending(ports)
	if err != nil || !slices.Equal(ports[:n], want) {
		t.Errorf("got %v, %v, want %v", ports[:n], err, want)
	}
	if err := f.door.Unmask(ports[:n]); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64)
	m, err := unix.Read(f.peer, got)
	if err != nil || !slices.Equal(got[:m], portsToBytes(want)) {
		t.Errorf("written: got % x, %v, want % x", got[:max(m, 0)], err, portsToBytes(want))
	}
	if _, err := unix.Read(f.peer, got); err != unix.EAGAIN {
		t.Errorf("second write: got %v, want EAGAIN: there is one", err)
	}
	if n, err := f.door.Pending(nil); n != 0 || err != nil {
		t.Errorf("no room: got %d, %v, want 0, nil", n, err)
	}
	if err := f.door.Unmask(nil); err != nil {
		t.Errorf("nothing to unmask: %v", err)
	}
}

func TestPendingErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		read   unix.Errno
		reset  unix.Errno
		want   []error
		resets int
	}{
		{"overflow", unix.EFBIG, 0, []error{unix.EFBIG}, 1},
		{"overflow that stays", unix.EFBIG, unix.EINVAL, []error{unix.EFBIG, unix.EINVAL}, 1},
		{"other", unix.EIO, 0, []error{unix.EIO}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			reset := f.door.sys.reset
			f.door.sys.read = func(int, []uint32) (int, unix.Errno) { return -1, tc.read }
			f.door.sys.reset = func(fd int) unix.Errno { _ = reset(fd); return tc.reset }
			n, err := f.door.Pending(make([]uint32, 4))
			for _, want := range tc.want {
				if n != 0 || !errors.Is(err, want) {
					t.Errorf("got %d, %v, want 0, %v", n, err, want)
				}
			}
			if f.resets != tc.resets {
				t.Errorf("resets: got %d, want %d", f.resets, tc.resets)
			}
		})
	}
}

// The kernel takes a page at most: the rest goes in further writes.
func TestUnmaskShortWrites(t *testing.T) {
	f := newFake(t)
	var got []uint32
	writes := 0
	f.door.sys.write = func(_ int, ports []uint32) (int, unix.Errno) {
		writes++
		n := min(len(ports), pageBytes/portBytes)
		got = append(got, ports[:n]...)
		return n * portBytes, 0
	}
	want := make([]uint32, 2500)
	for i := range want {
		want[i] = uint32(i)
	}
	if err := f.door.Unmask(want); err != nil {
		t.Fatal(err)
	}
	if writes != 3 || !slices.Equal(got, want) {
		t.Errorf("got %d ports in %d writes, want %d in 3", len(got), writes, len(want))
	}
	f.door.sys.write = func(int, []uint32) (int, unix.Errno) { return 0, 0 }
	if err := f.door.Unmask(want); err == nil {
		t.Error("a write of nothing: got nil, want an error, not a loop")
	}
	f.door.sys.write = func(int, []uint32) (int, unix.Errno) { return -1, unix.EFAULT }
	if err := f.door.Unmask(want); !errors.Is(err, unix.EFAULT) {
		t.Errorf("got %v, want EFAULT", err)
	}
}
