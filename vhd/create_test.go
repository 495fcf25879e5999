package vhd

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// readBack opens what was made and fails on any problem.
func readBack(t *testing.T, path string) *image {
	t.Helper()
	chain, err := openAll(t, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range chain {
		if len(m.problems) != 0 {
			t.Errorf("%s: got problems %+v", m.path, m.problems)
		}
		holdInvariants(t, m)
	}
	return chain[0]
}

func TestCreate(t *testing.T) {
	cases := []struct {
		name   string
		o      CreateOptions
		blocks int64
	}{
		{"dynamic", CreateOptions{SizeBytes: 10 << 20}, 5},
		{"dynamic, a part of a block", CreateOptions{SizeBytes: 10<<20 + 512}, 6},
		{"dynamic of one sector", CreateOptions{SizeBytes: 512}, 1},
		{"fixed", CreateOptions{SizeBytes: 10 << 20, Type: TypeFixed}, 0},
		{"fixed of one sector", CreateOptions{SizeBytes: 512, Type: TypeFixed}, 0},
		{"blocks of 512 bytes", CreateOptions{SizeBytes: 1 << 20, BlockBytes: 512}, 2048},
		{"blocks of 256 MiB", CreateOptions{SizeBytes: 1 << 30, BlockBytes: 256 << 20}, 4},
		{"XenServer", CreateOptions{SizeBytes: 100 << 20, Creator: CreatorXenServer}, 50},
		{"XenServer, 8 GiB", CreateOptions{SizeBytes: 8 << 30, Creator: CreatorXenServer}, 4096},
		{"XenServer, 16 MiB more", CreateOptions{SizeBytes: 8208 << 20, Creator: CreatorXenServer}, 4104},
		{"2040 GiB", CreateOptions{SizeBytes: MaxSizeBytes}, 1044480},
		{"16 TiB", CreateOptions{SizeBytes: 16 << 40, AllowLarge: true, Creator: CreatorXenServer}, 8 << 20},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.vhd")
			within(t, func() {
				if err := Create(path, c.o); err != nil {
					t.Fatal(err)
				}
				m := readBack(t, path)
				want := c.o.Type
				if want == 0 {
					want = TypeDynamic
				}
				if m.footer.Type != want || m.sizeBytes != c.o.SizeBytes || m.blocks() != c.blocks {
					t.Errorf("got %v of %d bytes in %d blocks", m.footer.Type, m.sizeBytes, m.blocks())
				}
				if (m.batmap != nil) != (c.o.Creator == CreatorXenServer) {
					t.Errorf("got a batmap of %d bytes", len(m.batmap))
				}
				if want != TypeFixed && m.footerAt%pageBytes != 0 {
					t.Errorf("got footer at %d: the first block's bitmap would be over it", m.footerAt)
				}
			})
		})
	}
}

// TestCreateBytes looks at a new image by the specification's offsets.
func TestCreateBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.vhd")
	uuid := UUID([]byte("0123456789abcdef"))
	if err := Create(path, CreateOptions{SizeBytes: 8 << 30, Creator: CreatorXenServer, UUID: uuid}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	n := len(b)
	footer, head := b[:512], b[512:1536]
	if string(footer) != string(b[n-512:]) {
		t.Error("footers differ")
	}
	for _, f := range []struct {
		what      string
		got, want uint64
	}{
		{"footer checksum", uint64(be.Uint32(footer[64:])), uint64(onesSumBut(footer, 64))},
		{"features", uint64(be.Uint32(footer[8:])), 2},
		{"version", uint64(be.Uint32(footer[12:])), 0x10000},
		{"header offset", be.Uint64(footer[16:]), 512},
		{"original size", be.Uint64(footer[40:]), 8 << 30},
		{"current size", be.Uint64(footer[48:]), 8 << 30},
		{"geometry", uint64(be.Uint32(footer[56:])), 16644<<16 | 16<<8 | 63},
		{"disk type", uint64(be.Uint32(footer[60:])), 3},
		{"header's own offset", be.Uint64(head[8:]), 1<<64 - 1},
		{"BAT offset", be.Uint64(head[16:]), 4096},
		{"header version", uint64(be.Uint32(head[24:])), 0x10000},
		{"BAT entries", uint64(be.Uint32(head[28:])), 4096},
		{"block size", uint64(be.Uint32(head[32:])), 2 << 20},
		{"header checksum", uint64(be.Uint32(head[36:])), uint64(onesSumBut(head, 36))},
		{"first entry", uint64(be.Uint32(b[4096:])), 1<<32 - 1},
		{"last entry", uint64(be.Uint32(b[4096+4*4095:])), 1<<32 - 1},
		{"batmap offset", be.Uint64(b[20480+8:]), 20992},
		{"batmap sectors", uint64(be.Uint32(b[20480+16:])), 1},
		{"batmap version", uint64(be.Uint32(b[20480+20:])), 0x10002},
		{"batmap checksum", uint64(be.Uint32(b[20480+24:])), 1<<32 - 1},
		{"length", uint64(n), 24576 + 512},
	} {
		if f.got != f.want {
			t.Errorf("%s: got %#x, want %#x", f.what, f.got, f.want)
		}
	}
	if string(footer[:8]) != "conectix" || string(footer[28:32]) != "tap\x00" || string(footer[68:84]) != string(uuid[:]) ||
		string(head[:8]) != "cxsparse" || string(b[20480:][:8]) != "tdbatmap" {
		t.Errorf("got footer %q, header %q, batmap %q", footer[:84], head[:8], b[20480:][:8])
	}
}

func onesSumBut(b []byte, at int) uint32 {
	c := append([]byte(nil), b...)
	copy(c[at:at+4], make([]byte, 4))
	return onesSum(c)
}

func TestCreateRefuses(t *testing.T) {
	cases := []struct {
		name string
		o    CreateOptions
		want string
	}{
		{"no size", CreateOptions{}, "size is 0"},
		{"negative size", CreateOptions{SizeBytes: -512}, "size is -512"},
		{"size of half a sector", CreateOptions{SizeBytes: 256}, "multiple of 512"},
		{"size not of sectors", CreateOptions{SizeBytes: 1<<20 + 1}, "multiple of 512"},
		{"more than 2040 GiB", CreateOptions{SizeBytes: MaxSizeBytes + 512}, "2040 GiB"},
		{"fixed, more than 2040 GiB", CreateOptions{SizeBytes: MaxSizeBytes + 512, Type: TypeFixed}, "2040 GiB"},
		{"2^62", CreateOptions{SizeBytes: 1 << 62, Type: TypeFixed, AllowLarge: true}, "want at most"},
		{"too many blocks", CreateOptions{SizeBytes: MaxSizeBytes, BlockBytes: 64 << 10}, "blocks"},
		{"differencing", CreateOptions{SizeBytes: 1 << 20, Type: TypeDifferencing}, "differencing"},
		{"type 9", CreateOptions{SizeBytes: 1 << 20, Type: 9}, "type 9"},
		{"block size 3 sectors", CreateOptions{SizeBytes: 1 << 20, BlockBytes: 1536}, "power of two"},
		{"block size 256", CreateOptions{SizeBytes: 1 << 20, BlockBytes: 256}, "power of two"},
		{"block size 512 MiB", CreateOptions{SizeBytes: 1 << 20, BlockBytes: 512 << 20}, "power of two"},
		{"negative block size", CreateOptions{SizeBytes: 1 << 20, BlockBytes: -1 << 32}, "power of two"},
		{"block size of 2^33", CreateOptions{SizeBytes: 1 << 20, BlockBytes: 1 << 33}, "power of two"},
		{"XenServer, where libvhd overruns its batmap", CreateOptions{SizeBytes: 8<<30 + 512, Creator: CreatorXenServer}, "8 GiB"},
		{"XenServer, a sector less than 16 MiB more", CreateOptions{SizeBytes: 8208<<20 - 512, Creator: CreatorXenServer}, "8 GiB"},
		{"XenServer, other blocks", CreateOptions{SizeBytes: 1 << 20, BlockBytes: 4096, Creator: CreatorXenServer}, "XenServer"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.vhd")
			err := Create(path, c.o)
			if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v, want no file", err)
			}
		})
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	target := save(t, dir, "there", []byte("precious"))
	link, dangling := filepath.Join(dir, "link"), filepath.Join(dir, "dangling")
	for name, to := range map[string]string{link: target, dangling: filepath.Join(dir, "nothing")} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{target, link, dangling, dir} {
		if err := Create(path, CreateOptions{SizeBytes: 1 << 20}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: got %v, want fs.ErrExist", path, err)
		}
	}
	if b, err := os.ReadFile(target); string(b) != "precious" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestCreateLeavesNothing: a file that could not be written is removed.
func TestCreateLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.vhd")
	err := createFile(path, func(f File) error {
		if _, err := f.WriteAt([]byte("half"), 0); err != nil {
			t.Fatal(err)
		}
		return syscall.ENOSPC
	})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want no file", err)
	}
}

// TestCreateFixedIsSparse: only the footer takes space.
func TestCreateFixedIsSparse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.vhd")
	if err := Create(path, CreateOptions{SizeBytes: 1 << 30, Type: TypeFixed}); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 1<<30+512 || st.Blocks*512 > 1<<20 {
		t.Errorf("got %d bytes that take %d", st.Size, st.Blocks*512)
	}
}

// TestGeometry holds geometryOf against values of other programs: Windows'
// and blktap's, by the appendix of the specification.
func TestGeometry(t *testing.T) {
	cases := []struct {
		size uint64
		want Geometry
	}{
		{512, Geometry{0, 4, 17}},
		{40 << 20, Geometry{963, 5, 17}},
		{1 << 30, Geometry{2080, 16, 63}},
		{65535 * 16 * 63 * 512, Geometry{16191, 16, 255}},
		{65535*16*63*512 - 512, Geometry{65534, 16, 63}},
		{2040 << 30, Geometry{65535, 16, 255}},
		{16 << 40, Geometry{65535, 16, 255}}, // blktap truncates to 32 bits: 0/4/17
	}
	for _, c := range cases {
		if got := geometryOf(c.size); got != c.want {
			t.Errorf("%d bytes: got %v, want %v", c.size, got, c.want)
		}
	}
}
