package vhd

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

const benchBytes = 256 << 20

// benchDisk is what a benchmark reads and writes: an image, or a plain file to
// hold it against.
type benchDisk interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Flush() error
}

type rawFile struct{ *os.File }

func (f rawFile) Flush() error { return f.Sync() }

// onEach runs a benchmark on a plain file, a dynamic image and a child.
func onEach(b *testing.B, filled bool, run func(b *testing.B, fresh func() benchDisk)) {
	for _, kind := range []struct {
		name string
		make func(b *testing.B, dir string) benchDisk
	}{{"raw", benchRaw}, {"dynamic", benchDynamic}, {"differencing", benchChild}} {
		b.Run(kind.name, func(b *testing.B) {
			var last benchDisk
			fresh := func() benchDisk {
				b.StopTimer()
				if last != nil {
					last.Close()
				}
				last = kind.make(b, b.TempDir())
				if filled {
					fill(b, last)
				}
				b.StartTimer()
				return last
			}
			run(b, fresh)
			b.StopTimer()
			last.Close()
		})
	}
}

func benchRaw(b *testing.B, dir string) benchDisk {
	f, err := os.Create(filepath.Join(dir, "raw"))
	if err == nil {
		err = f.Truncate(benchBytes)
	}
	if err != nil {
		b.Fatal(err)
	}
	return rawFile{f}
}

func benchDynamic(b *testing.B, dir string) benchDisk {
	path := filepath.Join(dir, "dynamic.vhd")
	if err := Create(path, CreateOptions{SizeBytes: benchBytes}); err != nil {
		b.Fatal(err)
	}
	return benchOpen(b, path)
}

func benchChild(b *testing.B, dir string) benchDisk {
	parent, child := filepath.Join(dir, "parent.vhd"), filepath.Join(dir, "child.vhd")
	if err := Create(parent, CreateOptions{SizeBytes: benchBytes}); err != nil {
		b.Fatal(err)
	}
	if err := Snapshot(parent, child, SnapshotOptions{}); err != nil {
		b.Fatal(err)
	}
	return benchOpen(b, child)
}

func benchOpen(b *testing.B, path string) benchDisk {
	d, err := Open(path, Options{})
	if err != nil {
		b.Fatal(err)
	}
	return d
}

func fill(b *testing.B, d benchDisk) {
	p := noise(rand.New(rand.NewPCG(1, 1)), 2048)
	for off := int64(0); off < benchBytes; off += int64(len(p)) {
		if _, err := d.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := d.Flush(); err != nil {
		b.Fatal(err)
	}
}

func benchRandom(b *testing.B, fresh func() benchDisk, n int, access func(d benchDisk, p []byte, off int64) error) {
	d := fresh()
	p := noise(rand.New(rand.NewPCG(1, 1)), int64(n)/512)
	r := rand.New(rand.NewPCG(2, 2))
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := access(d, p, r.Int64N(benchBytes/int64(n))*int64(n)); err != nil {
			b.Fatal(err)
		}
	}
}

func read(d benchDisk, p []byte, off int64) error  { _, err := d.ReadAt(p, off); return err }
func write(d benchDisk, p []byte, off int64) error { _, err := d.WriteAt(p, off); return err }

func BenchmarkOverwrite4k(b *testing.B) {
	onEach(b, true, func(b *testing.B, fresh func() benchDisk) { benchRandom(b, fresh, 4096, write) })
}

func BenchmarkRandRead4k(b *testing.B) {
	onEach(b, true, func(b *testing.B, fresh func() benchDisk) { benchRandom(b, fresh, 4096, read) })
}

// BenchmarkAllocate4k writes to each block of an empty image once, and flushes
// after every eighth.
func BenchmarkAllocate4k(b *testing.B) {
	onEach(b, false, func(b *testing.B, fresh func() benchDisk) {
		p := noise(rand.New(rand.NewPCG(1, 1)), 8)
		b.SetBytes(4096)
		var d benchDisk
		for i := range b.N {
			block := int64(i) % (benchBytes / DefaultBlockBytes)
			if block == 0 {
				d = fresh()
			}
			if err := write(d, p, block*DefaultBlockBytes); err != nil {
				b.Fatal(err)
			}
			if i%8 == 7 {
				if err := d.Flush(); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

func BenchmarkSequentialFill(b *testing.B) {
	onEach(b, false, func(b *testing.B, fresh func() benchDisk) {
		b.SetBytes(benchBytes)
		for range b.N {
			fill(b, fresh())
		}
	})
}

func BenchmarkSequentialRead(b *testing.B) {
	onEach(b, true, func(b *testing.B, fresh func() benchDisk) {
		d := fresh()
		p := make([]byte, 1<<20)
		b.SetBytes(benchBytes)
		b.ResetTimer()
		for range b.N {
			for off := int64(0); off < benchBytes; off += int64(len(p)) {
				if err := read(d, p, off); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
