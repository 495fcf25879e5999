package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"xen-disk/disk"
	"xen-disk/vhd"
)

// imageConvertCmd copies a disk into a new image of another format or layout.
type imageConvertCmd struct {
	Src  string      `arg:"" help:"Image to read; a VHD is read with its parents."`
	Dst  string      `arg:"" help:"Image to make; it must not exist."`
	From imageFormat `placeholder:"FORMAT" help:"raw or vhd: format of SRC. Default: what its name ends in, .raw, .img or .vhd."`
	To   imageFormat `placeholder:"FORMAT" help:"raw or vhd: format of DST. Default: what its name ends in."`
	layoutFlags
	chainFlags
	Force bool `help:"Write to DST although it is there, if it is a block device."`
}

// Help is what 'xen-disk image convert --help' says besides the flags.
func (c *imageConvertCmd) Help() string {
	return `Zeros of SRC become holes of DST, and a chain becomes one image. When it
fails or is stopped by Ctrl-C, DST is removed; SRC is never written.

Examples:
  xen-disk image convert disk.raw disk.vhd
  xen-disk image convert leaf.vhd disk.raw
  xen-disk image convert disk.vhd /dev/vg0/data --to raw --force`
}

// Run converts.
func (c *imageConvertCmd) Run(env *environment, image *imageCmd) error {
	from, err := c.From.settle(c.Src, "--from")
	if err != nil {
		return err
	}
	to, err := c.To.settle(c.Dst, "--to")
	if err != nil {
		return err
	}
	src, err := c.chainFlags.open(c.Src, from)
	if err != nil {
		return explainImage("read", c.Src, err)
	}
	defer src.Close()
	info := src.Info()
	if info.TailBytes != 0 {
		return &userError{
			What: fmt.Sprintf("the size of %s is no multiple of 512 bytes", c.Src),
			Why:  fmt.Sprintf("a disk has whole sectors; the last %d bytes would be lost", info.TailBytes),
			Hint: "add zeros: truncate -s %512 " + c.Src, Code: exitFailed,
		}
	}
	var stats disk.CopyStats
	made := false
	err = env.work("Converting", inBytes, func(ctx context.Context, show progress) (err error) {
		var dst disk.Disk
		if dst, made, err = c.make(to, info.SizeBytes); err != nil {
			return err
		}
		stats, err = disk.Copy(ctx, dst, src, disk.CopyOptions{DstZero: made, Progress: show})
		return errors.Join(err, dst.Close())
	})
	if err != nil {
		return c.explain(made, err)
	}
	return image.show(env, &imageConverted{
		Source: c.Src, SourceFormat: from, Destination: c.Dst, DestinationFormat: to,
		SizeBytes: info.SizeBytes, DataBytes: stats.DataBytes, ZeroBytes: stats.ZeroBytes,
	})
}

// make makes and opens the destination. It is not made when there is an error,
// which is explained, and when it was there.
func (c *imageConvertCmd) make(to imageFormat, sizeBytes int64) (dst disk.Disk, made bool, err error) {
	if isBlockDevice(c.Dst) {
		dst, err = c.device(to, sizeBytes)
		return dst, false, err
	}
	if to == formatRaw {
		dst, err = disk.Create(c.Dst, sizeBytes)
	} else if err = vhd.Create(c.Dst, c.layoutFlags.options(sizeBytes)); err == nil {
		if dst, err = disk.Open(c.Dst, disk.VHD, disk.Options{}); err != nil {
			err = errors.Join(err, os.Remove(c.Dst))
		}
	}
	if err != nil {
		return nil, false, explainImage("make", c.Dst, err)
	}
	return dst, true, nil
}

// device opens a block device as the destination.
func (c *imageConvertCmd) device(to imageFormat, sizeBytes int64) (disk.Disk, error) {
	if !c.Force || to != formatRaw {
		return nil, &userError{
			What: c.Dst + " is a block device", Why: "what is on it would be lost; and it takes a raw image only",
			Hint: "if that is meant: --to raw --force", Code: exitUsage,
		}
	}
	dst, err := disk.Open(c.Dst, disk.Raw, disk.Options{})
	if err != nil {
		return nil, explainImage("write", c.Dst, err)
	}
	if has := dst.Info().SizeBytes; has < sizeBytes {
		return nil, errors.Join(&userError{
			What: fmt.Sprintf("%s is too small", c.Dst), Code: exitFailed,
			Why: fmt.Sprintf("it has %s, the disk %s", sizeText(has), sizeText(sizeBytes)),
		}, dst.Close())
	}
	return dst, nil
}

func isBlockDevice(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

// explain cleans up after a conversion that failed, and says what is left.
func (c *imageConvertCmd) explain(made bool, err error) error {
	var explained *userError
	if errors.As(err, &explained) {
		return err
	}
	verb, left := "write", c.Dst+" holds a part of the copy"
	if made {
		verb, left = "make", c.Dst+" was removed again"
		if failed := os.Remove(c.Dst); failed != nil {
			left = c.Dst + " is not whole and could not be removed"
			err = errors.Join(err, failed)
		}
	}
	return explainWork(verb, c.Dst, left, err)
}

// imageConverted says what was copied.
type imageConverted struct {
	Version           version1    `json:"version"`
	Source            string      `json:"source"`
	SourceFormat      imageFormat `json:"source_format"`
	Destination       string      `json:"destination"`
	DestinationFormat imageFormat `json:"destination_format"`
	SizeBytes         int64       `json:"virtual_size"`
	DataBytes         int64       `json:"data_bytes"`
	ZeroBytes         int64       `json:"zero_bytes"`
}

func (r *imageConverted) text() string {
	return lines(fmt.Sprintf("Converted %s to %s: %s, of which %s are data.",
		printable(r.Source), printable(r.Destination), sizeText(r.SizeBytes), sizeText(r.DataBytes)))
}
