package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"

	"xen-disk/disk"
	"xen-disk/vhd"
)

// imageCmd makes, looks at and mends images; none of its commands needs Xen.
type imageCmd struct {
	Create   imageCreateCmd   `cmd:"" help:"Make an empty VHD."`
	Info     imageInfoCmd     `cmd:"" help:"Show what a VHD says of itself."`
	Map      imageMapCmd      `cmd:"" help:"Show where the data of a VHD are."`
	Check    imageCheckCmd    `cmd:"" help:"Look for what is wrong with a VHD."`
	Repair   imageRepairCmd   `cmd:"" help:"Mend what is wrong with a VHD."`
	Snapshot imageSnapshotCmd `cmd:"" help:"Make a child that keeps its parent as it is."`
	Coalesce imageCoalesceCmd `cmd:"" help:"Write what a child has into its parent."`
	Resize   imageResizeCmd   `cmd:"" help:"Change the size of the disk that a VHD holds."`
	Convert  imageConvertCmd  `cmd:"" help:"Copy a disk into a new raw image or VHD."`
	Compare  imageCompareCmd  `cmd:"" help:"Compare the disks that two images hold."`
	Reparent imageReparentCmd `cmd:"" help:"Tell a child where its parent is."`
	Compact  imageCompactCmd  `cmd:"" help:"Make the file of a VHD smaller."`

	JSON bool `name:"json" help:"Print one JSON object; docs/json.md describes it."`
}

// Help is what 'xen-disk image --help' says besides the commands.
func (c *imageCmd) Help() string {
	return `The images are VHD files: fixed, dynamic and differencing ones. Each command
locks what it opens, so none can spoil an image that a guest uses.

Examples:
  xen-disk image create disk.vhd --size 10GiB
  xen-disk image info disk.vhd
  xen-disk image convert disk.raw disk.vhd`
}

// chainFlags say where parents may be.
type chainFlags struct {
	SearchPath []string `sep:"none" placeholder:"DIR" help:"Also look for parents by name in DIR; may be repeated."`
	RawParent  bool     `help:"Accept a parent that is a raw disk, where the child asks for one."`
}

// vhd is the same for package vhd.
func (c *chainFlags) vhd(readOnly bool) vhd.Options {
	return vhd.Options{
		ReadOnly: readOnly, SearchPath: c.SearchPath, RawParent: c.RawParent, OpenFile: disk.OpenVHDFile,
	}
}

// open opens an image for reading.
func (c *chainFlags) open(path string, format imageFormat) (disk.Disk, error) {
	f := disk.Raw
	if format == formatVHD {
		f = disk.VHD
	}
	return disk.Open(path, f, disk.Options{ReadOnly: true, SearchPath: c.SearchPath, RawParent: c.RawParent})
}

// result is what a command found out or did. Its fields and their tags are
// the object that --json prints, which docs/json.md promises not to change.
type result interface {
	// text is the same for people.
	text() string
}

// version1 is the first field of every object. It changes when a program that
// reads the object must.
type version1 struct{}

// MarshalJSON makes the zero value right, so that no command can forget it.
func (version1) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

// show prints a result in the way that the flags ask for.
func (c *imageCmd) show(env *environment, r result) error {
	var text string
	if c.JSON {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r); err != nil {
			panic(err) // a result that is no data
		}
		text = b.String()
	} else {
		text = r.text()
	}
	// Who reads the answer must not take half of it for all.
	if _, err := io.WriteString(env.stdout, text); err != nil {
		return &userError{What: "cannot print the answer", Why: cause(err), Code: exitFailed}
	}
	return nil
}

// lines prints sentences, each beginning a line.
func lines(sentences ...string) string {
	var b strings.Builder
	for _, s := range sentences {
		b.WriteString(wrap(s, "  ") + "\n")
	}
	return b.String()
}
