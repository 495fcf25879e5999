package vhd

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// sharedFile counts who lets others read.
type sharedFile struct {
	File
	path   string
	shared *[]string
}

func (f *sharedFile) Share() error {
	*f.shared = append(*f.shared, filepath.Base(f.path))
	return nil
}

// TestSnapshotLive stacks children on each kind of leaf while it is open: each
// image keeps what was written until then, and is shared from then on.
func TestSnapshotLive(t *testing.T) {
	for _, typ := range []Type{TypeFixed, TypeDynamic} {
		t.Run(typ.String(), func(t *testing.T) {
			dir := t.TempDir()
			path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.vhd", i)) }
			if err := Create(path(0), CreateOptions{SizeBytes: 5 << 20, Type: typ}); err != nil {
				t.Fatal(err)
			}
			var shared []string
			d, err := Open(path(0), Options{OpenFile: func(path string, write bool) (File, error) {
				f, err := OpenFile(path, write)
				return &sharedFile{f, path, &shared}, err
			}})
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 1))
			var want [][]byte // of the disk, when each image was the leaf
			for i := range 4 {
				if i > 0 {
					if err := d.Snapshot(path(i)); err != nil {
						t.Fatal(err)
					}
				}
				for range 20 {
					if _, err := d.WriteAt(noise(r, 1+r.Int64N(64)), r.Int64N(10<<10-64)*512); err != nil {
						t.Fatal(err)
					}
				}
				now, err := readAll(d)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, now)
			}
			if got := []string{"0.vhd", "1.vhd", "2.vhd"}; !slices.Equal(shared, got) {
				t.Errorf("shared %q", shared)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			for i := range want {
				d, err := Open(path(i), Options{ReadOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				if got, err := readAll(d); err != nil || !slices.Equal(got, want[i]) {
					t.Errorf("image %d does not show what it did (%v)", i, err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestSnapshotLiveRefuses: a snapshot that cannot be made leaves the disk as it
// was, and no file.
func TestSnapshotLiveRefuses(t *testing.T) {
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base.vhd"), filepath.Join(dir, "child.vhd")
	if err := Create(base, CreateOptions{SizeBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	errNoFile := errors.New("no such store")
	cases := []struct {
		name    string
		child   string
		options Options
		want    error
	}{
		{"the child exists", base, Options{}, fs.ErrExist},
		{"no such directory", filepath.Join(dir, "none", "child.vhd"), Options{}, fs.ErrNotExist},
		{"the chain is as deep as it may be", child, Options{MaxDepth: 1}, ErrTooDeep},
		{"the disk is read-only", child, Options{ReadOnly: true}, ErrReadOnly},
		{"the child cannot be opened", child, Options{OpenFile: func(path string, write bool) (File, error) {
			if path == child {
				return nil, errNoFile
			}
			return OpenFile(path, write)
		}}, errNoFile},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d, err := Open(base, c.options)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Snapshot(c.child); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if _, err := os.Stat(child); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the child: %v", err)
			}
			if got := d.Paths(); len(got) != 1 || got[0] != base {
				t.Errorf("chain %q", got)
			}
			if _, err := d.WriteAt(make([]byte, 512), 0); err != nil && !c.options.ReadOnly {
				t.Error(err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
