package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SnapshotOptions say how Snapshot makes a child.
type SnapshotOptions struct {
	BlockBytes int64   // 0: as the parent has, or DefaultBlockBytes
	Creator    Creator // zero: blktap's where the parent's is
	UUID       UUID    // all zero: a random one
	// Absolute writes the parent's whole path: the child can be moved without
	// its parent then, and not with it.
	Absolute bool
	// RawParent takes the parent for the bytes of a disk, whatever they are.
	RawParent bool
	// Open says how the parent and its own parents are opened: for reading.
	Open Options
}

// Snapshot makes a differencing image of a disk that is not in use: empty, so
// that it reads as its parent, and durable. The child must not exist. The
// parent must not be written from then on.
func Snapshot(parent, child string, o SnapshotOptions) (err error) {
	o.Open.ReadOnly = true
	chain, err := openSnapshot(parent, &o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeChain(chain)) }()
	most := o.Open.depth()
	if len(chain) >= most {
		return fmt.Errorf("create %s: %w: %d images", child, ErrTooDeep, most)
	}
	if err := chain[0].writable(); err != nil {
		return fmt.Errorf("create %s: %w", child, err)
	}
	if err := createChild(child, chain[0], o); err != nil {
		return err
	}
	// What was written must find its parent, or it is of no use.
	o.Open.RawParent = o.Open.RawParent || o.RawParent
	made, err := openChain(child, &o.Open)
	if err != nil {
		return errors.Join(err, os.Remove(child))
	}
	return closeChain(made)
}

// openSnapshot opens what the child is to stand on.
func openSnapshot(parent string, o *SnapshotOptions) ([]*image, error) {
	if !o.RawParent {
		return openChain(parent, &o.Open)
	}
	file, err := o.Open.open(parent, false)
	if err != nil {
		return nil, err
	}
	m, err := readRaw(parent, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return []*image{m}, nil
}

// createChild makes an empty differencing image of a parent, durably. It reads
// nothing but the parent's fields, and can be called while that is written.
func createChild(path string, parent *image, o SnapshotOptions) error {
	if o.BlockBytes == 0 {
		o.BlockBytes = parent.blockBytes()
	}
	if o.Creator == (Creator{}) && parent.footer.hasBatmap() && o.BlockBytes == DefaultBlockBytes && !overruns(parent.sizeBytes) {
		o.Creator = CreatorXenServer
	}
	n := newImage(parent.sizeBytes, o.BlockBytes, o.Creator, o.UUID)
	n.footer.Type = TypeDifferencing
	n.header.ParentUUID = parent.footer.UUID
	n.header.ParentTimestamp = parent.footer.Timestamp
	if st, err := os.Stat(parent.path); err == nil {
		n.header.ParentTimestamp = stamp(st.ModTime())
	}
	err := n.check(true)
	if err == nil && (parent.footer.UUID == UUID{}) != parent.raw {
		err = invalid("parent %s has no UUID", parent.path)
	}
	if err == nil {
		n.header.setName(parent.path)
		n.locators, err = locatorsFor(path, parent.path, o.Absolute)
	}
	if err == nil {
		err = createFile(path, n.write)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// locatorText is a parent locator and what it says.
type locatorText struct {
	platform string
	text     []byte
}

// locatorsFor returns the three locators that blktap writes, which has
// relative paths in all of them (libvhd.c, vhd_initialize_header). It reads
// MacX without undoing escapes, so there are none.
func locatorsFor(child, parent string, absolute bool) ([]locatorText, error) {
	from, err := realDir(child)
	if err != nil {
		return nil, err
	}
	to, err := realDir(parent)
	if err != nil {
		return nil, err
	}
	abs := filepath.Join(to, filepath.Base(parent))
	rel, err := filepath.Rel(from, abs)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(rel, "../") {
		rel = "./" + rel
	}
	if !absolute {
		abs = rel
	}
	if !printable(abs) || !printable(rel) {
		return nil, invalid("path of parent %q is not text", parent)
	}
	windows := func(path string) []byte {
		return encodeUTF16(strings.ReplaceAll(path, "/", `\`), binary.LittleEndian)
	}
	texts := []locatorText{
		{platformMacX, []byte(fileURL + abs)},
		{platformW2ku, windows(abs)},
		{platformW2ru, windows(rel)},
	}
	for _, l := range texts {
		if len(l.text) > maxLocatorBytes {
			return nil, invalid("path of parent %q is longer than %d bytes", parent, maxLocatorBytes)
		}
	}
	return texts, nil
}

// realDir is the directory of a file, absolute and without symbolic links.
func realDir(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// writeLocators writes the locators' texts, and leaves room for as many before
// the BAT: a new parent's locators are written beside the old ones, as those
// count until the header is written.
func (n *blueprint) writeLocators(file File) error {
	at := int64(pageBytes)
	for i, l := range n.locators {
		space := roundUp(int64(len(l.text)), SectorBytes)
		n.header.Locators[i] = Locator{
			Platform: [4]byte([]byte(l.platform)), DataSpace: uint32(space),
			DataLength: uint32(len(l.text)), DataOffset: uint64(at),
		}
		if _, err := file.WriteAt(l.text, at); err != nil {
			return err
		}
		at += space
	}
	n.header.TableOffset = uint64(roundUp(pageBytes+2*(at-pageBytes), pageBytes))
	return nil
}
