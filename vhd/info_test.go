package vhd

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const inspectJSON = `{
 "path": "CHILD",
 "found": "leaf",
 "type": "differencing",
 "raw": false,
 "virtual_size": 1048576,
 "block_size": 65536,
 "blocks": 16,
 "blocks_allocated": 1,
 "file_size": 69120,
 "disk_usage": 4096,
 "uuid": "c1c1c1c1-c1c1-c1c1-c1c1-c1c1c1c1c1c1",
 "parent_uuid": "d1d1d1d1-d1d1-d1d1-d1d1-d1d1d1d1d1d1",
 "creator": "win 0.0",
 "created": "2015-06-02T05:47:44Z",
 "geometry": {
  "cylinders": 30,
  "heads": 4,
  "sectors": 17
 },
 "hidden": true,
 "saved_state": true,
 "encrypted": false,
 "problems": [],
 "parents": [
  {
   "path": "PARENT",
   "found": "W2ru",
   "type": "dynamic",
   "raw": false,
   "virtual_size": 1048576,
   "block_size": 65536,
   "blocks": 16,
   "blocks_allocated": 3,
   "file_size": 200704,
   "disk_usage": 8192,
   "uuid": "d1d1d1d1-d1d1-d1d1-d1d1-d1d1d1d1d1d1",
   "creator": "qem2 5.3",
   "created": "2015-06-02T05:47:44Z",
   "geometry": {
    "cylinders": 0,
    "heads": 0,
    "sectors": 0
   },
   "hidden": false,
   "saved_state": false,
   "encrypted": false,
   "problems": []
  }
 ]
}`

// TestInspectJSON holds the names that programs read.
func TestInspectJSON(t *testing.T) {
	dir := t.TempDir()
	base := aDynamic()
	base.creator, base.version = "qem2", 0x00050003
	parent := save(t, dir, "p.vhd", base.bytes())
	h := aChild(0xC1, 0xD1, locW2ru(`.\p.vhd`))
	h.blocks = []int{7}
	child := save(t, dir, "c.vhd", withFooter(h, func(f []byte) {
		put32(f, 56, 30<<16|4<<8|17)
		f[84], f[85] = 1, 1
	}))
	info, err := Inspect(child, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if info.UsedBytes <= 0 || info.Parents[0].UsedBytes <= 0 {
		t.Errorf("got %d and %d bytes used", info.UsedBytes, info.Parents[0].UsedBytes)
	}
	info.UsedBytes, info.Parents[0].UsedBytes = 4096, 8192
	got, err := json.MarshalIndent(info, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("CHILD", child, "PARENT", parent).Replace(inspectJSON)
	if string(got) != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// TestInspectDamaged: what cannot be opened is told about all the same.
func TestInspectDamaged(t *testing.T) {
	h := aDynamic()
	cases := []struct {
		name  string
		image []byte
		codes []string
		look  func(i *Info) bool
	}{
		{"header", withHeader(h, func(b []byte) { b[0] = 0 }), []string{"header-cookie"},
			func(i *Info) bool { return i.Type == TypeDynamic && i.SizeBytes == 1<<20 && i.Blocks == 0 }},
		{"poisoned", withFooter(h, func(f []byte) { copy(f, "v_poison") }), []string{"poisoned"},
			func(i *Info) bool { return i.UUID[0] == 0xD1 }},
		{"type", withFooter(h, func(f []byte) { put32(f, 60, 6) }), []string{"disk-type"},
			func(i *Info) bool { return i.Type.String() == "type 6" }},
		{"fixed and short", withFooter(aFixed(), func(f []byte) { put64(f, 48, 1<<30) }), []string{"fixed-short"},
			func(i *Info) bool { return i.SizeBytes == 1<<30 && i.FileBytes == 1<<20+512 }},
		{"no parent", aChild(0xC1, 0xAA, locW2ru("p")).bytes(), []string{"parent"},
			func(i *Info) bool { return i.ParentUUID[0] == 0xAA && i.Parents == nil }},
		{"raw parent", aChild(0xC1, 0, locW2ru("p")).bytes(), []string{"raw-parent"},
			func(i *Info) bool { return *i.ParentUUID == UUID{} }},
		{"entry", withEntry(h, 9, 0), []string{"bat-in-metadata"},
			func(i *Info) bool { return i.AllocatedBlocks == 3 && i.Blocks == 16 }},
		{"encrypted", edited(hasBatmap(), func(b []byte) { h := hasBatmap(); b[h.batmapAt()+29] = 1 }), nil,
			func(i *Info) bool { return i.Encrypted && i.AllocatedBlocks == 2 && i.Creator.String() == "tap 1.3" }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			i, err := Inspect(save(t, t.TempDir(), "x.vhd", c.image), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := codesOf(i.Problems); !slices.Equal(got, c.codes) || !c.look(i) {
				t.Errorf("got %+v", i)
			}
		})
	}
}

func TestInspectRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Inspect(save(t, dir, "raw", make([]byte, 4096)), Options{}); !errors.Is(err, ErrNotVHD) {
		t.Errorf("raw: got %v, want ErrNotVHD", err)
	}
	if _, err := Inspect(filepath.Join(dir, "none"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want fs.ErrNotExist", err)
	}
}

// TestInspectFixtures: no lie makes it hang, and it leaves nothing open.
func TestInspectFixtures(t *testing.T) {
	for _, f := range fixtures() {
		t.Run(f.name, func(t *testing.T) {
			path := f.save(t, t.TempDir())
			o, open := f.with, 0
			o.OpenFile = func(path string, write bool) (File, error) {
				file, err := f.with.open(path, write)
				if err != nil || write {
					return nil, errors.Join(err, os.ErrInvalid)
				}
				open++
				return closeCounter{file, &open}, nil
			}
			within(t, func() {
				i, err := Inspect(path, o)
				if (i == nil) != (err != nil) || open != 0 {
					t.Errorf("got %v, %v, %d files open", i, err, open)
				}
			})
		})
	}
}
