package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
)

func TestDecodeRequest(t *testing.T) {
	b := []byte("\x25\x60\x95\x13\x00\x05\x00\x07\x01\x02\x03\x04\x05\x06\x07\x08\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xa1\xa2\xa3\xa4")
	want := request{flags: 5, kind: 7, cookie: 0x0102030405060708, off: 0xf1f2f3f4f5f6f7f8, length: 0xa1a2a3a4}
	if r, ok := decodeRequest(b); r != want || !ok {
		t.Errorf("got %+v, %v", r, ok)
	}
	b[3]++
	if _, ok := decodeRequest(b); ok {
		t.Error("another magic number is a request")
	}
}

// TestCheck has each lie that a request can tell of a disk of 1 MiB.
func TestCheck(t *testing.T) {
	const mib = 1 << 20
	plainly, chunks := session{}, session{structured: true, allocation: true}
	able, unable, frozen := newExport(newFull(mib)), newExport(newPlain(mib)), newFull(mib)
	frozen.readOnly = true
	readOnly := newExport(frozen)
	for _, c := range []struct {
		name    string
		export  *export
		session session
		request request
		want    errno
	}{
		{"read", able, plainly, request{kind: 0, length: 512}, 0},
		{"read all", able, plainly, request{kind: 0, length: mib}, 0},
		{"read the last sector", able, plainly, request{kind: 0, off: mib - 512, length: 512}, 0},
		{"read nothing", able, plainly, request{kind: 0}, errInval},
		{"read past the end", able, plainly, request{kind: 0, off: mib - 512, length: 1024}, errInval},
		{"read at the end", able, plainly, request{kind: 0, off: mib, length: 512}, errInval},
		{"read behind the end", able, plainly, request{kind: 0, off: mib + 512, length: 512}, errInval},
		{"read where the end wraps", able, plainly, request{kind: 0, off: 1<<64 - 512, length: 1024}, errInval},
		{"read where the offset is negative", able, plainly, request{kind: 0, off: 1 << 63, length: 512}, errInval},
		{"read half a sector", able, plainly, request{kind: 0, length: 256}, errInval},
		{"read at half a sector", able, plainly, request{kind: 0, off: 256, length: 512}, errInval},
		{"read 4 GiB", able, plainly, request{kind: 0, length: 1<<32 - 512}, errInval},
		{"read 4 GiB in chunks", able, chunks, request{kind: 0, length: 1<<32 - 512}, errOverflow},
		{"read with FUA", able, plainly, request{kind: 0, flags: 1, length: 512}, 0},
		{"read with DF", able, chunks, request{kind: 0, flags: 4, length: 512}, 0},
		{"read with DF and no chunks", able, plainly, request{kind: 0, flags: 4, length: 512}, errInval},
		{"read with an unknown flag", able, chunks, request{kind: 0, flags: 1 << 15, length: 512}, errInval},
		{"read with another's flag", able, chunks, request{kind: 0, flags: 2, length: 512}, errInval},
		{"write", able, plainly, request{kind: 1, flags: 1, length: 512}, 0},
		{"write past the end", able, plainly, request{kind: 1, off: mib - 512, length: 1024}, errNoSpace},
		{"write half a sector", able, plainly, request{kind: 1, length: 511}, errInval},
		{"write with DF", able, chunks, request{kind: 1, flags: 4, length: 512}, errInval},
		{"write what is frozen", readOnly, plainly, request{kind: 1, length: 512}, errPerm},
		{"flush", able, plainly, request{kind: 3, flags: 1}, 0},
		{"flush what is frozen", readOnly, plainly, request{kind: 3}, 0},
		{"flush with an offset", able, plainly, request{kind: 3, off: 512}, errInval},
		{"flush with a length", able, plainly, request{kind: 3, length: 512}, errInval},
		{"flush with a flag", able, plainly, request{kind: 3, flags: 2}, errInval},
		{"trim", able, plainly, request{kind: 4, flags: 1, length: mib}, 0},
		{"trim past the end", able, plainly, request{kind: 4, off: 512, length: mib}, errInval},
		{"trim 4 GiB", able, plainly, request{kind: 4, length: 1<<32 - 512}, errInval},
		{"trim what cannot", unable, plainly, request{kind: 4, length: 512}, errInval},
		{"trim what is frozen", readOnly, plainly, request{kind: 4, length: 512}, errPerm},
		{"cache", able, plainly, request{kind: 5, length: 512}, errInval},
		{"write zeroes", able, plainly, request{kind: 6, flags: 3, length: mib}, 0},
		{"write zeroes to what cannot", unable, plainly, request{kind: 6, flags: 2, length: mib}, 0},
		{"write zeroes past the end", able, plainly, request{kind: 6, off: 512, length: mib}, errNoSpace},
		{"write zeroes fast", able, plainly, request{kind: 6, flags: 16, length: mib}, errInval},
		{"write zeroes to what is frozen", readOnly, plainly, request{kind: 6, length: 512}, errPerm},
		{"block status", able, chunks, request{kind: 7, flags: 8, length: mib}, 0},
		{"block status past the end", able, chunks, request{kind: 7, off: 512, length: mib}, errInval},
		{"block status of nothing", able, chunks, request{kind: 7}, errInval},
		{"block status without context", able, session{structured: true}, request{kind: 7, length: 512}, errInval},
		{"resize", able, chunks, request{kind: 8, length: 512}, errInval},
		{"an unknown kind", able, chunks, request{kind: 0xffff, length: 512}, errInval},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.export.check(c.request, c.session); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestPutReply(t *testing.T) {
	cookie := uint64(0x0102030405060708)
	const cookieBytes = "\x01\x02\x03\x04\x05\x06\x07\x08"
	for _, c := range []struct {
		name       string
		structured bool
		request    request
		fail       errno
		n          int
		want       string
	}{
		{"simple read", false, request{kind: 0}, 0, 512, "\x67\x44\x66\x98\x00\x00\x00\x00" + cookieBytes},
		{"simple failure", false, request{kind: 0}, errIO, 0, "\x67\x44\x66\x98\x00\x00\x00\x05" + cookieBytes},
		{"write in chunks", true, request{kind: 1}, errNoSpace, 0, "\x67\x44\x66\x98\x00\x00\x00\x1c" + cookieBytes},
		{"read in chunks", true, request{kind: 0, off: 0x123400}, 0, 512, "\x66\x8e\x33\xef\x00\x01\x00\x01" + cookieBytes +
			"\x00\x00\x02\x08" + "\x00\x00\x00\x00\x00\x12\x34\x00"},
		{"failed read in chunks", true, request{kind: 0}, errIO, 0, "\x66\x8e\x33\xef\x00\x01\x80\x01" + cookieBytes +
			"\x00\x00\x00\x06" + "\x00\x00\x00\x05\x00\x00"},
		{"block status", true, request{kind: 7}, 0, 16, "\x66\x8e\x33\xef\x00\x01\x00\x05" + cookieBytes +
			"\x00\x00\x00\x14" + "\x00\x00\x00\x01"},
		{"failed block status", true, request{kind: 7}, errInval, 0, "\x66\x8e\x33\xef\x00\x01\x80\x01" + cookieBytes +
			"\x00\x00\x00\x06" + "\x00\x00\x00\x16\x00\x00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h [headerBytes]byte
			c.request.cookie = cookie
			if got := putReply(&h, c.request, session{structured: c.structured}, c.fail, c.n); string(got) != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want errno
	}{
		{nil, 0}, {unix.EIO, errIO}, {unix.ENOSPC, errNoSpace}, {unix.EDQUOT, errNoSpace}, {unix.EFBIG, errNoSpace},
		{disk.ErrReadOnly, errPerm}, {fs.ErrClosed, errShutdown}, {disk.ErrFault, errIO}, {errors.New("any"), errIO},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("write disk: %w", err)
		}
		if got := errnoOf(err); got != c.want {
			t.Errorf("%v: got %d, want %d", c.err, got, c.want)
		}
	}
}

func TestWriteZeroesWithoutZeroer(t *testing.T) {
	d := newPlain(3 * zeroesBytes)
	for i := range d.mem {
		d.mem[i] = 1
	}
	e := newExport(d)
	if err := e.writeZeroes(512, 2*zeroesBytes+1024, false); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{1}, len(d.mem))
	clear(want[512 : 512+2*zeroesBytes+1024])
	if !bytes.Equal(d.mem, want) {
		t.Error("not just the range is zero")
	}
	if len(d.seen()) != 3 {
		t.Errorf("%d writes, want 3", len(d.seen()))
	}
	d.hook = func(c call) error { return errDisk }
	if err := e.writeZeroes(0, 4096, false); !errors.Is(err, errDisk) {
		t.Errorf("got %v", err)
	}
}

func TestExtents(t *testing.T) {
	const s = 512
	data := func(off, n int64) disk.Extent { return disk.Extent{Off: off * s, Len: n * s, Allocated: true} }
	hole := func(off, n int64) disk.Extent { return disk.Extent{Off: off * s, Len: n * s, Zero: true} }
	zero := func(off, n int64) disk.Extent {
		return disk.Extent{Off: off * s, Len: n * s, Zero: true, Allocated: true}
	}
	many := make([]disk.Extent, maxExtents+9)
	alike := make([]disk.Extent, maxLookups+9)
	for i := range many {
		if many[i] = data(int64(i), 1); i%2 == 0 {
			many[i] = hole(int64(i), 1)
		}
	}
	for i := range alike {
		alike[i] = data(int64(i), 1)
	}
	for _, c := range []struct {
		name    string
		marks   []disk.Extent
		off, n  int64
		one     bool
		want    []uint32
		extents int
	}{
		{name: "data", marks: []disk.Extent{data(0, 8)}, n: 8, want: []uint32{8 * s, 0}},
		{name: "each kind", marks: []disk.Extent{data(0, 1), hole(1, 2), zero(3, 3), {Off: 6 * s, Len: 2 * s}}, n: 8,
			want: []uint32{s, 0, 2 * s, 3, 3 * s, 2, 2 * s, 1}},
		{name: "alike", marks: []disk.Extent{data(0, 1), data(1, 2), hole(3, 1), hole(4, 4)}, n: 8,
			want: []uint32{3 * s, 0, 5 * s, 3}},
		{name: "part of them", marks: []disk.Extent{data(0, 4), hole(4, 4)}, off: 1, n: 6, want: []uint32{3 * s, 0, 3 * s, 3}},
		{name: "one", marks: []disk.Extent{data(0, 1), data(1, 2), hole(3, 5)}, n: 8, one: true, want: []uint32{3 * s, 0}},
		{name: "one that is longer", marks: []disk.Extent{hole(0, 8)}, off: 2, n: 3, one: true, want: []uint32{3 * s, 3}},
		{name: "too many", marks: many, n: int64(len(many)), extents: maxExtents},
		{name: "too many that are alike", marks: alike, n: int64(len(alike)), want: []uint32{maxLookups * s, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newFull(len(alike) * s)
			d.marks = c.marks
			b := make([]byte, maxExtents*extentBytes)
			n, err := newExport(d).extents(b, c.off*s, c.n*s, c.one)
			if err != nil {
				t.Fatal(err)
			}
			if want := be32(c.want...); c.want != nil && !bytes.Equal(b[:n], want) {
				t.Errorf("got %x, want %x", b[:n], want)
			}
			if c.want == nil && n != c.extents*extentBytes {
				t.Errorf("%d extents, want %d", n/extentBytes, c.extents)
			}
		})
	}
}

// TestExtentsOfABrokenDisk: a Mapper that breaks its promise is an error of
// the request, not an endless loop or a reply that misleads.
func TestExtentsOfABrokenDisk(t *testing.T) {
	for name, x := range map[string]disk.Extent{
		"empty": {Off: 512}, "elsewhere": {Off: 0, Len: 1024}, "negative": {Off: 512, Len: -512},
	} {
		e := &export{mapper: broken{newFull(4096), x}}
		if n, err := e.extents(make([]byte, 64), 512, 1024, false); err == nil {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
}

type broken struct {
	*full
	extent disk.Extent
}

func (b broken) NextExtent(int64) (disk.Extent, error) { return b.extent, nil }

func TestBuffers(t *testing.T) {
	var pool buffers
	for _, c := range []struct{ n, want int }{
		{1, 4096}, {4096, 4096}, {4097, 8192}, {64 << 10, 64 << 10}, {64<<10 + 512, 128 << 10},
		{1 << 20, 1 << 20}, {maxPayloadBytes, maxPayloadBytes},
	} {
		b := pool.get(c.n)
		if len(b.mem) != c.want || bufferBytes(c.n) != c.want {
			t.Errorf("%d bytes: got %d and %d, want %d", c.n, len(b.mem), bufferBytes(c.n), c.want)
		}
		pool.put(b)
	}
	if classOf(maxPayloadBytes) != bufferClasses-1 {
		t.Errorf("the largest is class %d of %d", classOf(maxPayloadBytes), bufferClasses)
	}
}
