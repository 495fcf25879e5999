//go:build interop

package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"xen-disk/disk"
)

// The tests of this file hold the server against the clients that people use.
// They need qemu-io and qemu-img (Debian's qemu-utils), nbdinfo and nbdcopy
// (libnbd-bin), and fio, and fail without them.

// uri is how clients name the export.
func (s *served) uri() string { return "nbd+unix:///?socket=" + s.path }

// run runs one and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, &stderr)
	}
	return string(out)
}

const imageBytes = 16 << 20

// image makes a raw image with data, holes between them, and a hole at its
// end.
func image(t *testing.T) (path string, contents []byte) {
	t.Helper()
	r := random(t)
	path, contents = filepath.Join(t.TempDir(), "disk.raw"), make([]byte, imageBytes)
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(imageBytes))
	for off := 0; off < imageBytes*3/4; off += 2 << 20 {
		part := contents[off : off+1<<20]
		fill(r, part)
		_, err := f.WriteAt(part, int64(off))
		must(t, err)
	}
	return path, contents
}

// blank makes an image that is one hole.
func blank(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blank.raw")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, imageBytes))
	return path
}

// serveFile serves an image in raw format.
func serveFile(t *testing.T, path string, o disk.Options) *served {
	t.Helper()
	d, err := disk.Open(path, disk.Raw, o)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return serve(t, d)
}

func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s holds something else", path)
	}
}

func TestNbdinfo(t *testing.T) {
	path, _ := image(t)
	t.Run("read-write", func(t *testing.T) { testNbdinfo(t, path, false) })
	t.Run("read-only", func(t *testing.T) { testNbdinfo(t, path, true) })
}

func testNbdinfo(t *testing.T, path string, readOnly bool) {
	s := serveFile(t, path, disk.Options{ReadOnly: readOnly})
	var got struct {
		Protocol   string
		TLS        bool
		Structured bool
		Exports    []map[string]any
	}
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--json", s.uri())), &got))
	if got.Protocol != "newstyle-fixed" || got.TLS || !got.Structured || len(got.Exports) != 1 {
		t.Fatalf("it says %+v", got)
	}
	x := got.Exports[0]
	for key, want := range map[string]any{
		"export-size": float64(imageBytes), "is_read_only": readOnly, "can_multi_conn": true,
		"can_flush": true, "can_fua": true, "can_df": true, "can_cache": false, "can_fast_zero": false,
		"can_trim": !readOnly, "can_zero": !readOnly,
		"block_size_minimum": 512.0, "block_size_preferred": 4096.0, "block_size_maximum": float64(32 << 20),
	} {
		if x[key] != want {
			t.Errorf("%s is %v, want %v", key, x[key], want)
		}
	}
	if got := fmt.Sprint(x["contexts"]); got != "[base:allocation]" {
		t.Errorf("contexts are %s", got)
	}
	if out := run(t, "nbdinfo", "--list", s.uri()); !strings.Contains(out, `export="":`) {
		t.Errorf("the list is:\n%s", out)
	}
}

// TestMaps: nbdinfo and qemu-img see the holes that the file has.
func TestMaps(t *testing.T) {
	path, contents := image(t)
	s := serveFile(t, path, disk.Options{})
	type extent struct {
		Start, Offset, Length int64
		Type                  int
		Zero                  bool
	}
	zero := bytes.Repeat([]byte{0}, 1<<20)
	check := func(tool string, at, length int64, isZero bool) {
		for off := at; off < at+length; off += 1 << 20 {
			if want := bytes.Equal(contents[off:off+1<<20], zero); isZero != want {
				t.Errorf("%s says that MiB %d is zero: %v, want %v", tool, off>>20, isZero, want)
			}
		}
	}
	var extents []extent
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--map", s.uri())), &extents))
	next := int64(0)
	for _, x := range extents {
		if x.Offset != next || x.Type != 0 && x.Type != 3 {
			t.Fatalf("nbdinfo: extent %+v at %d", x, next)
		}
		check("nbdinfo", x.Offset, x.Length, x.Type == 3)
		next += x.Length
	}
	if next != imageBytes {
		t.Errorf("nbdinfo: the extents end at %d", next)
	}
	must(t, json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", s.uri())), &extents))
	for _, x := range extents {
		check("qemu-img", x.Start, x.Length, x.Zero)
	}
}

func TestNbdcopy(t *testing.T) {
	path, contents := image(t)
	for _, args := range [][]string{
		{"--connections=1"}, {"--connections=4", "--requests=64"}, {"--synchronous"}, {"--request-size=33554432", "--sparse=0"},
		{"--request-size=4096", "--requests=128", "--threads=2"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			from, into := serveFile(t, path, disk.Options{ReadOnly: true}), blank(t)
			run(t, "nbdcopy", append(args, from.uri(), into)...)
			wantFile(t, into, contents)

			other := blank(t)
			must(t, os.WriteFile(other, bytes.Repeat([]byte{0xff}, imageBytes), 0o600))
			to := serveFile(t, other, disk.Options{})
			run(t, "nbdcopy", append(args, "--flush", into, to.uri())...)
			wantFile(t, other, contents)

			must(t, os.WriteFile(into, bytes.Repeat([]byte{0xff}, imageBytes), 0o600))
			back := serveFile(t, into, disk.Options{})
			run(t, "nbdcopy", append(args, from.uri(), back.uri())...)
			wantFile(t, into, contents)
			for _, s := range []*served{from, to, back} {
				if err := s.reported(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestQemuIO has qemu-io write patterns, zeroes and discards, and check them.
func TestQemuIO(t *testing.T) {
	path := blank(t)
	s := serveFile(t, path, disk.Options{})
	var args []string
	for _, c := range []string{
		"write -P 0x11 0 1M", "write -P 0x22 512 512", "write -f -P 0x33 4M 64k", "write -P 0x44 8M 4M",
		"write -z 9M 1M", "write -z -u 10M 512k", "write -z -f 5M 4k", "discard 0 64k", "flush",
		"read -P 0x22 512k 0", "read -P 0x11 512k 512k", "read -P 0x33 4M 64k", "read -P 0x44 8M 1M",
		"read -P 0 9M 1536k", "read -P 0x44 10752k 1280k", "aio_write -P 0x55 2M 128k", "aio_write -P 0x66 3M 128k",
		"aio_flush", "read -P 0x55 2M 128k", "read -P 0x66 3M 128k", "write -P 0x77 16776704 512", "read -P 0x77 16776704 512",
	} {
		args = append(args, "-c", c)
	}
	out := run(t, "qemu-io", append(args, "-f", "raw", s.uri())...)
	if strings.Contains(out, "failed") || strings.Contains(out, "error") {
		t.Errorf("it says:\n%s", out)
	}
	if err := s.reported(); err != nil {
		t.Error(err)
	}
}

// TestQemuIORefused: a read-only export stays as it is.
func TestQemuIORefused(t *testing.T) {
	path, contents := image(t)
	s := serveFile(t, path, disk.Options{ReadOnly: true})
	cmd := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 4k", s.uri())
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("qemu-io wrote:\n%s", out)
	}
	run(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", s.uri())
	wantFile(t, path, contents)
}

func TestQemuImg(t *testing.T) {
	path, contents := image(t)
	s := serveFile(t, path, disk.Options{ReadOnly: true})
	qcow, back := filepath.Join(t.TempDir(), "disk.qcow2"), filepath.Join(t.TempDir(), "back.raw")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.uri(), qcow)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", s.uri(), qcow)
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow, back)
	wantFile(t, back, contents)
	into := blank(t)
	to := serveFile(t, into, disk.Options{})
	run(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow, to.uri())
	wantFile(t, into, contents)
}

// TestFio has several jobs verify what they wrote, each with a connection of
// its own and many requests at once.
func TestFio(t *testing.T) {
	s := serveFile(t, blank(t), disk.Options{})
	var running sync.WaitGroup
	for i := range 3 {
		running.Add(1)
		go func() {
			defer running.Done()
			cmd := exec.Command("fio", "--name=verify", "--ioengine=nbd", "--uri="+s.uri(), "--rw=randwrite",
				"--bsrange=512-128k", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--fsync=64",
				fmt.Sprintf("--offset=%dM", 5*i), "--size=5M")
			cmd.Dir = t.TempDir()
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("fio: %v\n%s", err, out)
			}
		}()
	}
	running.Wait()
	if err := s.reported(); err != nil {
		t.Error(err)
	}
}
