package xs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// rawMessage is an encoder of the test's own, so that a mistake in ours does
// not cancel out.
func rawMessage(typ, reqID, txID, length uint32, payload string) []byte {
	var b bytes.Buffer
	for _, v := range []uint32{typ, reqID, txID, length} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	b.WriteString(payload)
	return b.Bytes()
}

func TestAppendMessage(t *testing.T) {
	got := appendMessage(nil, opWrite, 0x01020304, 0xa0b0c0d0, "/a", "\x00", "v\x00w")
	want := []byte("\x0b\x00\x00\x00" + "\x04\x03\x02\x01" + "\xd0\xc0\xb0\xa0" +
		"\x06\x00\x00\x00" + "/a\x00v\x00w")
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

// decodeAll feeds stream in pieces of n bytes and writes down what comes out.
func decodeAll(stream []byte, n int) (log []string) {
	var d decoder
	for len(stream) > 0 {
		piece := stream[:min(n, len(stream))]
		stream = stream[len(piece):]
		for {
			h, payload, rest, ok, err := d.next(piece)
			if err != nil {
				return append(log, err.Error())
			}
			if !ok {
				if len(rest) != 0 {
					return append(log, "bytes left over without a message")
				}
				break
			}
			log = append(log, fmt.Sprintf("%d %d %d %q", h.typ, h.reqID, h.txID, payload))
			piece = rest
		}
	}
	return log
}

func TestDecoderHoweverTheStreamIsCut(t *testing.T) {
	long := strings.Repeat("x", payloadMax)
	list := strings.Repeat("12345\x00", 2000)
	var stream []byte
	stream = append(stream, rawMessage(opRead, 1, 0, 5, "value")...)
	stream = append(stream, rawMessage(opWatchEvent, 0, 0, 5, "/a\x001\x00")...)
	stream = append(stream, rawMessage(opMkdir, 2, 7, 0, "")...)
	stream = append(stream, rawMessage(opRead, 3, 0, payloadMax, long)...)
	stream = append(stream, rawMessage(opDirectory, 4, 0, uint32(len(list)), list)...)
	stream = append(stream, rawMessage(opError, 5, 0, 7, "ENOENT\x00")...)
	want := []string{
		`2 1 0 "value"`, `15 0 0 "/a\x001\x00"`, `12 2 7 ""`, `2 3 0 "` + long + `"`,
		fmt.Sprintf("1 4 0 %q", list), `16 5 0 "ENOENT\x00"`,
	}
	for _, n := range []int{1, 2, 3, 15, 16, 17, 4096, 4112, len(stream)} {
		got := decodeAll(stream, n)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("in pieces of %d: got %d messages %.200q", n, len(got), got)
		}
	}
}

func TestDecoderRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"payload too long", rawMessage(opRead, 1, 0, payloadMax+1, ""), "4097 bytes"},
		{"payload of 4 GiB", rawMessage(opWatchEvent, 0, 0, 0xffffffff, ""), "4294967295 bytes"},
		{"list too long", rawMessage(opDirectory, 1, 0, directoryMax+1, ""), "65537 bytes"},
		{"type of no reply", rawMessage(0, 1, 0, 0, ""), "unknown type 0"},
		{"type of the future", rawMessage(23, 1, 0, 0, ""), "unknown type 23"},
		{"type invalid", rawMessage(0xffff, 1, 0, 0, ""), "unknown type 65535"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d decoder
			_, _, _, ok, err := d.next(tc.stream)
			if ok || !errors.Is(err, errWire) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v; want an error with %q", ok, err, tc.want)
			}
		})
	}
}

func TestDecoderForgetsALongList(t *testing.T) {
	var d decoder
	for _, m := range [][]byte{
		rawMessage(opDirectory, 1, 0, directoryMax, strings.Repeat("x", directoryMax)),
		rawMessage(opRead, 2, 0, 1, "x"),
	} {
		if _, _, _, ok, err := d.next(m); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if cap(d.body) != payloadMax {
		t.Errorf("decoder keeps %d bytes, want %d", cap(d.body), payloadMax)
	}
}

// FuzzDecoder begins with testdata/fuzz/FuzzDecoder.
func FuzzDecoder(f *testing.F) {
	f.Fuzz(func(t *testing.T, stream []byte, n int) {
		n = max(1, min(n, len(stream)))
		whole, cut := decodeAll(stream, max(1, len(stream))), decodeAll(stream, n)
		if fmt.Sprint(whole) != fmt.Sprint(cut) {
			t.Errorf("in pieces of %d: %q\nat once: %q", n, cut, whole)
		}
		var d decoder
		for p := stream; ; {
			h, payload, rest, ok, err := d.next(p)
			if err != nil || !ok {
				break
			}
			again := appendMessage(nil, h.typ, h.reqID, h.txID, string(payload))
			if consumed := p[:len(p)-len(rest)]; !bytes.Equal(again, consumed) {
				t.Errorf("encodes to %x, was %x", again, consumed)
			}
			p = rest
			// What is made of payloads must stand anything as well.
			_, _ = splitStrings(payload)
			_, _, _ = parseEvent(payload)
			_ = errnoOf(payload)
			_, _ = ParsePerm(string(payload))
			_, _ = ParseState(string(payload))
		}
		if cap(d.body) > directoryMax {
			t.Errorf("decoder holds %d bytes", cap(d.body))
		}
	})
}

func TestErrnoOf(t *testing.T) {
	for _, tc := range []struct {
		payload string
		want    error
	}{
		{"EINVAL\x00", unix.EINVAL}, {"EACCES\x00", unix.EACCES}, {"EACCES\x00", fs.ErrPermission},
		{"EEXIST\x00", fs.ErrExist}, {"EISDIR\x00", unix.EISDIR}, {"ENOENT\x00", unix.ENOENT},
		{"ENOENT\x00", fs.ErrNotExist}, {"ENOMEM\x00", unix.ENOMEM}, {"ENOSPC\x00", unix.ENOSPC},
		{"EIO\x00", unix.EIO}, {"ENOTEMPTY\x00", unix.ENOTEMPTY}, {"ENOSYS\x00", unix.ENOSYS},
		{"EROFS\x00", unix.EROFS}, {"EBUSY\x00", unix.EBUSY}, {"EAGAIN\x00", unix.EAGAIN},
		{"EISCONN\x00", unix.EISCONN}, {"E2BIG\x00", unix.E2BIG}, {"EPERM\x00", fs.ErrPermission},
		{"EQUOTA\x00", unix.EDQUOT}, {"ENOENT", unix.ENOENT},
		{"ESTRANGE\x00", unix.EIO}, {"", unix.EIO}, {"\x00", unix.EIO},
	} {
		if err := errnoOf([]byte(tc.payload)); !errors.Is(err, tc.want) {
			t.Errorf("%q: got %v, want %v", tc.payload, err, tc.want)
		}
	}
	if err := errnoOf([]byte("ESTRANGE\x00")); !strings.Contains(err.Error(), "ESTRANGE") {
		t.Errorf("an unknown name is not in %q", err)
	}
}

func TestCheckPath(t *testing.T) {
	for _, tc := range []struct {
		name, path string
		ok         bool
	}{
		{"root", "/", true},
		{"absolute", "/local/domain/0/backend/vbd/1/51712", true},
		{"relative", "backend/vbd", true},
		{"every byte", "/azAZ09-_@", true},
		{"event", "@releaseDomain", true},
		{"longest absolute", "/" + strings.Repeat("a", absolutePathMax-1), true},
		{"longest relative", strings.Repeat("a", relativePathMax), true},
		{"empty", "", false},
		{"absolute too long", "/" + strings.Repeat("a", absolutePathMax), false},
		{"relative too long", strings.Repeat("a", relativePathMax+1), false},
		{"empty name", "/a//b", false},
		{"slash at the end", "/a/", false},
		{"NUL smuggles a second argument", "/a\x00value", false},
		{"dot", "/a.b", false},
		{"colon", "/a:b", false},
		{"space", "/a b", false},
		{"not ASCII", "/é", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := checkPath(tc.path)
			if (err == nil) != tc.ok || err != nil && !errors.Is(err, unix.EINVAL) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := checkNode("@releaseDomain"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an event as a node: got %v", err)
	}
}

func TestCandidates(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"nothing set", nil, "/run/xenstored/socket /var/run/xenstored/socket /dev/xen/xenbus /proc/xen/xenbus"},
		{"a path", map[string]string{"XENSTORED_PATH": "/x", "XENSTORED_RUNDIR": "/r"}, "/x"},
		{"a directory", map[string]string{"XENSTORED_RUNDIR": "/r"}, "/r/socket /dev/xen/xenbus /proc/xen/xenbus"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := strings.Join(candidates(func(k string) string { return tc.env[k] }), " ")
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestDialErrorIsTheMostTellingOne(t *testing.T) {
	wrap := func(err error) error { return &fs.PathError{Op: "open", Path: "/p", Err: err} }
	missing, denied := wrap(unix.ENOENT), wrap(unix.EACCES)
	odd, refused := wrap(unix.ENXIO), wrap(unix.ECONNREFUSED)
	for _, tc := range []struct {
		name string
		err  dialError
		want error
	}{
		{"nothing there", dialError{missing, missing}, fs.ErrNotExist},
		{"denied", dialError{missing, denied, odd}, fs.ErrPermission},
		{"odd", dialError{missing, odd, missing}, unix.ENXIO},
		{"refused", dialError{denied, missing, refused}, unix.ECONNREFUSED},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !errors.Is(tc.err, tc.want) {
				t.Errorf("%v is not %v", tc.err, tc.want)
			}
			if tc.want != fs.ErrNotExist && errors.Is(tc.err, fs.ErrNotExist) {
				t.Errorf("%v is fs.ErrNotExist", tc.err)
			}
		})
	}
}
