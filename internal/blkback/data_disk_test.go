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
type diskCalls struct{ reads, writes, flushes, discards atomic.Int64 }

func (c *diskCalls) all() int64 {
	return c.reads.Load() + c.writes.Load() + c.flushes.Load() + c.discards.Load()
}

// A tapped disk counts the calls to another one, and asks a hook first. It is
// neither a Sink nor Memory nor a Discarder, whatever the one below is.
type tapped struct {
	disk.Disk
	diskCalls
	// hook may fail a call or make it wait; op is the call's method.
	hook func(op string, off int64) error
	// discard is what the Discarders below do; nil is nothing.
	discard func(off, n int64) error
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

// give is the Discard of the Discarders below.
func (d *tapped) give(off, n int64) error {
	d.discards.Add(1)
	if err := d.ask("discard", off); err != nil || d.discard == nil {
		return err
	}
	return d.discard(off, n)
}

// Where the pieces of a Discarder of these tests lie.
const granularity, alignment = 4096, 512

// tappedDiscarder and tappedMemoryDiscarder are disks that take discards, one
// of each mode.
type (
	tappedDiscarder       struct{ tapped }
	tappedMemoryDiscarder struct{ tappedMemory }
)

func (d *tappedDiscarder) Discard(off, n int64) error       { return d.give(off, n) }
func (d *tappedMemoryDiscarder) Discard(off, n int64) error { return d.give(off, n) }
func (d *tappedDiscarder) Granularity() (int64, int64)      { return granularity, alignment }
func (d *tappedMemoryDiscarder) Granularity() (int64, int64) {
	return granularity, alignment
}

// discarder makes a disk take discards, which tap sees and which it answers
// with zeros. A disk that keeps nothing takes them as it is.
func discarder(inner disk.Disk) (d disk.Disk, tap *tapped) {
	switch inner.(type) {
	case disk.Sink:
		return inner, nil
	case disk.Memory:
		memory := &tappedMemoryDiscarder{}
		d, tap = memory, &memory.tapped
	default:
		plain := &tappedDiscarder{}
		d, tap = plain, &plain.tapped
	}
	tap.Disk = inner
	zeros := make([]byte, inner.Info().SizeBytes)
	tap.discard = func(off, n int64) error {
		_, err := inner.WriteAt(zeros[:n], off)
		return err
	}
	return d, tap
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
