package vhd

import (
	"errors"
	"fmt"
	"os"
)

// ReparentOptions say what Reparent accepts and writes.
type ReparentOptions struct {
	// Force accepts a parent that is another image than the child names, as
	// after a Coalesce: the data may be those of another disk.
	Force bool
	// Absolute writes the parent's whole path: the child can be moved without
	// its parent then, and not with it.
	Absolute bool
	// RawParent takes the parent for the bytes of a disk, whatever they are.
	RawParent bool
	// Open says how the child, and the parent and its own parents, are opened;
	// ReadOnly means nothing here.
	Open Options
}

// Reparent has a differencing image that nobody has open say that its parent
// is another file: by locators, name, UUID and time. The parent's own chain
// must be complete and must not have the child in it. If the parent has
// another UUID than the child names it fails, unless forced. After a crash the
// child is whole and says the old or the new.
func Reparent(child, newParent string, o ReparentOptions) error {
	if err := reparent(child, newParent, &o); err != nil {
		return fmt.Errorf("reparent %s to %s: %w", child, newParent, err)
	}
	return nil
}

func reparent(child, newParent string, o *ReparentOptions) error {
	e, err := openEditor(child, &o.Open)
	if err != nil {
		return err
	}
	return e.close(e.reparent(newParent, o))
}

func (e *editor) reparent(newParent string, o *ReparentOptions) (err error) {
	if e.footer.Type != TypeDifferencing {
		return fmt.Errorf("%w: a %s image has no parent", ErrUnsupported, e.footer.Type)
	}
	from := SnapshotOptions{RawParent: o.RawParent, Open: o.Open}
	from.Open.ReadOnly = true
	chain, err := openSnapshot(newParent, &from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeChain(chain)) }()
	if err := e.checkParent(chain, o); err != nil {
		return err
	}
	texts, err := locatorsFor(e.path, newParent, o.Absolute)
	if err != nil {
		return err
	}
	parent, h := chain[0], e.header
	h.ParentUUID = parent.footer.UUID
	h.ParentTimestamp = parent.footer.Timestamp
	if st, err := os.Stat(newParent); err == nil {
		h.ParentTimestamp = stamp(st.ModTime())
	}
	h.setName(newParent)
	if err := e.writeLocators(&h, texts); err != nil {
		return err
	}
	return e.switchHeader(h, e.footer)
}

// checkParent says why a chain cannot be what the image stands on.
func (e *editor) checkParent(chain []*image, o *ReparentOptions) error {
	parent := chain[0]
	for _, m := range chain {
		if m.file.Identity() == e.file.Identity() {
			return fmt.Errorf("%s %w", m.path, errCycle)
		}
		if m.footer.UUID == e.footer.UUID {
			return fmt.Errorf("%s %w: it has the UUID of the child", m.path, errCycle)
		}
	}
	if most := o.Open.depth(); len(chain) >= most {
		return fmt.Errorf("%w: %d images", ErrTooDeep, most)
	}
	if (parent.footer.UUID == UUID{}) != parent.raw {
		return invalid("%s has no UUID", parent.path)
	}
	if want := e.header.ParentUUID; parent.footer.UUID != want && !o.Force {
		return fmt.Errorf("%w: its UUID is %s, the child names %s", errOtherUUID, parent.footer.UUID, want)
	}
	return nil
}

// writeLocators writes locators where no header points yet.
func (e *editor) writeLocators(h *Header, texts []locatorText) error {
	h.Locators = [maxLocators]Locator{}
	var b []byte
	for i, l := range texts {
		space := roundUp(int64(len(l.text)), SectorBytes)
		h.Locators[i] = Locator{
			Platform: [4]byte([]byte(l.platform)), DataSpace: uint32(space),
			DataLength: uint32(len(l.text)), DataOffset: uint64(len(b)),
		}
		b = append(b, l.text...)
		b = append(b, make([]byte, space-int64(len(l.text)))...)
	}
	at, err := e.inFront(int64(len(b)))
	if err != nil {
		return err
	}
	for i := range texts {
		h.Locators[i].DataOffset += uint64(at)
	}
	_, err = e.file.WriteAt(b, at)
	return err
}
