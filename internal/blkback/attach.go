package blkback

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"

	"xen-disk/xs"
)

// kind is the class of our backend directory. The kernel's blkback claims
// "vbd", tapback "vbd3", QEMU "qdisk"; no driver claims this one.
const kind = "xen-disk"

// ErrVdevTaken reports a virtual device that the domain has already.
var ErrVdevTaken = errors.New("virtual device is in use")

// writeNodes does what a toolstack does when it attaches a disk: in one
// transaction it makes both directories with libxl's nodes and permissions
// (libxl_device.c, libxl__device_generic_add). A devid of zero asks for the
// next free xvd. It returns the devid taken.
func writeNodes(conn *xs.Conn, own uint32, spec *Spec) (devid uint32, err error) {
	// A domain may have gone since it was looked for; nodes written for it
	// would stay. The transaction fails if it goes meanwhile.
	alive, err := isAlive(conn, spec.Domid)
	if err != nil {
		return 0, err
	}
	if !alive {
		return 0, ErrNoDomain
	}
	err = conn.Transaction(func(tx *xs.Tx) error {
		_, err := tx.Read(fmt.Sprintf("/local/domain/%d", spec.Domid))
		if errors.Is(err, fs.ErrNotExist) {
			return ErrNoDomain
		}
		if err != nil {
			return err
		}
		used, err := usedDevids(tx, spec.Domid)
		if err != nil {
			return err
		}
		devid = spec.Devid
		if devid == 0 {
			if devid, err = nextXVD(used); err != nil {
				return err
			}
		}
		for _, d := range used {
			if d == devid {
				return ErrVdevTaken
			}
		}
		p := pathsOf(own, kind, spec.Domid, devid)
		// What the guest said of an earlier device of that number.
		if err := tx.Rm(p.frontErr); err != nil {
			return err
		}
		guest := xs.Perm{Domid: spec.Domid}
		self := xs.Perm{Domid: own}
		readable := func(p xs.Perm) xs.Perm { p.Access = xs.AccessRead; return p }
		if err := writeDir(tx, p.back, backNodes(p.front, spec, devid), self, readable(guest)); err != nil {
			return err
		}
		return writeDir(tx, p.front, frontendNodes(p.back, own, spec, devid), guest, readable(self))
	})
	if err != nil {
		return 0, err
	}
	return devid, nil
}

type node struct{ name, value string }

func backNodes(front string, spec *Spec, devid uint32) []node {
	info := spec.Disk.Info()
	mode := "w"
	if info.ReadOnly {
		mode = "r"
	}
	return []node{
		{"frontend", front},
		{"frontend-id", utoa(spec.Domid)},
		{"params", info.Format.String() + ":" + info.Path},
		{"type", kind},
		{"dev", VdevName(devid)},
		{"mode", mode},
		{"device-type", "disk"},
		{"removable", "1"},
		{"bootable", "1"},
		{"specification", "xen"},
		{"online", "1"},
		{"state", xs.StateInitialising.Value()},
	}
}

func frontendNodes(back string, own uint32, spec *Spec, devid uint32) []node {
	return []node{
		{"backend", back},
		{"backend-id", utoa(own)},
		{"virtual-device", utoa(devid)},
		{"device-type", "disk"},
		{"trusted", "1"},
		{"state", xs.StateInitialising.Value()},
	}
}

// writeDir makes a directory with its permissions first, so that the nodes
// made in it inherit them.
func writeDir(tx *xs.Tx, dir string, nodes []node, perms ...xs.Perm) error {
	if err := tx.Mkdir(dir); err != nil {
		return err
	}
	if err := tx.SetPerms(dir, perms...); err != nil {
		return err
	}
	return writeAll(tx, dir, nodes)
}

func writeAll(tx *xs.Tx, dir string, nodes []node) error {
	for _, n := range nodes {
		if err := tx.Write(dir+"/"+n.name, n.value); err != nil {
			return err
		}
	}
	return nil
}

// usedDevids lists the devices that the domain has, in the guest's eyes and
// in libxl's.
func usedDevids(tx *xs.Tx, domid uint32) ([]uint32, error) {
	var used []uint32
	for _, dir := range []string{
		fmt.Sprintf("/local/domain/%d/device/vbd", domid),
		fmt.Sprintf("/libxl/%d/device/vbd", domid),
	} {
		names, err := tx.Directory(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, name := range names {
			// The guest can write what it likes into its own directory.
			if devid, err := strconv.ParseUint(name, 10, 32); err == nil {
				used = append(used, uint32(devid))
			}
		}
	}
	return used, nil
}

// removeNodes deletes what writeNodes made, and the directories above that
// are empty then. What is gone already is no error.
func removeNodes(conn *xs.Conn, p *paths) error {
	err := conn.Transaction(func(tx *xs.Tx) error {
		for _, path := range []string{p.front, p.back, p.err} {
			if err := remove(tx, path); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, syscall.EAGAIN) {
		return err
	}
	// Others do not let a transaction through. What is above may be left
	// empty, and is harmless.
	return errors.Join(conn.Rm(p.front), conn.Rm(p.back), conn.Rm(p.err))
}

// remove deletes a path, and above it what is empty then, as libxl does
// (libxl__xs_path_cleanup): but never a domain's directory, nor its "device",
// which the toolstack makes with the domain.
func remove(tx *xs.Tx, path string) error {
	const domainDepth = 4 // "", local, domain, domid
	for {
		if err := ignoreMissing(tx.Rm(path)); err != nil {
			return err
		}
		path = path[:strings.LastIndexByte(path, '/')]
		if strings.Count(path, "/") < domainDepth || strings.HasSuffix(path, "/device") {
			return nil
		}
		names, err := tx.Directory(path)
		if err != nil || len(names) > 0 {
			return ignoreMissing(err)
		}
	}
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
