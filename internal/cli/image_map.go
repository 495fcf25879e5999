package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"xen-disk/vhd"
)

// imageMapCmd shows which image of a chain holds what.
type imageMapCmd struct {
	File string `arg:"" help:"The image; its parents are read too."`
	chainFlags
}

// Help is what 'xen-disk image map --help' says besides the flags.
func (c *imageMapCmd) Help() string {
	return `Each line is a run of bytes of the disk. Its kind is data; or zero, which is
a hole in an image that hides what is below; or hole, which no image has. Depth
0 is FILE, 1 its parent. The picture after them is the whole disk, each
character a part of it, from ' ' for nothing to '#' for all of it data.

Examples:
  xen-disk image map disk.vhd`
}

// Run prints while it looks: a disk can have more extents than memory.
func (c *imageMapCmd) Run(env *environment, image *imageCmd) (err error) {
	d, err := vhd.Open(c.File, c.chainFlags.vhd(true))
	if err != nil {
		return explainImage("read", c.File, err)
	}
	defer d.Close()
	out := bufio.NewWriter(env.stdout)
	m := newImageMap(out, image.JSON, d.SizeBytes(), d.Paths())
	for off := int64(0); off < d.SizeBytes(); {
		e, err := d.NextExtent(off)
		if err != nil {
			return explainImage("map", c.File, err)
		}
		m.add(mapExtent{Offset: e.Off, Length: e.Len, Kind: kindOf(e), Depth: e.Layer})
		off += e.Len
	}
	m.end()
	if err := out.Flush(); err != nil {
		return &userError{What: "cannot print the answer", Why: cause(err), Code: exitFailed}
	}
	return nil
}

const (
	kindData = "data" // some image has bytes for it
	kindZero = "zero" // an image has it, as a hole of its file
	kindHole = "hole" // no image has it
)

func kindOf(e vhd.Extent) string {
	switch {
	case e.Layer < 0:
		return kindHole
	case e.Zero:
		return kindZero
	}
	return kindData
}

// mapExtent is one line of a map.
type mapExtent struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"`
	Depth  int    `json:"depth"` // -1 for a hole
	File   string `json:"file"`  // empty for a hole
}

// mapCells is the width of the picture.
const mapCells = 64

// imageMap prints a map as its extents come.
type imageMap struct {
	out       io.Writer
	json      bool
	sizeBytes int64
	files     []string
	last      mapExtent
	lines     int
	dataBytes int64
	cells     [mapCells]float64 // bytes of data in each part of the disk
}

func newImageMap(out io.Writer, asJSON bool, sizeBytes int64, files []string) *imageMap {
	m := &imageMap{out: out, json: asJSON, sizeBytes: sizeBytes, files: files}
	if asJSON {
		fmt.Fprintf(out, "{\n  \"version\": 1,\n  \"virtual_size\": %d,\n  \"extents\": [", sizeBytes)
	} else {
		fmt.Fprintf(out, "%15s %15s  %s %s  %s\n", "offset", "length", "kind", "depth", "file")
	}
	return m
}

// add takes the next extent and joins it to the last one where they are alike.
func (m *imageMap) add(e mapExtent) {
	if e.Kind == kindData {
		m.dataBytes += e.Length
		m.shade(e)
	}
	if e.Offset != 0 && e.Kind == m.last.Kind && e.Depth == m.last.Depth {
		m.last.Length += e.Length
		return
	}
	m.print()
	m.last = e
}

// shade adds an extent to the picture.
func (m *imageMap) shade(e mapExtent) {
	cell := float64(m.sizeBytes) / mapCells
	for off, end := float64(e.Offset), float64(e.Offset+e.Length); off < end; {
		i := min(int(off/cell), mapCells-1)
		stop := min(end, float64(i+1)*cell)
		if stop <= off { // rounding
			return
		}
		m.cells[i] += stop - off
		off = stop
	}
}

// print prints the last extent, which is complete.
func (m *imageMap) print() {
	if m.last.Length == 0 {
		return
	}
	e := m.last
	if e.Depth >= 0 {
		e.File = m.files[e.Depth]
	}
	m.lines++
	if m.json {
		b, err := json.Marshal(e)
		if err != nil {
			panic(err) // numbers and strings
		}
		fmt.Fprintf(m.out, "%s\n    %s", [...]string{"", ","}[min(m.lines-1, 1)], b)
		return
	}
	depth := "-"
	if e.Depth >= 0 {
		depth = fmt.Sprint(e.Depth)
	}
	line := fmt.Sprintf("%15d %15d  %s %5s  %s", e.Offset, e.Length, e.Kind, depth, printable(e.File))
	fmt.Fprintln(m.out, strings.TrimRight(line, " "))
}

func (m *imageMap) end() {
	m.print()
	if m.json {
		fmt.Fprintf(m.out, "\n  ]\n}\n")
		return
	}
	fmt.Fprintf(m.out, "\n|%s|\n%s of %s are data.\n", m.picture(), sizeText(m.dataBytes), sizeText(m.sizeBytes))
}

// picture draws each part of the disk by how much of it is data.
func (m *imageMap) picture() string {
	const shades = " .:-=+*%#"
	var b strings.Builder
	for _, bytes := range m.cells {
		share := bytes * mapCells / float64(m.sizeBytes)
		i := int(share*float64(len(shades)-1) + 0.5)
		if bytes > 0 {
			i = max(i, 1) // what is there is seen
		}
		b.WriteByte(shades[min(i, len(shades)-1)])
	}
	return b.String()
}
