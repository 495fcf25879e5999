package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// offline is a chain of files, and what its disk has.
type offline struct {
	t     *testing.T
	r     *rand.Rand
	dir   string
	files []string // the leaf's first
	made  int
	want  []byte
}

func (m *offline) newPath() string {
	m.made++
	return filepath.Join(m.dir, fmt.Sprintf("image%d.vhd", m.made))
}

func newOffline(t *testing.T, r *rand.Rand) *offline {
	m := &offline{t: t, r: r, dir: t.TempDir()}
	m.want = make([]byte, 512*(1+r.Int64N(300)))
	path := m.newPath()
	o := CreateOptions{SizeBytes: int64(len(m.want)), BlockBytes: 512 << r.IntN(6), Type: TypeDynamic}
	if r.IntN(3) == 0 {
		o.Type = TypeFixed
	}
	if err := Create(path, o); err != nil {
		t.Fatal(err)
	}
	m.files = []string{path}
	return m
}

// write changes the disk in several places.
func (m *offline) write() error {
	d, err := Open(m.files[0], Options{})
	if err != nil {
		return err
	}
	sectors := int64(len(m.want)) / 512
	for range 1 + m.r.IntN(10) {
		n := min(sectors, 1+m.r.Int64N(12))
		s := m.r.Int64N(sectors - n + 1)
		p := noise(m.r, n)
		if m.r.IntN(3) == 0 {
			clear(p)
		}
		if _, err := d.WriteAt(p, s*512); err != nil {
			return errors.Join(err, d.Close())
		}
		copy(m.want[s*512:], p)
	}
	return d.Close()
}

func (m *offline) snapshot() error {
	child := m.newPath()
	err := Snapshot(m.files[0], child, SnapshotOptions{BlockBytes: 512 << m.r.IntN(6)})
	if err == nil {
		m.files = append([]string{child}, m.files...)
	}
	return err
}

// resize changes the size of any image, which the leaf alone shows.
func (m *offline) resize() error {
	i := m.r.IntN(len(m.files))
	size := 512 * (1 + m.r.Int64N(400))
	err := Resize(context.Background(), m.files[i], size, ResizeOptions{})
	if errors.Is(err, ErrDataLoss) || errors.Is(err, ErrParentShows) || errors.Is(err, ErrUnsupported) {
		return nil
	}
	if err == nil && i == 0 {
		m.want = resized(m.want, size)
	}
	return err
}

func (m *offline) compact() error {
	path := m.files[m.r.IntN(len(m.files))]
	_, err := Compact(context.Background(), path, CompactOptions{LikeParent: m.r.IntN(2) == 0})
	if errors.Is(err, ErrUnsupported) {
		return nil
	}
	return err
}

// coalesce takes any image out of the chain.
func (m *offline) coalesce() error {
	if len(m.files) == 1 {
		return nil
	}
	i := m.r.IntN(len(m.files) - 1)
	stats, err := Coalesce(context.Background(), m.files[i], CoalesceOptions{})
	if errors.Is(err, ErrParentShows) {
		return nil
	}
	if err == nil && stats.Parent != m.files[i+1] {
		err = fmt.Errorf("coalesced into %s", stats.Parent)
	}
	if err == nil && i > 0 {
		err = Reparent(m.files[i-1], m.files[i+1], ReparentOptions{Force: true})
	}
	if err == nil {
		err = os.Remove(m.files[i])
	}
	if err != nil {
		return err
	}
	m.files = append(m.files[:i], m.files[i+1:]...)
	if i == 0 {
		d, err := Open(m.files[0], Options{ReadOnly: true})
		if err != nil {
			return err
		}
		m.want = resized(m.want, d.SizeBytes()) // the parent may be larger
		return d.Close()
	}
	return nil
}

func (m *offline) check() error {
	d, err := Open(m.files[0], Options{ReadOnly: true})
	if err != nil {
		return err
	}
	got, err := readAll(d)
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	if err := checkDisk(got, m.want); err != nil {
		return err
	}
	report, err := Check(context.Background(), m.files[0], CheckOptions{})
	if err == nil && report.Corrupt() {
		err = fmt.Errorf("check: %+v", report.Problems)
	}
	if err != nil {
		return err
	}
	for _, path := range m.files {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if faults := audit(b); len(faults) > 0 {
			return fmt.Errorf("%s: %q", path, faults)
		}
	}
	return nil
}

// TestToolsKeepTheDisk: whatever the tools do to the files of a chain, the
// disk has what was written to it.
func TestToolsKeepTheDisk(t *testing.T) {
	r := seeded(t)
	for chain := range 25 {
		m := newOffline(t, r)
		tools := []struct {
			name string
			run  func() error
		}{
			{"write", m.write}, {"write", m.write}, {"snapshot", m.snapshot}, {"resize", m.resize},
			{"compact", m.compact}, {"coalesce", m.coalesce},
		}
		var done []string
		for range 25 {
			tool := tools[r.IntN(len(tools))]
			done = append(done, tool.name)
			err := tool.run()
			if err == nil {
				err = m.check()
			}
			if err != nil {
				t.Fatalf("chain %d, after %v: %v", chain, done, err)
			}
		}
	}
}

// TestCompactMakesHoles: a file that has been full gets short, and its zeros
// take no space. More blocks move than one pair of barriers is for.
func TestCompactMakesHoles(t *testing.T) {
	const (
		block  = DefaultBlockBytes
		blocks = 80
		idle   = 40 // the first ones
	)
	path := filepath.Join(t.TempDir(), "a.vhd")
	if err := Create(path, CreateOptions{SizeBytes: blocks * block}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put := func(p []byte, off int64) {
		if _, err := d.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	for i := range int64(blocks) {
		put(bytes.Repeat([]byte{byte(i) + 1}, 32<<10), i*block)
		put(make([]byte, 16<<10), i*block)
		if i < idle {
			put(make([]byte, 16<<10), i*block+16<<10)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var last int64
	stats, err := Compact(context.Background(), path, CompactOptions{Progress: func(done, total int64) {
		if done != last+1 || total != blocks {
			t.Errorf("progress is %d of %d after %d", done, total, last)
		}
		last = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	if stats.Dropped != idle || stats.Moved != blocks-idle || stats.PunchedBytes < (blocks-idle)*16<<10 ||
		stats.BeforeBytes < blocks*block || stats.AfterBytes > (idle+1)*block || last != blocks {
		t.Errorf("got %+v", stats)
	}
	info, err := Inspect(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(blocks-idle) * 32 << 10; info.UsedBytes > most || info.FileBytes != stats.AfterBytes {
		t.Errorf("the file of %d bytes takes %d, want at most %d", info.FileBytes, info.UsedBytes, most)
	}
	got := make([]byte, 32<<10)
	if d, err = Open(path, Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range int64(blocks) {
		want := make([]byte, 32<<10)
		if i >= idle {
			copy(want[16<<10:], bytes.Repeat([]byte{byte(i) + 1}, 16<<10))
		}
		if _, err := d.ReadAt(got, i*block); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block %d has other data, or %v", i, err)
		}
	}
}
