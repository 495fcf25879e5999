package blkback

import (
	"bytes"
	"strings"
	"sync"

	"xen-disk/disk"
)

// logBuffer keeps what was logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// count returns how many lines have the text in them.
func (l *logBuffer) count(text string) int { return strings.Count(l.String(), text) }

// testDisk is a disk in memory whose calls can be held up.
type testDisk struct {
	info disk.Info

	mu      sync.Mutex
	data    []byte
	gate    chan struct{} // not nil: reads, writes and flushes wait for its end
	inside  int           // calls that wait
	flushes int
	closes  int
}

func newDisk(sizeBytes int64) *testDisk {
	return &testDisk{
		data: make([]byte, sizeBytes),
		info: disk.Info{SizeBytes: sizeBytes, PhysicalSectorBytes: 512, Path: "/images/test.raw"},
	}
}

// hold makes all calls wait until the returned function is called.
func (d *testDisk) hold() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	gate := make(chan struct{})
	d.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

// held returns how many calls wait.
func (d *testDisk) held() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inside
}

// closed returns how often Close was called.
func (d *testDisk) closed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closes
}

// enter waits at the gate and returns with mu held.
func (d *testDisk) enter() {
	d.mu.Lock()
	if gate := d.gate; gate != nil {
		d.inside++
		d.mu.Unlock()
		<-gate
		d.mu.Lock()
		d.inside--
	}
}

func (d *testDisk) Info() disk.Info { return d.info }

func (d *testDisk) ReadAt(p []byte, off int64) (int, error) {
	d.enter()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}

func (d *testDisk) WriteAt(p []byte, off int64) (int, error) {
	d.enter()
	defer d.mu.Unlock()
	if d.info.ReadOnly {
		return 0, disk.ErrReadOnly
	}
	return copy(d.data[off:], p), nil
}

func (d *testDisk) Flush() error {
	d.enter()
	defer d.mu.Unlock()
	d.flushes++
	return nil
}

// Close waits for calls under way, as real disks do.
func (d *testDisk) Close() error {
	d.enter()
	defer d.mu.Unlock()
	d.closes++
	return nil
}

// trimDisk is a testDisk that takes discards, and answers them with zeros.
type trimDisk struct{ *testDisk }

func (d *trimDisk) Discard(off, n int64) error {
	d.enter()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	return nil
}

func (d *trimDisk) Granularity() (granularity, alignment int64) { return 2 << 20, 512 }

// keepDisk is a trimDisk that gives nothing back.
type keepDisk struct{ trimDisk }

func (d *keepDisk) Granularity() (granularity, alignment int64) { return 0, 0 }

// sinkDisk is a testDisk whose reads and writes are not worth carrying out.
type sinkDisk struct{ *testDisk }

func (d *sinkDisk) AcknowledgesEverything() {}
