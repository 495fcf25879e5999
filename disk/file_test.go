package disk

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/vhd"
)

func mustOpenFile(t *testing.T, path string, a access) *imageFile {
	t.Helper()
	f, err := openFile(path, a)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFileGrows: it has any length and none, unlike a Disk.
func TestFileGrows(t *testing.T) {
	noLeaks(t)
	path := image(t, 0)
	f := mustOpenFile(t, path, forWriting)
	wantSize := func(want int64) {
		t.Helper()
		if n, err := f.Size(); n != want || err != nil {
			t.Errorf("size %d, %v, want %d", n, err, want)
		}
	}
	wantSize(0)
	p := pattern(511)
	if n, err := f.WriteAt(p, 1000); n != len(p) || err != nil {
		t.Fatal(n, err)
	}
	wantSize(1511)
	got := make([]byte, 600)
	if n, err := f.ReadAt(got, 1000); n != len(p) || err != io.EOF || !bytes.Equal(got[:n], p) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(got, 1511); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	must(t, f.Truncate(8192))
	wantSize(8192)
	must(t, f.Truncate(100))
	wantSize(100)
	must(t, f.Sync())
	must(t, f.Close())
	if !bytes.Equal(readFile(t, path), make([]byte, 100)) {
		t.Error("the file differs")
	}
}

func TestFileHoles(t *testing.T) {
	const size = 64 << 10
	for _, s := range allStores() {
		t.Run(s.name, func(t *testing.T) {
			noLeaks(t)
			f := mustOpenFile(t, s.make(t, size), forWriting)
			want := make([]byte, size)
			_, err := f.ReadAt(want, 0)
			must(t, err)
			switch err := f.PunchHole(8192, 16<<10); {
			case err == nil:
				clear(want[8192 : 24<<10])
			case !errors.Is(err, errors.ErrUnsupported):
				t.Fatal(err)
			}
			must(t, f.PunchHole(0, 0))
			got := make([]byte, size)
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file differs (%v)", err)
			}
			if n, err := f.Size(); n != size || err != nil {
				t.Errorf("size %d, %v", n, err)
			}
			for off := int64(0); off < size; {
				start, end, err := f.NextData(off)
				must(t, err)
				if start < off || start > size || start < size && end <= start {
					t.Fatalf("data after %d: %d to %d", off, start, end)
				}
				if !bytes.Equal(want[off:start], make([]byte, start-off)) {
					t.Errorf("%d to %d is not zeros", off, start)
				}
				off = max(end, start)
			}
			if start, end, err := f.NextData(size); start != size || end != size || err != nil {
				t.Errorf("data at the end: %d to %d, %v", start, end, err)
			}
		})
	}
}

func TestFileFindsData(t *testing.T) {
	f := mustOpenFile(t, inDir(ext4)(t, 0), forWriting)
	must(t, f.Truncate(64<<10))
	if start, end, err := f.NextData(0); start != 64<<10 || end != 64<<10 || err != nil {
		t.Errorf("in a hole: %d to %d, %v", start, end, err)
	}
	_, err := f.WriteAt(pattern(100), 20<<10)
	must(t, err)
	if start, end, err := f.NextData(512); start != 20<<10 || end != 24<<10 || err != nil {
		t.Errorf("before a block: %d to %d, %v", start, end, err)
	}
}

func TestFileIdentity(t *testing.T) {
	path, other := image(t, sectorBytes), image(t, sectorBytes)
	link := path + ".link"
	must(t, os.Link(path, link))
	device := loop(t, other)
	var st unix.Stat_t
	must(t, unix.Stat(device, &st))
	node := path + ".node"
	must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)))
	id := func(path string) vhd.Identity {
		f := mustOpenFile(t, path, forReading)
		defer f.Close()
		return f.Identity()
	}
	if id(path) != id(link) || id(path) == id(other) || id(path).Block {
		t.Errorf("files: %+v, %+v, %+v", id(path), id(link), id(other))
	}
	if id(device) != id(node) || !id(device).Block {
		t.Errorf("two nodes of a device: %+v, %+v", id(device), id(node))
	}
}

func TestFileForReading(t *testing.T) {
	path := image(t, 4096)
	for name, f := range map[string]vhd.File{
		"read":   mustOpenFile(t, path, forReading),
		"mapped": mustOpenMapped(t, path),
	} {
		_, writeErr := f.WriteAt(pattern(512), 0)
		for op, err := range map[string]error{
			"write": writeErr, "truncate": f.Truncate(0), "punch": f.PunchHole(0, 4096),
		} {
			if !errors.Is(err, ErrReadOnly) {
				t.Errorf("%s: %s: %v", name, op, err)
			}
		}
		must(t, f.Sync())
	}
	if !bytes.Equal(readFile(t, path), pattern(4096)) {
		t.Error("the file has changed")
	}
}

func TestFileClosed(t *testing.T) {
	path := image(t, 4096)
	for name, open := range map[string]func() vhd.File{
		"read":    func() vhd.File { return mustOpenFile(t, path, forReading) },
		"written": func() vhd.File { return mustOpenFile(t, path, forWriting) },
		"mapped":  func() vhd.File { return mustOpenMapped(t, path) },
	} {
		f := open()
		must(t, f.Close())
		must(t, f.Close())
		_, readErr := f.ReadAt(make([]byte, 512), 0)
		_, writeErr := f.WriteAt(make([]byte, 512), 0)
		_, sizeErr := f.Size()
		_, _, dataErr := f.NextData(0)
		for op, err := range map[string]error{
			"read": readErr, "write": writeErr, "size": sizeErr, "data": dataErr,
			"truncate": f.Truncate(0), "punch": f.PunchHole(0, 4096), "sync": f.Sync(),
		} {
			if !errors.Is(err, fs.ErrClosed) {
				t.Errorf("%s: %s after close: %v", name, op, err)
			}
		}
	}
}

func mustOpenMapped(t *testing.T, path string) *mappedFile {
	t.Helper()
	f, err := openMapped(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMappedFile(t *testing.T) {
	noLeaks(t)
	const size = pages + 511
	path := image(t, size)
	f := mustOpenMapped(t, path)
	want := pattern(size)
	for _, c := range []struct {
		name      string
		off, n, k int64
		err       error
	}{
		{"all", 0, size, size, nil},
		{"inside", 1, 100, 100, nil},
		{"over the end", size - 10, 20, 10, io.EOF},
		{"at the end", size, 1, 0, io.EOF},
		{"far past the end", 1<<63 - 1, 1, 0, io.EOF},
		{"nothing at the end", size, 0, 0, nil},
		{"before the start", -1, 1, 0, ErrRange},
	} {
		got := make([]byte, c.n)
		n, err := f.ReadAt(got, c.off)
		if int64(n) != c.k || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v, want %d, %v", c.name, n, err, c.k, c.err)
		} else if n > 0 && !bytes.Equal(got[:n], want[c.off:][:n]) {
			t.Errorf("%s: data differ", c.name)
		}
	}
	must(t, os.Truncate(path, 0))
	if n, err := f.ReadAt(make([]byte, 512), 0); n != 0 || !errors.Is(err, ErrFault) {
		t.Errorf("read of a truncated file: %d, %v", n, err)
	}
}

func TestMappedFileRefuses(t *testing.T) {
	noLeaks(t)
	empty := image(t, 0)
	if f, err := openMapped(empty); err == nil {
		f.Close()
		t.Error("an empty file was mapped")
	}
	held := image(t, sectorBytes)
	mustOpenFile(t, held, forWriting)
	if _, err := openMapped(held); !errors.Is(err, ErrInUse) {
		t.Errorf("a file with a writer: %v", err)
	}
}

// TestMappedFileCloseWhileBusy: no reader may meet the address after unmap.
func TestMappedFileCloseWhileBusy(t *testing.T) {
	f := mustOpenMapped(t, image(t, pages))
	var started, done sync.WaitGroup
	for range 4 {
		started.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			p := make([]byte, 4096)
			_, err := f.ReadAt(p, 0)
			started.Done()
			for err == nil {
				_, err = f.ReadAt(p, 0)
			}
			if !errors.Is(err, fs.ErrClosed) {
				t.Error(err)
			}
		}()
	}
	started.Wait()
	must(t, f.Close())
	done.Wait()
}
