package cli

import (
	"context"
	"fmt"

	"xen-disk/disk"
)

// imageCompareCmd compares what guests would see of two images.
type imageCompareCmd struct {
	A       string      `arg:"" help:"One image; a VHD is read with its parents."`
	B       string      `arg:"" help:"The other."`
	AFormat imageFormat `name:"a-format" placeholder:"FORMAT" help:"raw or vhd: format of A. Default: what its name ends in, .raw, .img or .vhd."`
	BFormat imageFormat `name:"b-format" placeholder:"FORMAT" help:"raw or vhd: format of B."`
	chainFlags
}

// Help is what 'xen-disk image compare --help' says besides the flags.
func (c *imageCompareCmd) Help() string {
	return `It stops at the first difference; the exit code is 0 or 8. Where one disk is
longer, what it has more counts as different unless it is zeros.

Examples:
  xen-disk image compare disk.raw disk.vhd`
}

// Run compares.
func (c *imageCompareCmd) Run(env *environment, image *imageCmd) error {
	a, err := c.side(c.A, c.AFormat, "--a-format")
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := c.side(c.B, c.BFormat, "--b-format")
	if err != nil {
		return err
	}
	defer b.Close()
	var diff disk.Diff
	err = env.work("Comparing", inBytes, func(ctx context.Context, show progress) (err error) {
		diff, err = disk.Compare(ctx, a, b, disk.CompareOptions{FirstOnly: true, Progress: show})
		return err
	})
	if err != nil {
		return explainWork("compare", c.A, "nothing is known of "+c.A+" and "+c.B, err)
	}
	r := &imageCompared{A: c.A, B: c.B, ASizeBytes: diff.ASizeBytes, BSizeBytes: diff.BSizeBytes, Same: diff.SameContent()}
	if !r.Same {
		r.First = &diff.FirstByte
	}
	if err := image.show(env, r); err != nil || r.Same {
		return err
	}
	return exitCode(exitDiffer)
}

func (c *imageCompareCmd) side(path string, f imageFormat, flag string) (disk.Disk, error) {
	f, err := f.settle(path, flag)
	if err != nil {
		return nil, err
	}
	d, err := c.chainFlags.open(path, f)
	if err != nil {
		return nil, explainImage("read", path, err)
	}
	return d, nil
}

// imageCompared says whether two disks differ.
type imageCompared struct {
	Version    version1 `json:"version"`
	A          string   `json:"a"`
	B          string   `json:"b"`
	ASizeBytes int64    `json:"a_virtual_size"`
	BSizeBytes int64    `json:"b_virtual_size"`
	Same       bool     `json:"same"`
	First      *int64   `json:"first_difference"` // null when same
}

func (r *imageCompared) text() string {
	if !r.Same {
		return fmt.Sprintf("The disks differ, first at byte %d (sector %d).\n", *r.First, *r.First/512)
	}
	if r.ASizeBytes == r.BSizeBytes {
		return fmt.Sprintf("The disks are the same: %s.\n", sizeText(r.ASizeBytes))
	}
	longer, more := r.A, r.ASizeBytes-r.BSizeBytes
	if more < 0 {
		longer, more = r.B, -more
	}
	return lines(fmt.Sprintf("The disks are the same, but %s is longer by %s of zeros.",
		printable(longer), sizeText(more)))
}
