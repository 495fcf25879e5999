package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// reparentCase is a child and two parents with other data.
type reparentCase struct {
	name  string
	image func(r *rand.Rand) []byte // the child, of old.vhd
	to    string
}

const reparentBytes = 60 << 10

func reparentCases() []reparentCase {
	long := strings.Repeat("n", 400) + ".vhd"
	hand := func(entries uint32, locators ...handLocator) func(*rand.Rand) []byte {
		return func(*rand.Rand) []byte {
			h := aChild(0xC1, 1, locators...)
			h.size, h.block, h.entries, h.blocks, h.bitmap = reparentBytes, 4096, entries, []int{3, 0, 9}, 0x5A
			return h.bytes()
		}
	}
	cases := []reparentCase{
		{"no room", hand(0, locW2ru(`.\old.vhd`)), "new.vhd"},
		{"some room", hand(200, locW2ru(`.\old.vhd`), locMacX("file://./old.vhd")), "new.vhd"},
		{"long name", hand(0, locMacX("file://./old.vhd"), locW2ku(`.\old.vhd`), locW2ru(`.\old.vhd`)), long},
		{"eight locators", hand(0, slices.Repeat([]handLocator{locW2ru(`.\old.vhd`)}, 8)...), "new.vhd"},
	}
	for _, l := range layouts() {
		cases = append(cases, reparentCase{l.name, func(r *rand.Rand) []byte {
			f, _ := scattered(r, l, 4, reparentBytes, 2048)
			f.parent = UUID(bytes.Repeat([]byte{1}, 16))
			b := f.bytes()
			nameParent(b, "old.vhd")
			return b
		}, "new.vhd"})
	}
	return cases
}

func (c *reparentCase) files(r *rand.Rand) map[string][]byte {
	files := map[string][]byte{"child.vhd": c.image(r)}
	for i, name := range []string{"old.vhd", c.to} {
		f, _ := scattered(r, layouts()[0], 3, reparentBytes, 4096)
		f.uuid = UUID(bytes.Repeat([]byte{byte(i + 1)}, 16))
		files[name] = f.bytes()
	}
	return files
}

func (c *reparentCase) run(s *shelf) error {
	return Reparent("child.vhd", c.to, ReparentOptions{Force: true, Open: s.options()})
}

// disk is what the child shows, and the name of its parent.
func (c *reparentCase) disk(files map[string][]byte, m *specImage) (disk []byte, parent string, err error) {
	parent = "old.vhd"
	if m.parent[0] == 2 {
		parent = c.to
	}
	p, err := readLast(files[parent])
	if err != nil {
		return nil, "", err
	}
	for _, l := range m.locators {
		text := strings.ReplaceAll(l, "\x00", "")
		if !strings.HasSuffix(text, parent) {
			return nil, "", fmt.Errorf("child of %s has the locator %q", parent, text)
		}
	}
	return specDisk(m, p), parent, nil
}

// TestReparentSurvivesCrashes: whatever instant the process or the machine
// stops at, UUID, locators and header are the old ones or the new ones.
func TestReparentSurvivesCrashes(t *testing.T) {
	for _, c := range reparentCases() {
		t.Run(c.name, func(t *testing.T) {
			r := seeded(t)
			before := c.files(r)
			want := c.wants(t, before)
			ops, after := record(t, before, c.run)
			if err := c.checkEnd(after, want); err != nil {
				t.Fatal(err)
			}
			err := crashes(&luck{r, 64}, before, ops, 10, func(left leftover) error { return c.checkCrash(left, want) })
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// wants returns what the child shows over each of the parents.
func (c *reparentCase) wants(t *testing.T, files map[string][]byte) map[string][]byte {
	t.Helper()
	want := map[string][]byte{}
	for _, parent := range []string{"old.vhd", c.to} {
		m, err := readLast(files["child.vhd"])
		if err != nil {
			t.Fatal(err)
		}
		p, err := readLast(files[parent])
		if err != nil {
			t.Fatal(err)
		}
		want[parent] = specDisk(m, p)
	}
	return want
}

// checkEnd holds the child against what Reparent promises: blktap's order of
// header, BAT, locators and blocks among it.
func (c *reparentCase) checkEnd(files, want map[string][]byte) error {
	b := files["child.vhd"]
	if faults := audit(b); len(faults) > 0 {
		return fmt.Errorf("%q", faults)
	}
	m, err := readLast(b)
	if err != nil {
		return err
	}
	got, parent, err := c.disk(files, m)
	if err != nil {
		return err
	}
	if parent != c.to || len(m.locators) != 3 {
		return fmt.Errorf("parent is %s, with %d locators", parent, len(m.locators))
	}
	if m.metaEnd > m.firstBlock() {
		return fmt.Errorf("metadata end at %d, blocks begin at %d", m.metaEnd, m.firstBlock())
	}
	return checkDisk(got, want[c.to])
}

func (c *reparentCase) checkCrash(left leftover, want map[string][]byte) error {
	b := left.files["child.vhd"]
	m, err := readLast(b)
	if left.killed {
		m, err = readSpec(b, int64(len(b))-512)
	}
	if err != nil {
		return err
	}
	got, parent, err := c.disk(left.files, m)
	if err == nil {
		err = checkDisk(got, want[parent])
	}
	if err == nil && left.done && parent != c.to {
		err = errors.New("it is not durable")
	}
	if err != nil {
		return err
	}
	// Who believes the mirror finds the same, or nothing.
	if m, err := readSpec(b, 0); err == nil {
		if _, _, err := c.disk(left.files, m); err != nil {
			return fmt.Errorf("by the mirror: %w", err)
		}
	}
	s := newShelf(left.files)
	d, err := Open("child.vhd", s.options())
	if err != nil {
		return err
	}
	got, err = readAll(d)
	if err == nil {
		err = checkDisk(got, want[parent])
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	if err := c.run(s); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	if err := c.checkEnd(s.contents(), want); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	return nil
}

// TestReparentRefuses: a parent that cannot be leaves the child as it was.
func TestReparentRefuses(t *testing.T) {
	r := seeded(t)
	c := reparentCases()[0]
	files := c.files(r)
	grandchild := aChild(0xC2, 0xC1, locW2ru(`.\child.vhd`))
	grandchild.size = reparentBytes
	files["grandchild.vhd"] = grandchild.bytes()
	twin := aChild(0xC1, 1, locW2ru(`.\old.vhd`))
	files["twin.vhd"] = twin.bytes()
	files["raw"] = make([]byte, reparentBytes)
	for _, to := range []struct {
		name, child, parent string
		force               bool
		depth               int
		want                error
	}{
		{"another image", "child.vhd", "new.vhd", false, 2, errOtherUUID},
		{"itself", "child.vhd", "child.vhd", true, 9, errCycle},
		{"its own child", "child.vhd", "grandchild.vhd", true, 9, errCycle},
		{"its twin", "child.vhd", "twin.vhd", true, 9, errCycle},
		{"no VHD", "child.vhd", "raw", true, 9, ErrNotVHD},
		{"not a child", "old.vhd", "new.vhd", true, 9, ErrUnsupported},
		{"a chain that is too deep", "child.vhd", "new.vhd", true, 1, ErrTooDeep},
	} {
		t.Run(to.name, func(t *testing.T) {
			s := newShelf(files)
			o := s.options()
			o.MaxDepth = to.depth
			err := Reparent(to.child, to.parent, ReparentOptions{Force: to.force, Open: o})
			if !errors.Is(err, to.want) {
				t.Errorf("got %v, want %v", err, to.want)
			}
			for name, b := range s.contents() {
				if !bytes.Equal(b, files[name]) {
					t.Errorf("%s has changed", name)
				}
			}
		})
	}
}

// TestHeaderComesHome: a header that lies elsewhere, as a crash can leave it,
// goes where programs expect it, unless something else is there.
func TestHeaderComesHome(t *testing.T) {
	r := seeded(t)
	slack := layouts()[4]
	for _, c := range []struct {
		name  string
		table int64 // where the BAT is put
		want  uint64
	}{
		{"free", 8192, 512},
		{"taken", 1024, 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := reparentCases()[0].files(r)
			f, _ := scattered(r, slack, 4, reparentBytes, 4096)
			f.uuid, f.parent = UUID{3}, UUID(bytes.Repeat([]byte{1}, 16))
			b := f.bytes()
			nameParent(b, "old.vhd")
			be := binary.BigEndian
			copy(b[4096:], b[512:1536])
			clear(b[512:1536])
			copy(b[c.table:], b[8192:8192+512])
			be.PutUint64(b[4096+16:], uint64(c.table))
			resum(b[4096:4096+1024], 36)
			for _, footer := range [][]byte{b[:512], b[len(b)-512:]} {
				be.PutUint64(footer[16:], 4096)
				resum(footer, 64)
			}
			files["child.vhd"] = b
			m, err := readLast(b)
			if err != nil {
				t.Fatal(err)
			}
			p, err := readLast(files["new.vhd"])
			if err != nil {
				t.Fatal(err)
			}
			want := specDisk(m, p)
			for range 3 {
				s := newShelf(files)
				if err := Reparent("child.vhd", "new.vhd", ReparentOptions{Force: true, Open: s.options()}); err != nil {
					t.Fatal(err)
				}
				files = s.contents()
				b := files["child.vhd"]
				if m, err = readLast(b); err != nil {
					t.Fatal(err)
				}
				if err := checkDisk(specDisk(m, p), want); err != nil {
					t.Error(err)
				}
				at := be.Uint64(b[len(b)-512+16:])
				if home := at == 512; home != (c.want == 512) {
					t.Errorf("header is at %d", at)
				}
				if !bytes.Equal(b[:512], b[len(b)-512:]) {
					t.Error("the footers differ")
				}
			}
		})
	}
}

// TestReparentToRaw: a parent that is no VHD has the UUID of zeros.
func TestReparentToRaw(t *testing.T) {
	r := seeded(t)
	c := reparentCases()[0]
	files := c.files(r)
	files["raw"] = noise(r, reparentBytes/512)
	s := newShelf(files)
	o := s.options()
	o.RawParent = true
	if err := Reparent("child.vhd", "raw", ReparentOptions{Force: true, RawParent: true, Open: o}); err != nil {
		t.Fatal(err)
	}
	d, err := Open("child.vhd", o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := readAll(d)
	if err != nil {
		t.Fatal(err)
	}
	child, err := readLast(files["child.vhd"])
	if err != nil {
		t.Fatal(err)
	}
	raw := &specImage{b: files["raw"], size: reparentBytes, kind: 2}
	if err := checkDisk(got, specDisk(child, raw)); err != nil {
		t.Error(err)
	}
}
