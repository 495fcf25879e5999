package house

import (
	"slices"
	"strings"
	"testing"
)

// The libraries of other houses. A room that names one here may use it; so may
// its tests.
const (
	sys     = "golang.org/x/sys"
	zerolog = "github.com/rs/zerolog"

	// everything is what cli may import: every room below it, and the
	// libraries that talk to a person.
	everything = "*"
)

// rooms says what each room may import besides the standard library and the
// rooms inside it (docs/architecture.md). A room of our own is named without
// the module. Tests may import what their room may, and testRooms.
var rooms = map[string][]string{
	".":                {"internal/cli"},
	"internal/cli":     {everything},
	"internal/blkback": {"reactor", "xs", "grant", "ring", "disk", zerolog},
	"reactor":          {sys},
	"xs":               {sys},
	"grant":            {sys},
	"ring":             {},
	"vhd":              {},
	"disk":             {"vhd", sys},
	"nbd":              {"disk", sys},
	"internal/fakexen": {"grant", sys},
	"internal/lab":     {sys},
	"internal/bench":   {},
	"internal/house":   {},
}

// testRooms are what tests may import besides: the pretend machine, which
// stands in for Xen, and its own tests what is held against it. ring and vhd
// must be of use without this house, so their tests may not.
var testRooms = map[string][]string{
	"internal/cli":     {"internal/fakexen"},
	"internal/blkback": {"internal/fakexen"},
	"xs":               {"internal/fakexen"},
	"grant":            {"internal/fakexen"},
	"internal/fakexen": {"xs", "ring"},
}

// roomOf is the entry of rooms that a directory belongs to.
func roomOf(dir string) (room string, known bool) {
	for name := range rooms {
		if name != "." && under(dir, name) && len(name) > len(room) {
			room = name
		}
	}
	if room == "" {
		return dir, dir == "."
	}
	return room, true
}

// mayImport says whether a file of a room may import a path.
func mayImport(room, path string, test bool) bool {
	first, _, _ := strings.Cut(path, "/")
	if first != module && !strings.Contains(first, ".") {
		return true // the standard library, or "C", which TestNoCgo refuses
	}
	allowed := rooms[room]
	if test {
		allowed = slices.Concat(allowed, testRooms[room])
	}
	own, ours := strings.CutPrefix(path, module+"/")
	if ours && under(own, room) {
		return true
	}
	for _, a := range allowed {
		if a == everything || under(own, a) {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	for _, f := range tree(t) {
		room, known := roomOf(f.room)
		if !known {
			t.Errorf("%s: no room of docs/architecture.md", f.name)
			continue
		}
		for _, path := range f.imports() {
			if !mayImport(room, path, f.test) {
				t.Errorf("%s: %s must not import %s", f.name, room, path)
			}
		}
	}
}

// TestMayImport holds the rules against what they are there to refuse.
func TestMayImport(t *testing.T) {
	cases := []struct {
		room, path string
		test, want bool
	}{
		{"ring", "encoding/binary", false, true},
		{"ring", "xen-disk/ring", true, true},
		{"ring", "golang.org/x/sys/unix", false, false},
		{"ring", "golang.org/x/sys/unix", true, false},
		{"ring", "xen-disk/internal/fakexen", true, false},
		{"vhd", "xen-disk/disk", false, false},
		{"disk", "xen-disk/vhd", false, true},
		{"disk", "xen-disk/ring", false, false},
		{"nbd", "xen-disk/disk", false, true},
		{"nbd", "xen-disk/vhd", false, false},
		{"reactor", "xen-disk/xs", false, false},
		{"internal/fakexen", "xen-disk/grant", false, true},
		{"internal/fakexen", "xen-disk/ring", false, false},
		{"internal/fakexen", "xen-disk/xs", true, true},
		{"internal/blkback", "github.com/rs/zerolog", false, true},
		{"internal/blkback", "github.com/rs/zerolog/log", false, true},
		{"internal/blkback", "github.com/alecthomas/kong", false, false},
		{"internal/blkback", "xen-disk/internal/fakexen", false, false},
		{"internal/blkback", "xen-disk/internal/fakexen", true, true},
		{"internal/blkback", "xen-disk/internal/cli", false, false},
		{"xs", "github.com/rs/zerolog", false, false},
		{"internal/cli", "github.com/alecthomas/kong", false, true},
		{"internal/cli", "xen-disk/internal/fakexen", false, true},
		{"internal/cli", "github.com/dustin/go-humanize", false, true},
		{"internal/blkback", "github.com/dustin/go-humanize", false, false},
		{".", "xen-disk/internal/cli", false, true},
		{".", "xen-disk/internal/blkback", false, false},
		{".", "github.com/alecthomas/kong", false, false},
		{"grant", "golang.org/x/system", false, false},
	}
	for _, c := range cases {
		if got := mayImport(c.room, c.path, c.test); got != c.want {
			t.Errorf("%s imports %s (test %v): got %v, want %v", c.room, c.path, c.test, got, c.want)
		}
	}
}

// TestNoCgo: the program is one static binary.
func TestNoCgo(t *testing.T) {
	for _, f := range tree(t) {
		if slices.Contains(f.imports(), "C") {
			t.Errorf("%s: cgo", f.name)
		}
	}
}
