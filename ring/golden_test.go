package ring_test

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"xen-disk/ring"
)

// The bytes below are written by hand from blkif.h, compiled with gcc for both
// ABIs (offsetof). ee marks what a backend must not look at: the handle,
// padding, and what lies behind the request.
var goldenRequests = []struct {
	name string
	abi  ring.ABI
	slot string
	want ring.Request
}{
	{
		name: "read of two segments, x86_32", abi: ring.X86_32,
		slot: `00 02 eeee 8877665544332211 efcdab8967452301
			01020304 03 07 eeee  fffefdfc 00 00 eeee`,
		want: ring.Request{
			Op: ring.OpRead, ID: 0x1122334455667788, Sector: 0x0123456789abcdef, NrSegs: 2,
			Segs: [11]ring.Segment{{Ref: 0x04030201, First: 3, Last: 7}, {Ref: 0xfcfdfeff}},
		},
	},
	{
		name: "read of two segments, x86_64", abi: ring.X86_64,
		slot: `00 02 eeee eeeeeeee 8877665544332211 efcdab8967452301
			01020304 03 07 eeee  fffefdfc 00 00 eeee`,
		want: ring.Request{
			Op: ring.OpRead, ID: 0x1122334455667788, Sector: 0x0123456789abcdef, NrSegs: 2,
			Segs: [11]ring.Segment{{Ref: 0x04030201, First: 3, Last: 7}, {Ref: 0xfcfdfeff}},
		},
	},
	{
		name: "write of eleven segments, x86_32", abi: ring.X86_32,
		slot: `01 0b eeee 0100000000000000 0200000000000000` + elevenHex,
		want: ring.Request{Op: ring.OpWrite, ID: 1, Sector: 2, NrSegs: 11, Segs: elevenWant},
	},
	{
		name: "write of eleven segments, x86_64", abi: ring.X86_64,
		slot: `01 0b eeee eeeeeeee 0100000000000000 0200000000000000` + elevenHex,
		want: ring.Request{Op: ring.OpWrite, ID: 1, Sector: 2, NrSegs: 11, Segs: elevenWant},
	},
	{
		name: "flush, x86_32", abi: ring.X86_32,
		slot: `03 00 eeee ffffffffffffffff 0000000000000000`,
		want: ring.Request{Op: ring.OpFlush, ID: 1<<64 - 1},
	},
	{
		name: "barrier, x86_64", abi: ring.X86_64,
		slot: `02 00 eeee eeeeeeee ffffffffffffffff 0000000000000000`,
		want: ring.Request{Op: ring.OpBarrier, ID: 1<<64 - 1},
	},
	{
		name: "discard, x86_32", abi: ring.X86_32,
		slot: `05 01 eeee 8877665544332211 0010000000000000 0700000000000080`,
		want: ring.Request{
			Op: ring.OpDiscard, ID: 0x1122334455667788, Flag: 1, Sector: 4096, NrSectors: 1<<63 | 7,
		},
	},
	{
		name: "discard, x86_64", abi: ring.X86_64,
		slot: `05 01 eeee eeeeeeee 8877665544332211 0010000000000000 0700000000000080`,
		want: ring.Request{
			Op: ring.OpDiscard, ID: 0x1122334455667788, Flag: 1, Sector: 4096, NrSectors: 1<<63 | 7,
		},
	},
	{
		name: "indirect write, x86_32", abi: ring.X86_32,
		slot: `06 01 0001 8877665544332211 efcdab8967452301 eeee eeee
			01000000 02000000 03000000 04000000 05000000 06000000 07000000 08000000`,
		want: ring.Request{
			Op: ring.OpIndirect, Inner: ring.OpWrite, NrSegs: 256,
			ID: 0x1122334455667788, Sector: 0x0123456789abcdef,
		},
	},
	{
		name: "indirect write, x86_64", abi: ring.X86_64,
		slot: `06 01 0001 eeeeeeee 8877665544332211 efcdab8967452301 eeee
			01000000 02000000 03000000 04000000 05000000 06000000 07000000 08000000`,
		want: ring.Request{
			Op: ring.OpIndirect, Inner: ring.OpWrite, NrSegs: 256,
			ID: 0x1122334455667788, Sector: 0x0123456789abcdef,
		},
	},
}

const elevenHex = `
	00000010 00 07 eeee  01000010 01 07 eeee  02000010 02 07 eeee  03000010 03 07 eeee
	04000010 04 07 eeee  05000010 05 07 eeee  06000010 06 07 eeee  07000010 07 07 eeee
	08000010 00 00 eeee  09000010 00 01 eeee  0a000010 00 02 eeee`

var elevenWant = [11]ring.Segment{
	{Ref: 0x10000000, First: 0, Last: 7}, {Ref: 0x10000001, First: 1, Last: 7},
	{Ref: 0x10000002, First: 2, Last: 7}, {Ref: 0x10000003, First: 3, Last: 7},
	{Ref: 0x10000004, First: 4, Last: 7}, {Ref: 0x10000005, First: 5, Last: 7},
	{Ref: 0x10000006, First: 6, Last: 7}, {Ref: 0x10000007, First: 7, Last: 7},
	{Ref: 0x10000008, First: 0, Last: 0}, {Ref: 0x10000009, First: 0, Last: 1},
	{Ref: 0x1000000a, First: 0, Last: 2},
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatalf("golden bytes: %v", err)
	}
	return b
}

func TestPullGolden(t *testing.T) {
	// The slots lie at literal offsets: the ring's third slot, whose bytes
	// begin at 64 + 2*108 or 64 + 2*112.
	third := map[ring.ABI]int{ring.X86_32: 280, ring.X86_64: 288}
	for _, c := range goldenRequests {
		t.Run(c.name, func(t *testing.T) {
			mem := mapRing(t, 1)
			for i := 64; i < len(mem); i++ {
				mem[i] = 0xee
			}
			copy(mem[third[c.abi]:], unhex(t, c.slot))
			word(mem, 0).Store(3)
			word(mem, 8).Store(2)
			b, err := ring.New(mem, c.abi)
			if err != nil {
				t.Fatal(err)
			}
			if n := pending(t, b); n != 1 {
				t.Fatalf("Pending: got %d, want 1", n)
			}
			var r ring.Request
			b.Pull(&r)
			if !reflect.DeepEqual(r, c.want) {
				t.Errorf("\ngot  %+v\nwant %+v", r, c.want)
			}
		})
	}
}

// TestPullForgetsTheLastRequest: a record is used again and again; no field of
// an earlier request may show through, but for segments past NrSegs.
func TestPullForgetsTheLastRequest(t *testing.T) {
	for _, c := range goldenRequests {
		f, b := pair(t, 1, c.abi, 0)
		copy(f.slot(0), unhex(t, c.slot))
		f.reqPvt++
		f.push()
		pending(t, b)
		r := ring.Request{
			ID: 9, Sector: 9, NrSectors: 9, Op: 9, Inner: 9, Flag: 9, NrSegs: 9, Segs: elevenWant,
		}
		b.Pull(&r)
		n := min(int(r.NrSegs), 11)
		if c.want.Op == ring.OpIndirect {
			n = 0
		}
		if !reflect.DeepEqual(r.Segs[n:], elevenWant[n:]) {
			t.Errorf("%s: segments past NrSegs were written", c.name)
		}
		clear(r.Segs[n:])
		if !reflect.DeepEqual(r, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.name, r, c.want)
		}
	}
}

func TestPutGolden(t *testing.T) {
	cases := []struct {
		name   string
		op     ring.Op
		status ring.Status
		tail   string // operation, padding, status
	}{
		{"read ok", ring.OpRead, ring.StatusOK, "00 aa 0000"},
		{"write failed", ring.OpWrite, ring.StatusError, "01 aa ffff"},
		{"barrier not supported", ring.OpBarrier, ring.StatusNotSupp, "02 aa feff"},
		{"flush ok", ring.OpFlush, ring.StatusOK, "03 aa 0000"},
		{"discard not supported", ring.OpDiscard, ring.StatusNotSupp, "05 aa feff"},
		{"unknown", ring.Op(255), ring.StatusNotSupp, "ff aa feff"},
	}
	second := map[ring.ABI]int{ring.X86_32: 172, ring.X86_64: 176}
	for _, abi := range abis {
		for _, c := range cases {
			t.Run(abi.String()+"/"+c.name, func(t *testing.T) {
				mem := mapRing(t, 1)
				for i := range mem {
					mem[i] = 0xaa
				}
				for _, off := range []int{0, 4, 8, 12} {
					word(mem, off).Store(0xffffffe1) // slot 1
				}
				word(mem, 0).Store(0xffffffe2)
				b, err := ring.New(mem, abi)
				if err != nil {
					t.Fatal(err)
				}
				pending(t, b)
				want := bytes.Clone(mem)
				at := second[abi]
				copy(want[at:], unhex(t, "efcdab8967452301"+c.tail))

				b.Pull(new(ring.Request))
				b.Put(0x0123456789abcdef, c.op, c.status)
				// XSA-216: the padding at 9 and from 12 on, and every
				// other byte of the pages, stay 0xaa; nothing shows
				// in the header before Publish.
				wantBytes(t, mem, want)
				b.Publish()
				copy(want[8:], []byte{0xe2, 0xff, 0xff, 0xff})
				wantBytes(t, mem, want)
				b.Rearm()
				copy(want[4:], []byte{0xe3, 0xff, 0xff, 0xff})
				wantBytes(t, mem, want)
			})
		}
	}
}

func wantBytes(t *testing.T, got, want []byte) {
	t.Helper()
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("byte %d: got %#02x, want %#02x", i, got[i], want[i])
		}
	}
}

func TestABIStrings(t *testing.T) {
	for _, abi := range abis {
		got, err := ring.ParseABI(abi.String())
		if err != nil || got != abi {
			t.Errorf("ParseABI(%q): got %v, %v", abi.String(), got, err)
		}
	}
	if ring.X86_32.String() != "x86_32-abi" || ring.X86_64.String() != "x86_64-abi" {
		t.Error("the protocol node's values are those of xen/io/protocols.h")
	}
	if got, err := ring.ParseABI("arm-abi"); err != nil || got != ring.Native {
		t.Errorf("ParseABI(arm-abi): got %v, %v", got, err)
	}
	// What a machine calls its own, and what it takes a frontend without
	// protocol node (gnumach) to be.
	native, none := "arm-abi", "arm-abi"
	switch runtime.GOARCH {
	case "386":
		native, none = "x86_32-abi", "x86_32-abi"
	case "amd64":
		native, none = "x86_64-abi", "x86_32-abi"
	}
	if got := ring.Native.String(); got != native {
		t.Errorf("native: got %s, want %s", got, native)
	}
	if got, err := ring.ParseABI(""); err != nil || got.String() != none {
		t.Errorf("ParseABI of nothing: got %v, %v, want %s", got, err, none)
	}
	for _, lie := range []string{"x86_64-abi ", "X86_64-ABI", "\x00", strings.Repeat("x", 4096)} {
		_, err := ring.ParseABI(lie)
		if err == nil {
			t.Errorf("ParseABI(%.20q): accepted", lie)
		} else if len(err.Error()) > 200 {
			t.Errorf("ParseABI(%.20q): the guest made an error of %d bytes", lie, len(err.Error()))
		}
	}
}
