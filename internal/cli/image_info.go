package cli

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"

	"xen-disk/vhd"
)

// imageInfoCmd shows what an image says of itself.
type imageInfoCmd struct {
	File  string `arg:"" help:"The image."`
	Chain bool   `help:"Show all that the image stands on."`
	chainFlags
}

// Help is what 'xen-disk image info --help' says besides the flags.
func (c *imageInfoCmd) Help() string {
	return `It reads no data, and says of a damaged image what there is to say.

Examples:
  xen-disk image info disk.vhd
  xen-disk image info disk.vhd --chain`
}

// Run shows.
func (c *imageInfoCmd) Run(env *environment, image *imageCmd) error {
	info, err := vhd.Inspect(c.File, c.chainFlags.vhd(true))
	if err != nil {
		return explainImage("read", c.File, err)
	}
	return image.show(env, &imageInfo{Info: info, chain: c.Chain})
}

// imageInfo is all that is known of an image without its data.
type imageInfo struct {
	Version version1 `json:"version"`
	*vhd.Info
	chain bool
}

func (r *imageInfo) text() string {
	var out strings.Builder
	row := func(label, text string) {
		indent := strings.Repeat(" ", labelWidth)
		out.WriteString(wrap(fmt.Sprintf("%-*s%s", labelWidth, label, printable(text)), indent) + "\n")
	}
	row("Image:", r.Path)
	kind := r.Type.String()
	if r.BlockBytes != 0 {
		kind += ", in blocks of " + sizeText(r.BlockBytes)
	}
	row("Type:", kind)
	row("Disk size:", sizeText(r.SizeBytes))
	file := sizeText(r.FileBytes)
	if r.UsedBytes >= 0 {
		file += fmt.Sprintf("; it takes %s on its file system", humanize.IBytes(uint64(r.UsedBytes)))
	}
	row("File:", file)
	if r.BlockBytes != 0 {
		row("Blocks:", fmt.Sprintf("%d of %d allocated", r.AllocatedBlocks, r.Blocks))
	}
	row("UUID:", r.UUID.String())
	if len(r.Parents) > 0 {
		row("Parent:", fmt.Sprintf("%s (found by %s)", r.Parents[0].Path, r.Parents[0].Found))
	} else if r.ParentUUID != nil {
		row("Parent:", r.ParentUUID.String()+", not found")
	}
	row("Made:", fmt.Sprintf("%s by %s", r.Created.UTC().Format("2006-01-02 15:04:05 UTC"), r.Creator))
	row("Geometry:", fmt.Sprintf("%d cylinders, %d heads, %d sectors", r.Geometry.Cylinders, r.Geometry.Heads, r.Geometry.Sectors))
	if marks := r.marks(); marks != "" {
		row("Marks:", marks)
	}
	for _, p := range r.Problems {
		row("Problem:", problemText(p, r.Path))
	}
	if r.chain {
		r.writeChain(&out)
	}
	return out.String()
}

// labelWidth is that of the first column.
const labelWidth = len("Disk size:") + 2

// marks are what is set rarely.
func (r *imageInfo) marks() string {
	var marks []string
	for _, m := range []struct {
		set  bool
		name string
	}{{r.Hidden, "hidden"}, {r.SavedState, "saved state"}, {r.Encrypted, "encrypted"}} {
		if m.set {
			marks = append(marks, m.name)
		}
	}
	return strings.Join(marks, ", ")
}

// writeChain adds a table of the image and all that it stands on.
func (r *imageInfo) writeChain(out *strings.Builder) {
	fmt.Fprintf(out, "\n%5s  %-12s %10s %10s  %s\n", "depth", "type", "disk size", "file", "path")
	for depth, i := range append([]vhd.Info{*r.Info}, r.Parents...) {
		kind := i.Type.String()
		if i.Raw {
			kind = "raw"
		}
		fmt.Fprintf(out, "%5d  %-12s %10s %10s  %s\n", depth, kind,
			humanize.IBytes(uint64(i.SizeBytes)), humanize.IBytes(uint64(i.FileBytes)), printable(i.Path))
	}
}

// problemText is a problem in one line. Of the image that the command was
// asked about the path is not repeated.
func problemText(p vhd.Problem, path string) string {
	where := ""
	if p.Offset >= 0 {
		where = fmt.Sprintf(", at byte %d", p.Offset)
	}
	if p.Path != path && p.Path != "" {
		where += " of " + p.Path
	}
	return fmt.Sprintf("%s: %s%s (%s)", p.Severity, oneLine(p.Text), where, p.Code)
}
