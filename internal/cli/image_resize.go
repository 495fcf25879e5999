package cli

import (
	"context"
	"fmt"

	"xen-disk/vhd"
)

// imageResizeCmd changes the size of the disk that an image holds.
type imageResizeCmd struct {
	File   string   `arg:"" help:"The image."`
	Size   byteSize `arg:"" help:"New size of the disk, such as 20GiB."`
	Shrink bool     `help:"Let the disk become smaller, if what is cut off is zeros."`
	Force  bool     `help:"With --shrink: cut off data too."`
	chainFlags
}

// Help is what 'xen-disk image resize --help' says besides the flags.
func (c *imageResizeCmd) Help() string {
	return `What is added reads as zeros. Partitions and file systems keep their size.

Examples:
  xen-disk image resize disk.vhd 20GiB
  xen-disk image resize disk.vhd 5GiB --shrink`
}

// Run resizes.
func (c *imageResizeCmd) Run(env *environment, image *imageCmd) error {
	info, err := vhd.Inspect(c.File, c.chainFlags.vhd(true))
	if err != nil {
		return explainImage("read", c.File, err)
	}
	if int64(c.Size) < info.SizeBytes && !c.Shrink {
		return &userError{
			What: fmt.Sprintf("%s would become smaller", c.File), Code: exitUsage,
			Why: fmt.Sprintf("it has %s now", sizeText(info.SizeBytes)), Hint: "if that is meant: --shrink",
		}
	}
	err = env.work("Resizing", inBytes, func(ctx context.Context, _ progress) error {
		return vhd.Resize(ctx, c.File, int64(c.Size), vhd.ResizeOptions{Open: c.chainFlags.vhd(false), Force: c.Force})
	})
	if err != nil {
		return explainWork("resize", c.File, c.File+" is whole, and has the old size or the new one", err)
	}
	return image.show(env, &imageResized{Path: c.File, OldBytes: info.SizeBytes, SizeBytes: int64(c.Size)})
}

// imageResized says what size a disk had and has.
type imageResized struct {
	Version   version1 `json:"version"`
	Path      string   `json:"path"`
	OldBytes  int64    `json:"old_virtual_size"`
	SizeBytes int64    `json:"virtual_size"`
}

func (r *imageResized) text() string {
	return lines(fmt.Sprintf("Resized %s from %s to %s.", printable(r.Path), sizeText(r.OldBytes), sizeText(r.SizeBytes)))
}
