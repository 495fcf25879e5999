package grant

// SAFETY: only sizes and offsets are asked for; no pointer is made.

import (
	"bytes"
	"encoding/binary"
	"testing"
	"unsafe"
)

// ioc is Linux' _IOC(_IOC_NONE, typ, nr, size).
func ioc(typ byte, nr, sizeBytes uintptr) uint32 {
	return uint32(sizeBytes<<16 | uintptr(typ)<<8 | nr)
}

// All ioctls of both headers, checked against linux-libc-dev's with a C
// program on 2026-11-22 (BIND_STATIC is not in it). ours is zero where Door
// has no use for one: then the row is the reference for whoever adds it.
func TestIoctlNumbers(t *testing.T) {
	for _, tc := range []struct {
		name string
		want uint32
		typ  byte
		nr   uintptr
		size uintptr
		ours uint32
	}{
		{"MAP_GRANT_REF", 0x00184700, 'G', 0, unsafe.Sizeof(mapGrantRef{}), ioctlMapGrantRef},
		{"UNMAP_GRANT_REF", 0x00104701, 'G', 1, unsafe.Sizeof(unmapGrantRef{}), ioctlUnmapGrantRef},
		{"GET_OFFSET_FOR_VADDR", 0x00184702, 'G', 2, 24, 0},
		{"SET_MAX_GRANTS", 0x00044703, 'G', 3, 4, 0},
		{"SET_UNMAP_NOTIFY", 0x00104707, 'G', 7, 16, 0},
		{"GRANT_COPY", 0x00104708, 'G', 8, unsafe.Sizeof(grantCopy{}), ioctlGrantCopy},
		{"DMABUF_EXP_FROM_REFS", 0x00144709, 'G', 9, 20, 0},
		{"DMABUF_EXP_WAIT_RELEASED", 0x0008470a, 'G', 10, 8, 0},
		{"DMABUF_IMP_TO_REFS", 0x0014470b, 'G', 11, 20, 0},
		{"DMABUF_IMP_RELEASE", 0x0008470c, 'G', 12, 8, 0},

		{"BIND_VIRQ", 0x00044500, 'E', 0, 4, 0},
		{"BIND_INTERDOMAIN", 0x00084501, 'E', 1, unsafe.Sizeof(bindInterdomain{}), ioctlBindInterdomain},
		{"BIND_UNBOUND_PORT", 0x00044502, 'E', 2, 4, 0},
		{"UNBIND", 0x00044503, 'E', 3, unsafe.Sizeof(portArg{}), ioctlUnbind},
		{"NOTIFY", 0x00044504, 'E', 4, unsafe.Sizeof(portArg{}), ioctlNotify},
		{"RESET", 0x00004505, 'E', 5, 0, ioctlReset},
		{"RESTRICT_DOMID", 0x00024506, 'E', 6, 2, 0},
		{"BIND_STATIC", 0x00044507, 'E', 7, 4, 0},
	} {
		if got := ioc(tc.typ, tc.nr, tc.size); got != tc.want {
			t.Errorf("%s from its parts: got %#08x, want %#08x", tc.name, got, tc.want)
		}
		if tc.ours != 0 && tc.ours != tc.want {
			t.Errorf("%s: got %#08x, want %#08x", tc.name, tc.ours, tc.want)
		}
	}
}

func TestLayouts(t *testing.T) {
	var (
		m mapGrantRef
		u unmapGrantRef
		c grantCopy
		s CopySegment
		b bindInterdomain
		p portArg
		r grantRef
	)
	for _, tc := range []struct {
		name      string
		got, want uintptr
	}{
		{"sizeof grantRef", unsafe.Sizeof(r), 8},
		{"grantRef.domid", unsafe.Offsetof(r.domid), 0},
		{"grantRef.ref", unsafe.Offsetof(r.ref), 4},

		{"sizeof mapGrantRef", unsafe.Sizeof(m), 24},
		{"mapGrantRef.count", unsafe.Offsetof(m.count), 0},
		{"mapGrantRef.index", unsafe.Offsetof(m.index), 8},
		{"mapGrantRef.refs", unsafe.Offsetof(m.refs), 16},

		{"sizeof unmapGrantRef", unsafe.Sizeof(u), 16},
		{"unmapGrantRef.index", unsafe.Offsetof(u.index), 0},
		{"unmapGrantRef.count", unsafe.Offsetof(u.count), 8},

		{"sizeof grantCopy", unsafe.Sizeof(c), 16},
		{"grantCopy.count", unsafe.Offsetof(c.count), 0},
		{"grantCopy.segments", unsafe.Offsetof(c.segments), 8},

		{"sizeof CopySegment", unsafe.Sizeof(s), 24},
		{"CopySegment.Source", unsafe.Offsetof(s.Source), 0},
		{"CopySegment.Dest", unsafe.Offsetof(s.Dest), 8},
		{"CopySegment.Len", unsafe.Offsetof(s.Len), 16},
		{"CopySegment.Flags", unsafe.Offsetof(s.Flags), 18},
		{"CopySegment.Status", unsafe.Offsetof(s.Status), 20},

		{"sizeof bindInterdomain", unsafe.Sizeof(b), 8},
		{"bindInterdomain.remoteDomain", unsafe.Offsetof(b.remoteDomain), 0},
		{"bindInterdomain.remotePort", unsafe.Offsetof(b.remotePort), 4},

		{"sizeof portArg", unsafe.Sizeof(p), 4},
		{"portArg.port", unsafe.Offsetof(p.port), 0},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %d, want %d", tc.name, tc.got, tc.want)
		}
	}
}

func TestMapArgBytes(t *testing.T) {
	arg, words := newMapArg(7, []uint32{0x11223344, 8, 0xffffffff})
	arg.index = 0x5566778899aabbcc // as the kernel would
	var got []byte
	for _, w := range words {
		got = binary.NativeEndian.AppendUint64(got, w)
	}
	want := []byte{
		3, 0, 0, 0, 0, 0, 0, 0,
		0xcc, 0xbb, 0xaa, 0x99, 0x88, 0x77, 0x66, 0x55,
		7, 0, 0, 0, 0x44, 0x33, 0x22, 0x11,
		7, 0, 0, 0, 8, 0, 0, 0,
		7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
	}
	if !bytes.Equal(got, want) {
		t.Errorf("MAP_GRANT_REF's argument:\ngot  % x\nwant % x", got, want)
	}
}

func TestCopyArg(t *testing.T) {
	segs := make([]CopySegment, 17)
	arg := newCopyArg(segs)
	if arg.count != 17 || arg.segments != &segs[0] {
		t.Errorf("got %d segments at %p, want 17 at %p", arg.count, arg.segments, &segs[0])
	}
}

// The foreign half is {ref u32 @0, offset u16 @4, domid u16 @6}.
func TestForeignBytes(t *testing.T) {
	got := binary.NativeEndian.AppendUint64(nil, Foreign(0x0102, 0x03040506, 0x0708))
	want := []byte{0x06, 0x05, 0x04, 0x03, 0x08, 0x07, 0x02, 0x01}
	if !bytes.Equal(got, want) {
		t.Errorf("got % x, want % x", got, want)
	}
}

func TestStatusText(t *testing.T) {
	for status, want := range map[int16]string{
		0:   "okay",
		-1:  "general error",
		-2:  "bad domain",
		-3:  "bad grant reference",
		-4:  "bad handle",
		-5:  "bad virtual address",
		-6:  "bad device address",
		-7:  "no device space",
		-8:  "permission denied",
		-9:  "bad page",
		-10: "bad copy argument",
		-11: "address too big",
		-12: "try again",
		-13: "no space",
		-14: "unknown status -14",
		1:   "unknown status 1",
	} {
		if got := StatusText(status); got != want {
			t.Errorf("%d: got %q, want %q", status, got, want)
		}
	}
}
