package cli

import (
	"fmt"

	"xen-disk/disk"
	"xen-disk/internal/blkback"
)

// connectCmd attaches one disk and serves it in the foreground.
type connectCmd struct {
	VM string `arg:"" help:"Domain id, UUID or name of the virtual machine."`
	// Path tells --path "" (a shell variable that is not set) from none: who
	// meant to attach an image must not get a disk that keeps nothing.
	Path     *string `help:"Image file or block device. Without it: 1 GiB that acknowledges everything and keeps nothing." placeholder:"FILE"`
	Format   string  `help:"How the image is laid out and reached. Default: mmap, or discard without --path." placeholder:"FORMAT"`
	Vdev     string  `help:"Device in the guest, such as xvdb. Default: the next free one." placeholder:"VDEV"`
	ReadOnly bool    `help:"Refuse the guest's writes; others may read the image too."`

	RawParent  bool     `help:"vhd: accept a parent that is a raw disk, where the child asks for one."`
	SearchPath []string `help:"vhd: also look for parents by name in DIR; may be repeated." placeholder:"DIR" sep:"none"`
	MapParents bool     `help:"vhd: read the files that nobody writes through mmap."`
}

// Help is what 'xen-disk connect --help' says besides the flags.
func (c *connectCmd) Help() string {
	return `It stays until Ctrl-C (or SIGTERM, SIGHUP), which asks the guest to let go
of the disk; a second Ctrl-C takes the disk away.

Examples:
  xen-disk connect debian
  xen-disk connect debian --path disk.raw
  xen-disk connect 7 --path /dev/vg0/data --format raw --vdev xvdc
  xen-disk connect debian --path disk.vhd --format vhd

Formats:
  mmap     the bytes of the image, mapped into memory. The default: no copy
           in between, and fast when the image fits dom0's memory. Where the
           device is slow, or space runs out under a sparse image, a page
           fault waits or fails, and other requests can wait with it.
  raw      the same bytes by pread and pwrite. Choose it for images larger
           than memory, sparse ones, network mounts and disks that may fail:
           an error meets the request that causes it. Flush is fdatasync.
  vhd      Microsoft's and XenServer's virtual hard disks: fixed, dynamic, and
           differencing with their parents. Discards free space of the file.
  discard  no image: acknowledges everything, does nothing. For measuring
           the protocol itself.`
}

// Run serves the disk until it is detached.
func (c *connectCmd) Run(env *environment) error {
	path, format, err := c.image()
	if err != nil {
		return err
	}
	spec := blkback.Spec{}
	if c.Vdev != "" {
		if spec.Devid, err = blkback.ParseVdev(c.Vdev); err != nil {
			return &userError{
				What: fmt.Sprintf("bad --vdev: %s is no virtual device", c.Vdev),
				Hint: "names are like xvdb, sda, hdc or xvda1", Code: exitUsage,
			}
		}
	}
	conn, err := env.dial()
	if err != nil {
		return explainStore(env, err)
	}
	defer conn.Close()
	if err := probe(env); err != nil {
		return err
	}
	env.ready()
	s, err := startSession(env, conn)
	if err != nil {
		return err
	}
	defer s.stop()
	dom, err := blkback.FindDomain(conn, c.VM)
	if err != nil {
		return explainDomain(c.VM, err)
	}
	spec.Domid = dom.ID
	options := disk.Options{
		ReadOnly: c.ReadOnly, RawParent: c.RawParent, SearchPath: c.SearchPath, MapParents: c.MapParents,
	}
	if spec.Disk, err = disk.Open(path, format, options); err != nil {
		return explainOpen(path, format, err)
	}
	return s.serve(spec, dom)
}

// image settles what --path and --format leave open.
func (c *connectCmd) image() (path string, f disk.Format, err error) {
	wrong := func(what string) error {
		return &userError{What: what, Hint: "run 'xen-disk connect --help'", Code: exitUsage}
	}
	if c.Path != nil {
		f, path = disk.Mmap, *c.Path
		if path == "" {
			return "", f, wrong("--path is empty")
		}
	} else {
		f = disk.Discard
	}
	if c.Format == "" {
		return path, f, nil
	}
	f, err = disk.ParseFormat(c.Format)
	switch {
	case err != nil:
		return "", f, wrong(fmt.Sprintf("bad --format: %s is none of mmap, raw, vhd and discard", c.Format))
	case f == disk.Discard && path != "":
		return "", f, wrong("the format discard keeps nothing and takes no --path")
	case f != disk.Discard && path == "":
		return "", f, wrong(fmt.Sprintf("the format %s needs a --path", f))
	}
	return path, f, nil
}

// probe opens and closes the door to the hypervisor, so that what is missing
// is said before anything is written to xenstore.
func probe(env *environment) error {
	door, err := env.openXen()
	if err != nil {
		return explainDoor(env, err)
	}
	return door.Close()
}
