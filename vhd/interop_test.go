//go:build interop

package vhd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The judges are installed by make judges; one that is missing fails the test.

// tool runs a judge and returns its standard output.
func tool(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out
}

// picture is what a disk must contain: the model of every test here.
type picture struct {
	t      *testing.T
	random *rand.Rand
	want   []byte
}

func newPicture(t *testing.T, sizeBytes int64) *picture {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &picture{t: t, random: rand.New(rand.NewPCG(seed, 1)), want: make([]byte, sizeBytes)}
}

// piece chooses a run of sectors and its new content: half of them short,
// most of them somewhere that has been written before, none all zeros.
func (p *picture) piece() (off int64, b []byte) {
	sectors := int64(len(p.want)) / SectorBytes
	n := 1 + p.random.Int64N(16)
	if p.random.IntN(4) == 0 {
		n = 1 + p.random.Int64N(8192)
	}
	n = min(n, sectors)
	first := p.random.Int64N(sectors - n + 1)
	b = make([]byte, n*SectorBytes)
	fill := byte(1 + p.random.IntN(255))
	for i := range b {
		b[i] = fill ^ byte(i>>9)&0x0F
	}
	copy(p.want[first*SectorBytes:], b)
	return first * SectorBytes, b
}

// write lets us write count pieces.
func (p *picture) write(path string, count int) {
	p.t.Helper()
	d, err := Open(path, Options{})
	if err != nil {
		p.t.Fatal(err)
	}
	for range count {
		off, b := p.piece()
		if _, err := d.WriteAt(b, off); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		p.t.Fatal(err)
	}
}

// writeQEMU lets qemu-io write count pieces.
func (p *picture) writeQEMU(path string, count int) {
	p.t.Helper()
	args := []string{"--image-opts", "driver=vpc,force_size_calc=current_size,file.filename=" + path}
	for range count {
		sectors := int64(len(p.want)) / SectorBytes
		n := min(1+p.random.Int64N(64), sectors)
		first := p.random.Int64N(sectors - n + 1)
		fill := byte(1 + p.random.IntN(255))
		copy(p.want[first*SectorBytes:], bytes.Repeat([]byte{fill}, int(n*SectorBytes)))
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", fill, first*SectorBytes, n*SectorBytes))
	}
	if out := tool(p.t, "qemu-io", args...); bytes.Contains(out, []byte("failed")) {
		p.t.Fatalf("qemu-io: %s", out)
	}
}

// judge compares what a reader sees with the model.
func (p *picture) judge(reader string, got []byte) {
	p.t.Helper()
	if len(got) != len(p.want) {
		p.t.Fatalf("%s sees %d bytes, want %d", reader, len(got), len(p.want))
	}
	for i := range got {
		if got[i] != p.want[i] {
			p.t.Fatalf("%s sees %#02x at byte %d (sector %d), want %#02x", reader, got[i], i, i/SectorBytes, p.want[i])
		}
	}
}

// judgeOurs reads with our own code, and has it check the image.
func (p *picture) judgeOurs(path string) {
	p.t.Helper()
	d, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		p.t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, d.SizeBytes())
	if _, err := d.ReadAt(got, 0); err != nil {
		p.t.Fatal(err)
	}
	p.judge("xen-disk", got)
	r, err := Check(context.Background(), path, CheckOptions{})
	if err != nil || r.Corrupt() {
		p.t.Fatalf("check: %v, %+v", err, r)
	}
}

func (p *picture) judgeQEMU(path string) {
	p.t.Helper()
	raw := filepath.Join(p.t.TempDir(), "qemu.raw")
	tool(p.t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		p.t.Fatal(err)
	}
	p.judge("qemu-img", got)
}

func (p *picture) judge7zz(path string) {
	p.t.Helper()
	p.judge("7zz", tool(p.t, "7zz", "e", "-tVHD", "-so", path))
}

// judgeLibvhdi mounts the image: libvhdi's tools have no other way to show
// the data. It is right for fixed and dynamic images only (its bitmaps of
// differencing ones are wrong).
func (p *picture) judgeLibvhdi(path string) {
	p.t.Helper()
	dir := filepath.Join(p.t.TempDir(), "libvhdi")
	if err := os.Mkdir(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	tool(p.t, "vhdimount", path, dir)
	defer tool(p.t, "fusermount", "-u", dir)
	got, err := os.ReadFile(filepath.Join(dir, "vhdi1"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.judge("libvhdi", got)
}

// TestOthersReadOurs: what we make and write, everyone reads.
func TestOthersReadOurs(t *testing.T) {
	for _, c := range []struct {
		name string
		o    CreateOptions
	}{
		{"fixed", CreateOptions{SizeBytes: 20 << 20, Type: TypeFixed}},
		{"fixed, odd size", CreateOptions{SizeBytes: 20<<20 + 7*SectorBytes, Type: TypeFixed}},
		{"dynamic", CreateOptions{SizeBytes: 40 << 20}},
		{"dynamic, odd size", CreateOptions{SizeBytes: 40<<20 + 5*SectorBytes}},
		{"dynamic, one sector", CreateOptions{SizeBytes: SectorBytes}},
		{"dynamic for XenServer", CreateOptions{SizeBytes: 40 << 20, Creator: CreatorXenServer}},
		{"dynamic, blocks of 512 KiB", CreateOptions{SizeBytes: 40 << 20, BlockBytes: 512 << 10}},
		{"dynamic, blocks of 64 KiB", CreateOptions{SizeBytes: 10 << 20, BlockBytes: 64 << 10}},
		{"dynamic, blocks of 4 KiB", CreateOptions{SizeBytes: 4 << 20, BlockBytes: 4 << 10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ours.vhd")
			if err := Create(path, c.o); err != nil {
				t.Fatal(err)
			}
			p := newPicture(t, c.o.SizeBytes)
			for range 3 {
				p.write(path, 20)
				p.judgeOurs(path)
				p.judgeQEMU(path)
				if c.o.Type != TypeFixed || c.o.SizeBytes%(1<<20) == 0 {
					p.judge7zz(path)
				}
				p.judgeLibvhdi(path)
			}
		})
	}
}

// TestWeReadOthers: what QEMU makes and writes we read, and both can go on in
// turns.
func TestWeReadOthers(t *testing.T) {
	for _, subformat := range []string{"fixed", "dynamic"} {
		for _, size := range []int64{40 << 20, 40<<20 + 3*SectorBytes} {
			t.Run(fmt.Sprintf("%s of %d", subformat, size), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "qemu.vhd")
				tool(t, "qemu-img", "create", "-f", "vpc", "-o", "force_size=on,subformat="+subformat, path, fmt.Sprint(size))
				p := newPicture(t, size)
				for range 3 {
					p.writeQEMU(path, 20)
					p.judgeOurs(path)
					p.write(path, 20)
					p.judgeOurs(path)
					p.judgeQEMU(path)
				}
				p.judge7zz(path)
				p.judgeLibvhdi(path)
			})
		}
	}
}

// TestQEMUGoesOnWithOurs: QEMU writes into images that we made.
func TestQEMUGoesOnWithOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ours.vhd")
	if err := Create(path, CreateOptions{SizeBytes: 40 << 20}); err != nil {
		t.Fatal(err)
	}
	p := newPicture(t, 40<<20)
	for range 3 {
		p.write(path, 10)
		p.writeQEMU(path, 10)
		p.judgeOurs(path)
		p.judgeQEMU(path)
	}
}

// TestChains holds chains of mixed block sizes against the model and 7-Zip,
// the one other reader at hand that is right about them.
func TestChains(t *testing.T) {
	for _, c := range []struct {
		name   string
		base   CreateOptions
		blocks []int64
	}{
		{"on dynamic", CreateOptions{SizeBytes: 24 << 20}, []int64{0, 0, 0}},
		{"on fixed", CreateOptions{SizeBytes: 24 << 20, Type: TypeFixed}, []int64{0, 0}},
		{"mixed blocks", CreateOptions{SizeBytes: 24 << 20, BlockBytes: 512 << 10}, []int64{2 << 20, 64 << 10, 4 << 10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "base.vhd")
			if err := Create(path, c.base); err != nil {
				t.Fatal(err)
			}
			p := newPicture(t, c.base.SizeBytes)
			p.write(path, 20)
			for i, block := range c.blocks {
				child := filepath.Join(dir, fmt.Sprintf("child%d.vhd", i))
				if err := Snapshot(path, child, SnapshotOptions{BlockBytes: block}); err != nil {
					t.Fatal(err)
				}
				path = child
				p.write(path, 30)
				p.judgeOurs(path)
				p.judge7zz(path)
			}
		})
	}
}

// TestQEMUSeesTheSize: sizes that no geometry can say are what we mean, for
// all versions of QEMU, up to the 2040 GiB of the specification.
func TestQEMUSeesTheSize(t *testing.T) {
	for _, size := range []int64{SectorBytes, 1 << 20, 1<<30 + SectorBytes, 127 << 30, 128 << 30, 1<<40 + 32<<20 + 17*SectorBytes, 2040 << 30} {
		for name, creator := range map[string]Creator{"win": CreatorWindows, "tap": CreatorXenServer} {
			path := filepath.Join(t.TempDir(), "size.vhd")
			if err := Create(path, CreateOptions{SizeBytes: size, Creator: creator}); err != nil {
				t.Fatal(err)
			}
			var info struct {
				Size int64 `json:"virtual-size"`
			}
			out := tool(t, "qemu-img", "info", "--output=json", "-f", "vpc", path)
			if err := json.Unmarshal(out, &info); err != nil {
				t.Fatal(err)
			}
			if info.Size != size {
				t.Errorf("%s: qemu-img sees %d bytes, want %d", name, info.Size, size)
			}
		}
	}
}
