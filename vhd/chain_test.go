package vhd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// openAll opens a chain for reading and closes it with the test.
func openAll(t *testing.T, path string, o Options) ([]*image, error) {
	t.Helper()
	o.ReadOnly = true
	chain, err := openChain(path, &o)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := closeChain(chain); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return chain, nil
}

func aParent(uuid byte) []byte {
	h := aDynamic()
	h.uuid = uuid
	return h.bytes()
}

func aNamed(name []byte, locators ...handLocator) []byte {
	h := aChild(0xC1, 0xAA, locators...)
	h.name = name
	return h.bytes()
}

// TestFindParent: where the parent lies, what the child says, and what finds
// it. Files of the wrong UUID lie in the way.
func TestFindParent(t *testing.T) {
	cases := []struct {
		name     string
		child    []byte
		files    map[string]byte // name under the directory, UUID
		search   []string
		found    string
		wantPath string
	}{
		{"relative", aNamed(nil, locW2ru(`.\p.vhd`)), map[string]byte{"d/p.vhd": 0xAA}, nil, "W2ru", "d/p.vhd"},
		{"up", aNamed(nil, locW2ru(`..\p.vhd`)), map[string]byte{"p.vhd": 0xAA}, nil, "W2ru", "p.vhd"},
		{"first of the table", aNamed(nil, locMacX("file://./p.vhd"), locW2ru(`.\p.vhd`)),
			map[string]byte{"d/p.vhd": 0xAA}, nil, "MacX", "d/p.vhd"},
		{"wrong UUID, next locator", aNamed(nil, locMacX("file://./q.vhd"), locW2ru(`.\p.vhd`)),
			map[string]byte{"d/q.vhd": 0xBB, "d/p.vhd": 0xAA}, nil, "W2ru", "d/p.vhd"},
		{"no VHD, next locator", aNamed(nil, locMacX("file://./c.vhd"), locW2ru(`.\p.vhd`)),
			map[string]byte{"d/p.vhd": 0xAA}, nil, "W2ru", "d/p.vhd"},
		{"bad locator, next locator", aNamed(nil, handLocator{"W2ku", []byte("odd")}, locW2ru(`.\p.vhd`)),
			map[string]byte{"d/p.vhd": 0xAA}, nil, "W2ru", "d/p.vhd"},
		{"unknown platform, next locator", aNamed(nil, handLocator{"xxxx", []byte("x")}, locW2ru(`.\p.vhd`)),
			map[string]byte{"d/p.vhd": 0xAA}, nil, "W2ru", "d/p.vhd"},
		{"drive of Windows", aNamed(nil, locW2ku(`C:\vm\p.vhd`)), map[string]byte{"d/p.vhd": 0xAA}, nil, "W2ku", "d/p.vhd"},
		{"escaped", aNamed(nil, locMacX("file://./p%20q.vhd")), map[string]byte{"d/p q.vhd": 0xAA}, nil, "MacX", "d/p q.vhd"},
		{"not escaped", aNamed(nil, locMacX("file://./p%20q.vhd")), map[string]byte{"d/p%20q.vhd": 0xAA}, nil, "MacX", "d/p%20q.vhd"},
		{"name", aNamed(utf16BE("p.vhd")), map[string]byte{"d/p.vhd": 0xAA}, nil, "name", "d/p.vhd"},
		{"name that is a path of Windows", aNamed(utf16BE(`C:\vm\p.vhd`)), map[string]byte{"d/p.vhd": 0xAA}, nil, "name", "d/p.vhd"},
		{"name with a byte order mark", aNamed(utf16BE("\uFEFFp.vhd")), map[string]byte{"d/p.vhd": 0xAA}, nil, "name", "d/p.vhd"},
		{"name of an absolute locator", aNamed(nil, locW2ku(`\gone\p.vhd`)), map[string]byte{"d/p.vhd": 0xAA}, nil, "name", "d/p.vhd"},
		{"search path", aNamed(utf16BE("p.vhd"), locW2ru(`.\p.vhd`)),
			map[string]byte{"d/p.vhd": 0xBB, "s/p.vhd": 0xBB, "r/p.vhd": 0xAA}, []string{"s", "r"}, "search", "r/p.vhd"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			child := save(t, dir, "d/c.vhd", c.child)
			for name, uuid := range c.files {
				save(t, dir, name, aParent(uuid))
			}
			var o Options
			for _, s := range c.search {
				o.SearchPath = append(o.SearchPath, filepath.Join(dir, s))
			}
			chain, err := openAll(t, child, o)
			if err != nil {
				t.Fatal(err)
			}
			if len(chain) != 2 || chain[1].found != c.found || chain[1].path != filepath.Join(dir, c.wantPath) {
				t.Errorf("got %d images, the last %s by %s; want %s by %s",
					len(chain), chain[len(chain)-1].path, chain[len(chain)-1].found, c.wantPath, c.found)
			}
		})
	}
}

// TestFindParentThroughSymlink: a relative path counts from where the child
// is, not from where a link to it is.
func TestFindParentThroughSymlink(t *testing.T) {
	dir := t.TempDir()
	child := save(t, dir, "d/c.vhd", aNamed(nil, locW2ru(`.\p.vhd`)))
	save(t, dir, "d/p.vhd", aParent(0xAA))
	link := filepath.Join(dir, "link.vhd")
	if err := os.Symlink(child, link); err != nil {
		t.Fatal(err)
	}
	if _, err := openAll(t, link, Options{}); err != nil {
		t.Error(err)
	}
}

// TestParentError: the error lists each place and what was wrong with it.
func TestParentError(t *testing.T) {
	dir := t.TempDir()
	child := save(t, dir, "c.vhd", aNamed(utf16BE("gone.vhd"),
		handLocator{"W2ku", []byte("odd")}, locW2ru(`.\other.vhd`), locMacX("file://./fifo"), locMacX("file://./text")))
	save(t, dir, "other.vhd", aParent(0xBB))
	save(t, dir, "text", []byte(strings.Repeat("text\n", 1000)))
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	_, err := openAll(t, child, Options{})
	var failed *ParentError
	if !errors.As(err, &failed) {
		t.Fatalf("got %v, want a ParentError", err)
	}
	want := []struct {
		path string
		err  error
	}{
		{"", errLocator}, {"other.vhd", errOtherUUID}, {"fifo", ErrNotRegular},
		{"text", ErrNotVHD}, {"gone.vhd", fs.ErrNotExist},
	}
	if len(failed.Tried) != len(want) || failed.Child != child || failed.UUID != (UUID)([]byte(strings.Repeat("\xAA", 16))) {
		t.Fatalf("got %+v", failed)
	}
	for i, w := range want {
		a := failed.Tried[i]
		if w.path != "" && a.Path != filepath.Join(dir, w.path) || !errors.Is(a.Err, w.err) {
			t.Errorf("attempt %d: got %q, %v, want %q, %v", i, a.Path, a.Err, w.path, w.err)
		}
		if !strings.Contains(err.Error(), w.path) || !errors.Is(err, w.err) {
			t.Errorf("got %q, want it to name %s and %v", err, w.path, w.err)
		}
	}
}

func TestAnyParent(t *testing.T) {
	dir := t.TempDir()
	child := save(t, dir, "c.vhd", aNamed(nil, locW2ru(`.\p.vhd`)))
	save(t, dir, "p.vhd", aParent(0xBB))
	if _, err := openAll(t, child, Options{}); !errors.Is(err, errOtherUUID) {
		t.Errorf("got %v, want errOtherUUID", err)
	}
	if _, err := openAll(t, child, Options{AnyParent: true}); err != nil {
		t.Error(err)
	}
}

// TestCycles: each of these made blktap's libvhd loop for ever.
func TestCycles(t *testing.T) {
	cases := []struct {
		name  string
		files map[string][]byte
		links map[string]string // hard links
	}{
		{"itself", map[string][]byte{"a": aChild(1, 1, locW2ru(`.\a`)).bytes()}, nil},
		{"hard link of itself", map[string][]byte{"a": aChild(1, 2, locW2ru(`.\b`)).bytes()}, map[string]string{"b": "a"}},
		{"copy of itself", map[string][]byte{
			"a": aChild(1, 1, locW2ru(`.\b`)).bytes(), "b": aChild(1, 1, locW2ru(`.\a`)).bytes()}, nil},
		{"two", map[string][]byte{
			"a": aChild(1, 2, locW2ru(`.\b`)).bytes(), "b": aChild(2, 1, locW2ru(`.\a`)).bytes()}, nil},
		{"three", map[string][]byte{
			"a": aChild(1, 2, locW2ru(`.\b`)).bytes(), "b": aChild(2, 3, locW2ru(`.\c`)).bytes(),
			"c": aChild(3, 2, locW2ru(`.\b`)).bytes()}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, b := range c.files {
				save(t, dir, name, b)
			}
			for link, name := range c.links {
				if err := os.Link(filepath.Join(dir, name), filepath.Join(dir, link)); err != nil {
					t.Fatal(err)
				}
			}
			for _, any := range []bool{false, true} {
				_, err := openAll(t, filepath.Join(dir, "a"), Options{AnyParent: any})
				if !errors.Is(err, errCycle) {
					t.Errorf("AnyParent %v: got %v, want errCycle", any, err)
				}
			}
		})
	}
}

func TestChainDepth(t *testing.T) {
	dir := t.TempDir()
	const images = 70
	save(t, dir, "0", aParent(1))
	for i := 1; i < images; i++ {
		name := string(utf16LE(".\\" + depthName(i-1)))
		save(t, dir, depthName(i), aChild(byte(i+1), byte(i), handLocator{"W2ru", []byte(name)}).bytes())
	}
	cases := []struct {
		leaf, most int
		ok         bool
	}{
		{0, 0, true}, {DefaultMaxDepth - 1, 0, true}, {DefaultMaxDepth, 0, false},
		{images - 1, images, true}, {2, 2, false}, {1, 2, true}, {0, 1, true},
	}
	for _, c := range cases {
		chain, err := openAll(t, filepath.Join(dir, depthName(c.leaf)), Options{MaxDepth: c.most})
		switch {
		case c.ok && (err != nil || len(chain) != c.leaf+1):
			t.Errorf("%d images, limit %d: got %d, %v", c.leaf+1, c.most, len(chain), err)
		case !c.ok && !errors.Is(err, ErrTooDeep):
			t.Errorf("%d images, limit %d: got %v, want ErrTooDeep", c.leaf+1, c.most, err)
		}
	}
}

func depthName(i int) string {
	if i == 0 {
		return "0"
	}
	return strings.Repeat("n", i)
}

// TestRawParent: the bytes of a raw disk are data, whatever they look like.
func TestRawParent(t *testing.T) {
	planted := append(aParent(0xAA), 1, 2, 3) // its guest wrote a VHD into it
	dir := t.TempDir()
	child := save(t, dir, "c.vhd", aChild(0xC1, 0, locW2ru(`.\p.img`)).bytes())
	raw := save(t, dir, "p.img", planted)
	if _, err := openAll(t, child, Options{}); !errors.Is(err, ErrRawParent) {
		t.Errorf("not permitted: got %v, want ErrRawParent", err)
	}
	chain, err := openAll(t, child, Options{RawParent: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 {
		t.Fatalf("got %d images, want 2", len(chain))
	}
	p := chain[1]
	if !p.raw || p.footer.Type != TypeFixed || p.path != raw || p.sizeBytes != int64(len(planted))-3 || p.bat != nil {
		t.Errorf("got %+v", p)
	}
}

// TestParentsAreReadOnly: nothing but the leaf is opened for writing, and all
// is closed when one is missing.
func TestParentsAreReadOnly(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, "base", aParent(1))
	save(t, dir, "mid", aChild(2, 1, locW2ru(`.\base`)).bytes())
	leaf := save(t, dir, "leaf", aChild(3, 2, locW2ru(`.\mid`)).bytes())
	var writable []string
	open := 0
	o := Options{OpenFile: func(path string, write bool) (File, error) {
		f, err := OpenFile(path, write)
		if err != nil {
			return nil, err
		}
		if write {
			writable = append(writable, path)
		}
		open++
		return closeCounter{f, &open}, nil
	}}
	chain, err := openChain(leaf, &o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(writable, []string{leaf}) || open != 3 {
		t.Errorf("got %q for writing and %d files open, want %q and 3", writable, open, leaf)
	}
	if err := closeChain(chain); err != nil || open != 0 {
		t.Errorf("got %v and %d files open, want none", err, open)
	}
	if err := os.Remove(filepath.Join(dir, "base")); err != nil {
		t.Fatal(err)
	}
	if _, err := openChain(leaf, &o); err == nil || open != 0 {
		t.Errorf("without the base: got %v and %d files open, want an error and none", err, open)
	}
}

type closeCounter struct {
	File
	open *int
}

func (c closeCounter) Close() error {
	*c.open--
	return c.File.Close()
}
