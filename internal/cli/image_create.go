package cli

import (
	"fmt"

	"xen-disk/vhd"
)

// layoutFlags say how a new VHD is laid out.
type layoutFlags struct {
	Type      string   `enum:"dynamic,fixed" default:"dynamic" placeholder:"TYPE" help:"dynamic (default): the file grows as it is written. fixed: it has its size at once, in holes where the file system can."`
	BlockSize byteSize `placeholder:"SIZE" help:"What a dynamic image grows by: a power of two, 2MiB if not given. Other sizes do not work with XenServer."`
	For       string   `enum:"any,xenserver" default:"any" placeholder:"WHOM" help:"any (default), or xenserver: say that blktap made it and keep its batmap, for XenServer and XCP-ng."`
}

// options are what vhd.Create takes.
func (f *layoutFlags) options(sizeBytes int64) vhd.CreateOptions {
	o := vhd.CreateOptions{SizeBytes: sizeBytes, BlockBytes: int64(f.BlockSize), Type: vhd.TypeDynamic}
	if f.Type == "fixed" {
		o.Type = vhd.TypeFixed
	}
	if f.For == "xenserver" {
		o.Creator = vhd.CreatorXenServer
	}
	return o
}

// imageCreateCmd makes an image with nothing in it.
type imageCreateCmd struct {
	File string   `arg:"" help:"File to make; it must not exist."`
	Size byteSize `required:"" placeholder:"SIZE" help:"Size of the disk, such as 10GiB, 512M or a number of bytes; units are powers of 1024."`
	layoutFlags
}

// Help is what 'xen-disk image create --help' says besides the flags.
func (c *imageCreateCmd) Help() string {
	return `Examples:
  xen-disk image create disk.vhd --size 10GiB
  xen-disk image create disk.vhd --size 10GiB --type fixed
  xen-disk image create disk.vhd --size 1TiB --for xenserver`
}

// Run makes the image.
func (c *imageCreateCmd) Run(env *environment, image *imageCmd) error {
	if suffixFormat(c.File) == formatRaw {
		return &userError{
			What: fmt.Sprintf("%s is named as a raw image, and this makes VHDs", c.File),
			Hint: fmt.Sprintf("name it .vhd; or: truncate -s %d %s", c.Size, c.File), Code: exitUsage,
		}
	}
	o := c.layoutFlags.options(int64(c.Size))
	if err := vhd.Create(c.File, o); err != nil {
		return explainImage("make", c.File, err)
	}
	return image.showMade(env, c.File, chainFlags{})
}

// showMade shows an image that was made just now.
func (c *imageCmd) showMade(env *environment, path string, chain chainFlags) error {
	info, err := vhd.Inspect(path, chain.vhd(true))
	if err != nil {
		return explainImage("read", path, err)
	}
	return c.show(env, &imageMade{imageInfo{Info: info}})
}

// imageMade is what info says of a new image; people are told less.
type imageMade struct{ imageInfo }

func (r *imageMade) text() string {
	text := fmt.Sprintf("Made %s: %s, %s", printable(r.Path), r.Type, sizeText(r.SizeBytes))
	if len(r.Parents) == 0 {
		return lines(text + ".")
	}
	parent := &r.Parents[0]
	text = lines(text + ", on " + printable(parent.Path) + ".")
	if parent.Raw {
		text += "What opens it needs --raw-parent: that a raw disk is no VHD cannot be checked.\n"
	}
	return text
}
