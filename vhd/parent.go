package vhd

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// How a file of a chain was found.
const (
	foundAsLeaf   = "leaf"
	foundByName   = "name"   // the header's name, in the directory of the child
	foundBySearch = "search" // a name, in a directory of Options.SearchPath
)

// Attempt is a place where a parent was looked for.
type Attempt struct {
	// Path is empty where Found is a locator that names none.
	Path string `json:"path"`
	// Found is what names the path: the platform code of a locator, "name" or
	// "search".
	Found string `json:"found"`
	// Err says why the file is not the parent.
	Err error `json:"-"`
}

// ParentError says that a parent was not found.
type ParentError struct {
	Child string
	UUID  UUID // of the parent
	Tried []Attempt
}

// Error lists all that was tried, in that order.
func (e *ParentError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "find parent %s of %s", e.UUID, e.Child)
	if len(e.Tried) == 0 {
		s.WriteString(": the child names none")
	}
	for i, a := range e.Tried {
		fmt.Fprintf(&s, "%s %s: %v", [...]string{":", ";"}[min(i, 1)], a.Found, a.Err)
	}
	return s.String()
}

// Unwrap returns why each place was not taken.
func (e *ParentError) Unwrap() []error {
	errs := make([]error, len(e.Tried))
	for i, a := range e.Tried {
		errs[i] = a.Err
	}
	return errs
}

var (
	// ErrRawParent: the parent is no VHD, and Options.RawParent is not set.
	ErrRawParent = errors.New("parent is a raw disk")
	// ErrTooDeep: the chain has more images than Options.MaxDepth.
	ErrTooDeep = errors.New("chain is too deep")

	errOtherUUID = errors.New("is another image")
	errCycle     = errors.New("is in the chain already")
)

// places lists where an image's parent can be, in the order in which blktap
// looks (libvhd.c, vhd_parent_locator_get): its locators as the table has
// them, from the directory of the child. Then the names alone: in that
// directory and in those of the search path, for a chain that was moved.
func (m *image) places(search []string) []Attempt {
	dir := filepath.Dir(m.path)
	if real, err := filepath.EvalSymlinks(m.path); err == nil {
		dir = filepath.Dir(real)
	}
	var tried []Attempt
	seen := map[string]bool{}
	add := func(dir, path, found string) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if !seen[path] {
			seen[path] = true
			tried = append(tried, Attempt{Path: path, Found: found})
		}
	}
	var names []string
	name, err := m.header.name()
	if err != nil {
		tried = append(tried, Attempt{Found: foundByName, Err: err})
	}
	names = append(names, lastComponent(name))
	for i := range m.header.Locators {
		l := &m.header.Locators[i]
		found := string(l.Platform[:])
		paths, err := m.readLocator(l)
		if err != nil {
			tried = append(tried, Attempt{Found: fmt.Sprintf("%.4q", found), Err: err})
		}
		for _, p := range paths {
			add(dir, p, found)
			names = append(names, filepath.Base(p))
		}
	}
	for i, d := range append([]string{dir}, search...) {
		found := foundBySearch
		if i == 0 {
			found = foundByName
		}
		for _, n := range names {
			if n != "" && n != "." && n != ".." && n != "/" {
				add(d, n, found)
			}
		}
	}
	return tried
}

// readLocator returns the paths that a locator names; none for an empty or
// unknown one.
func (m *image) readLocator(l *Locator) ([]string, error) {
	switch string(l.Platform[:]) {
	case platformW2ru, platformW2ku, platformWi2r, platformWi2k, platformMacX:
	default:
		return nil, nil
	}
	if err := l.check(m.fileBytes); err != nil {
		return nil, err
	}
	text, err := m.read(int64(l.DataOffset), int(l.DataLength))
	if err != nil {
		return nil, err
	}
	return decodeLocator(l.Platform, text)
}

// openParent opens what the last image of a chain stands on.
func openParent(chain []*image, o *Options) (*image, error) {
	child := chain[len(chain)-1]
	raw := child.header.ParentUUID == UUID{}
	if raw && !o.RawParent {
		return nil, fmt.Errorf("open the parent of %s: %w", child.path, ErrRawParent)
	}
	if raw && child.footerAt < 0 {
		// A guest can write a footer into the first sector of a raw disk and
		// have it name any file of the host as its raw parent. The footer at
		// the end is out of its reach.
		return nil, fmt.Errorf("open the parent of %s: %w, and the image has no footer at its end", child.path, ErrRawParent)
	}
	failed := &ParentError{Child: child.path, UUID: child.header.ParentUUID}
	for _, a := range child.places(o.SearchPath) {
		if a.Err == nil {
			m, err := tryParent(chain, a.Path, raw, o)
			if err == nil {
				m.found = a.Found
				return m, nil
			}
			a.Err = err
		}
		failed.Tried = append(failed.Tried, a)
	}
	return nil, failed
}

// tryParent opens a file if it is the parent of the last image of a chain.
func tryParent(chain []*image, path string, raw bool, o *Options) (_ *image, err error) {
	file, err := o.open(path, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	for _, m := range chain {
		if m.file.Identity() == file.Identity() {
			return nil, fmt.Errorf("%s %w, as %s", path, errCycle, m.path)
		}
	}
	if raw {
		return readRaw(path, file)
	}
	m, err := readImage(path, file)
	if err == nil {
		err = m.readable()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if want := chain[len(chain)-1].header.ParentUUID; m.footer.UUID != want && !o.AnyParent {
		return nil, fmt.Errorf("%s %w: its UUID is %s", path, errOtherUUID, m.footer.UUID)
	}
	for _, c := range chain {
		if c.footer.UUID == m.footer.UUID {
			return nil, fmt.Errorf("%s %w: %s has the same UUID", path, errCycle, c.path)
		}
	}
	return m, nil
}
