package blkback

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"xen-disk/disk"
	"xen-disk/ring"
)

// diskCalls counts what reaches a disk.
type diskCalls struct{ reads, writes, flushes atomic.Int64 }

func (c *diskCalls) all() int64 { return c.reads.Load() + c.writes.Load() + c.flushes.Load() }

// A tapped disk counts the calls to another one, and asks a hook first. It is
// neither a Sink nor Memory, whatever the one below is.
type tapped struct {
	disk.Disk
	diskCalls
	// hook may fail a call or make it wait; op is the call's method.
	hook func(op string, off int64) error
}

func (d *tapped) ask(op string, off int64) error {
	if d.hook == nil {
		return nil
	}
	return d.hook(op, off)
}

func (d *tapped) ReadAt(p []byte, off int64) (int, error) {
	d.reads.Add(1)
	if err := d.ask("read", off); err != nil {
		return 0, err
	}
	return d.Disk.ReadAt(p, off)
}

func (d *tapped) WriteAt(p []byte, off int64) (int, error) {
	d.writes.Add(1)
	if err := d.ask("write", off); err != nil {
		return 0, err
	}
	return d.Disk.WriteAt(p, off)
}

func (d *tapped) Flush() error {
	d.flushes.Add(1)
	if err := d.ask("flush", 0); err != nil {
		return err
	}
	return d.Disk.Flush()
}

// tappedMemory is tapped for a disk that is memory: its data goes past the
// tap, but not its flushes.
type tappedMemory struct{ tapped }

func (d *tappedMemory) Bytes(off int64, n int) []byte {
	d.reads.Add(1)
	return d.Disk.(disk.Memory).Bytes(off, n)
}

// openDisk makes a disk of that many sectors with random contents, which it
// returns too, and the path of its file.
func openDisk(t testing.TB, f disk.Format, sectors int, o disk.Options) (disk.Disk, []byte, string) {
	t.Helper()
	path, data := "", []byte(nil)
	if f != disk.Discard {
		data = make([]byte, sectors*ring.SectorBytes)
		random := rand.NewChaCha8([32]byte{byte(sectors)})
		_, _ = random.Read(data)
		path = filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := disk.Open(path, f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, data, path
}

// formats are the three ways in which data crosses.
var formats = []disk.Format{disk.Discard, disk.Mmap, disk.Raw}

// abis are the two layouts of a ring.
var abis = []string{"x86_64-abi", "x86_32-abi"}
