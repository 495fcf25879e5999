package cli

import (
	"errors"
	"io/fs"

	"xen-disk/vhd"
)

// imageSnapshotCmd makes a child, which keeps the parent as it is.
type imageSnapshotCmd struct {
	Parent    string   `arg:"" help:"The image to stand on: it must not be written any more."`
	Child     string   `arg:"" help:"The image to make; it must not exist."`
	BlockSize byteSize `placeholder:"SIZE" help:"A power of two; what the parent has if not given."`
	Absolute  bool     `help:"Write down the whole path of PARENT, so that CHILD can be moved without it."`

	ParentFormat imageFormat `placeholder:"FORMAT" help:"raw or vhd. Default: vhd, unless the name of PARENT ends in .raw or .img."`
	chainFlags
}

// Help is what 'xen-disk image snapshot --help' says besides the flags.
func (c *imageSnapshotCmd) Help() string {
	return `The child reads as the parent until it is written. It names its parent by the
path from its own directory, so both can be moved together.

Examples:
  xen-disk image snapshot base.vhd disk.vhd`
}

// Run makes the child.
func (c *imageSnapshotCmd) Run(env *environment, image *imageCmd) error {
	raw := c.ParentFormat.isRaw(c.Parent)
	err := vhd.Snapshot(c.Parent, c.Child, vhd.SnapshotOptions{
		BlockBytes: int64(c.BlockSize), Absolute: c.Absolute, RawParent: raw, Open: c.chainFlags.vhd(true),
	})
	if err != nil {
		return explainSnapshot(c, err)
	}
	c.RawParent = c.RawParent || raw
	return image.showMade(env, c.Child, c.chainFlags)
}

// explainSnapshot tells trouble with the parent from trouble with the child.
func explainSnapshot(c *imageSnapshotCmd, err error) error {
	var file *fs.PathError
	if errors.As(err, &file) && file.Path == c.Parent {
		return explainImage("read", c.Parent, err)
	}
	return explainImage("make", c.Child, err)
}
