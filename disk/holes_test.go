package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// spaceOf is what the store keeps for a file, in bytes.
func spaceOf(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// TestSpaceComesBack looks at the file, or at the one below a loop device.
func TestSpaceComesBack(t *testing.T) {
	const size = 1 << 20
	inTmpfs := inDir(func(t *testing.T) string { return tinyFS(t, 8<<20) })
	for _, s := range []struct {
		name   string
		file   func(t *testing.T, sizeBytes int) string
		onLoop bool
	}{
		{"ext4", inDir(ext4), false},
		{"tmpfs", inTmpfs, false},
		{"loop over ext4", inDir(ext4), true},
	} {
		for _, f := range []Format{Raw, Mmap} {
			t.Run(fmt.Sprint(f, " on ", s.name), func(t *testing.T) {
				file := s.file(t, size)
				path := file
				if s.onLoop {
					path = loop(t, file)
				}
				d := mustOpen(t, path, f, Options{}).(spacious)
				want := func(what string, least, most int64) {
					t.Helper()
					must(t, d.Flush())
					if n := spaceOf(t, file); n < least || n > most {
						t.Errorf("%s: the file takes %d bytes, want %d to %d", what, n, least, most)
					}
				}
				const some = 64 << 10 // what the filesystem may need to find it all
				want("before", size, size+some)
				must(t, d.Discard(0, size/2))
				want("half discarded", size/2, size/2+some)
				must(t, d.WriteZeroes(size/2, size/2, true))
				want("all freed", 0, some)
				must(t, d.WriteZeroes(0, size, false))
				want("reserved", size, size+some)
				if !bytes.Equal(readAll(t, d), make([]byte, size)) {
					t.Error("the disk is not zeros")
				}
			})
		}
	}
}

// TestDiscardRoundsInwards: what is less than a block is not touched.
func TestDiscardRoundsInwards(t *testing.T) {
	path := inDir(ext4)(t, 64<<10)
	d := mustOpen(t, path, Raw, Options{})
	before := readAll(t, d)
	must(t, d.(Discarder).Discard(4096-sectorBytes, 4096+2*sectorBytes))
	clear(before[4096:8192])
	if !bytes.Equal(readAll(t, d), before) {
		t.Error("not the whole block, and only that, was discarded")
	}
}

func TestGrainInside(t *testing.T) {
	for _, c := range []struct {
		name          string
		g             grain
		off, n        int64
		wantOff, want int64
	}{
		{"aligned", grain{4096, 0}, 4096, 8192, 4096, 8192},
		{"both edges", grain{4096, 0}, 512, 8192, 4096, 4096},
		{"less than one", grain{4096, 0}, 512, 4096, 4096, 0},
		{"inside one", grain{4096, 0}, 512, 512, 4096, 0},
		{"nothing", grain{4096, 0}, 4096, 0, 4096, 0},
		{"first begins late", grain{4096, 1024}, 0, 8192, 1024, 4096},
		{"before the first", grain{4096, 1024}, 0, 1024, 1024, 0},
		{"not a power of two", grain{1536, 512}, 0, 5120, 512, 4608},
		{"cannot", grain{}, 4096, 8192, 4096, 0},
	} {
		if off, n := c.g.inside(c.off, c.n); off != c.wantOff || n != c.want {
			t.Errorf("%s: %d at %d, want %d at %d", c.name, n, off, c.want, c.wantOff)
		}
	}
}

// TestDeviceGrain lays out sysfs as it is for a disk and its partition.
func TestDeviceGrain(t *testing.T) {
	for _, c := range []struct {
		name                       string
		granularity, most, shifted string
		want                       grain
	}{
		{"disk", "4096\n", "2147450880\n", "0\n", grain{4096, 0}},
		{"shifted partition", "65536\n", "2147450880\n", "1024\n", grain{65536, 1024}},
		{"shifted by -1", "4096\n", "2147450880\n", "-1\n", grain{4096, 0}},
		{"shifted by more than one", "4096\n", "2147450880\n", "8192\n", grain{4096, 0}},
		{"cannot", "0\n", "0\n", "0\n", grain{}},
		{"forbidden by the administrator", "4096\n", "0\n", "0\n", grain{}},
		{"not whole sectors", "1000\n", "2147450880\n", "0\n", grain{}},
		{"no number", "many\n", "2147450880\n", "0\n", grain{}},
		{"not in sysfs", "", "", "", grain{}},
	} {
		for _, partition := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/partition %v", c.name, partition), func(t *testing.T) {
				disk := t.TempDir()
				part := filepath.Join(disk, "sda1")
				must(t, os.MkdirAll(filepath.Join(disk, "queue"), 0o700))
				must(t, os.Mkdir(part, 0o700))
				dir := disk
				if partition {
					dir = filepath.Join(t.TempDir(), "8:1")
					must(t, os.Symlink(part, dir))
				}
				for name, text := range map[string]string{
					filepath.Join(disk, "queue/discard_granularity"): c.granularity,
					filepath.Join(disk, "queue/discard_max_bytes"):   c.most,
					filepath.Join(dir, "discard_alignment"):          c.shifted,
				} {
					if text != "" {
						writeFile(t, name, []byte(text))
					}
				}
				if got := deviceGrain(dir); got != c.want {
					t.Errorf("%+v, want %+v", got, c.want)
				}
			})
		}
	}
}

func TestGranularityOfStores(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, sizeBytes int) string
		want int64
	}{
		{"ext4", inDir(ext4), 4096},
		{"loop over ext4", onLoop(inDir(ext4), 0), 4096},
		{"loop over ramfs", onLoop(inDir(ramfs), 0), 0},
	} {
		d := mustOpen(t, c.make(t, 64<<10), Raw, Options{}).(Discarder)
		if g, _ := d.Granularity(); g != c.want {
			t.Errorf("%s: %d, want %d", c.name, g, c.want)
		}
		d.Close()
	}
}

// TestMmapHoleFaults: punching makes a hole under the mapping; when there is no
// space to fill it again, that is a fault of the write that wants it.
func TestMmapHoleFaults(t *testing.T) {
	noLeaks(t)
	dir := tinyFS(t, pages)
	path, ballast := filepath.Join(dir, "disk.img"), filepath.Join(dir, "ballast")
	writeFile(t, path, pattern(pages))
	d := mustOpen(t, path, Mmap, Options{})
	mem := d.(Memory).Bytes(0, pages/2)
	must(t, d.(Zeroer).WriteZeroes(0, pages/2, true))
	writeFile(t, ballast, make([]byte, pages/2))
	if _, err := d.WriteAt(pattern(pages/2), 0); !errors.Is(err, ErrFault) {
		t.Errorf("write into a hole of a full filesystem: %v", err)
	}
	must(t, os.Remove(ballast))
	if !bytes.Equal(mem, make([]byte, pages/2)) {
		t.Error("the mapping does not show the hole")
	}
	_, err := d.WriteAt(pattern(pages/2), 0)
	must(t, err)
}
