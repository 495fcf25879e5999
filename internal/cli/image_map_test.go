package cli

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestMap: extents that are alike are one line, and the picture shows where
// data are, be it ever so little.
func TestMap(t *testing.T) {
	dir := here(t)
	r := newImageRig(t)
	r.run(t, exitOK, "create disk.vhd --size 1GiB")
	r.run(t, exitOK, "map disk.vhd")
	for _, w := range []struct{ off, n int64 }{{0, 4096}, {256 << 20, 4 << 20}, {260 << 20, 28 << 20}, {1<<30 - 8192, 8192}} {
		fill(t, "disk.vhd", w.off, strings.Repeat("x", int(w.n)))
	}
	r.run(t, exitOK, "map disk.vhd")
	r.run(t, exitOK, "map disk.vhd --json")
	var got struct {
		Version int
		Extents []mapExtent
	}
	if err := json.Unmarshal(r.out.Bytes(), &got); err != nil || got.Version != 1 || len(got.Extents) != 7 {
		t.Errorf("%v: %+v", err, got)
	}
	golden(t, dir, "map.golden", r.session.String())
}
