package cli

import (
	"fmt"

	"xen-disk/vhd"
)

// imageReparentCmd tells a child where its parent is.
type imageReparentCmd struct {
	Child    string `arg:"" help:"The differencing image."`
	Parent   string `arg:"" help:"Where its parent is now."`
	Force    bool   `help:"Take PARENT although its UUID is not the one that CHILD names."`
	Absolute bool   `help:"Write down the whole path of PARENT, so that CHILD can be moved without it."`

	ParentFormat imageFormat `placeholder:"FORMAT" help:"raw or vhd. Default: vhd, unless the name of PARENT ends in .raw or .img."`
	chainFlags
}

// Help is what 'xen-disk image reparent --help' says besides the flags.
func (c *imageReparentCmd) Help() string {
	return `For a parent that was moved or renamed; or, with --force, one that shows the
same, as after coalesce. A parent that shows anything else spoils the child.

Examples:
  xen-disk image reparent disk.vhd /images/base.vhd`
}

// Run writes the new place into the child.
func (c *imageReparentCmd) Run(env *environment, image *imageCmd) error {
	raw := c.ParentFormat.isRaw(c.Parent)
	err := vhd.Reparent(c.Child, c.Parent, vhd.ReparentOptions{
		Force: c.Force, Absolute: c.Absolute, RawParent: raw, Open: c.chainFlags.vhd(false),
	})
	if err != nil {
		return c.explain(err)
	}
	return image.show(env, &imageReparented{Path: c.Child, Parent: c.Parent})
}

// explain says what is wrong with the parent or the child.
func (c *imageReparentCmd) explain(err error) error {
	child, failed := vhd.Inspect(c.Child, c.chainFlags.vhd(true))
	if failed != nil || child.ParentUUID == nil {
		return explainImage("reparent", c.Child, err)
	}
	parent, failed := vhd.Inspect(c.Parent, c.chainFlags.vhd(true))
	if failed == nil && parent.UUID != *child.ParentUUID && !c.Force {
		return &userError{
			What: fmt.Sprintf("%s is not the parent that %s names", c.Parent, c.Child),
			Why:  fmt.Sprintf("its UUID is %s", parent.UUID), Hint: "if it shows the same: --force", Code: exitFailed,
		}
	}
	return explainImage("reparent", c.Child, err)
}

// imageReparented says what an image stands on now.
type imageReparented struct {
	Version version1 `json:"version"`
	Path    string   `json:"path"`
	Parent  string   `json:"parent"`
}

func (r *imageReparented) text() string {
	return lines(fmt.Sprintf("%s stands on %s now.", printable(r.Path), printable(r.Parent)))
}
