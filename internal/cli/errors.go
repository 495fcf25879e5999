package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
	"xen-disk/internal/blkback"
)

// Exit codes, the same for every command; README.md has this table too.
//
//	0  ok        the disk was attached, and detached in order; or the virtual
//	             machine that had it went away
//	1  failed    anything without a code of its own: not root, an image that
//	             cannot be read, xenstore lost while a disk was attached
//	2  usage     the command line is wrong, or names what cannot be a disk
//	3  missing   no such virtual machine or image, or not just one; or an image
//	             whose parent is missing
//	4  busy      the image or the virtual device is in use
//	5  guest     the guest never took the disk, or did not let go of it and it
//	             was taken away
//	6  corrupt   an image contradicts itself; 'check' found damage
//	7  leaks     'check' found space that no block uses, and no damage
//	8  differ    'compare' found two images that differ
//	9  no Xen    no usable Xen here: not under Xen, no xenstored, no modules
//
// A signal that comes before the device is made, or during work on an image,
// ends the process as signals do: 128 + its number, in a shell's eyes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitMissing = 3
	exitBusy    = 4
	exitGuest   = 5
	exitCorrupt = 6
	exitLeaks   = 7
	exitDiffer  = 8
	exitNoXen   = 9

	exitSignal = 128
)

// userError is an error for a person: at most three lines that say what, why
// and what to do.
type userError struct {
	What, Why, Hint string
	Code            int
}

func (e *userError) Error() string { return e.What }

// exitCode is an answer that is no failure and has been printed.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// report prints an error and returns its exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	var u *userError
	if !errors.As(err, &u) {
		u = &userError{What: err.Error(), Code: exitFailed}
	}
	text := "xen-disk: " + printable(oneLine(u.What)) + "\n"
	if u.Why != "" {
		text += "  " + printable(u.Why) + "\n"
	}
	if u.Hint != "" {
		text += "  hint: " + printable(u.Hint) + "\n"
	}
	write(w, text)
	return u.Code
}

// cause is what went wrong, in as few words as say it: the path and the
// kernel's word where there are both.
func cause(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Sprintf("%s: %v", path.Path, path.Err)
	}
	return oneLine(err.Error())
}

// explainStore explains why xenstore cannot be reached.
func explainStore(env *environment, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return notRoot(err)
	case errors.Is(err, unix.ECONNREFUSED):
		return &userError{
			What: "xenstored is not running", Why: cause(err),
			Hint: "start it: 'systemctl start xenstored', on Debian 'service xen start'", Code: exitNoXen,
		}
	case errors.Is(err, fs.ErrNotExist) && !env.onXen():
		return notXen("there is no xenstore either")
	case errors.Is(err, fs.ErrNotExist):
		return &userError{
			What: "there is no xenstore", Why: cause(err),
			Hint: "start xenstored; in a driver domain: modprobe xenfs", Code: exitNoXen,
		}
	}
	return &userError{What: "cannot reach xenstore", Why: cause(err), Code: exitNoXen}
}

// explainDoor explains why the kernel's Xen devices cannot be opened.
func explainDoor(env *environment, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return notRoot(err)
	case !env.onXen():
		return notXen(cause(err))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return &userError{
			What: "the kernel's Xen devices are missing", Why: cause(err),
			Hint: "modprobe -a xen-gntdev xen-evtchn", Code: exitNoXen,
		}
	}
	return &userError{What: "cannot open the kernel's Xen devices", Why: cause(err), Code: exitNoXen}
}

func notXen(why string) error {
	return &userError{
		What: "this machine does not run under Xen", Why: why,
		Hint: "run xen-disk in dom0, or in a driver domain", Code: exitNoXen,
	}
}

func notRoot(err error) error {
	return &userError{
		What: "not allowed to talk to Xen", Why: cause(err),
		Hint: "run xen-disk as root", Code: exitFailed,
	}
}

// explainDomain explains why there is no such virtual machine.
func explainDomain(vm string, err error) error {
	var many *blkback.AmbiguousError
	switch {
	case errors.Is(err, blkback.ErrNoDomain):
		return &userError{
			What: fmt.Sprintf("no virtual machine %q is running here", vm),
			Why:  "it is no domain id, UUID or name of a running domain",
			Hint: "'xl list' shows what is running", Code: exitMissing,
		}
	case errors.As(err, &many):
		ids := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(many.Domids)), ", "), "[]")
		return &userError{
			What: fmt.Sprintf("the name %q is not unique", vm), Why: "domains " + ids + " have it",
			Hint: fmt.Sprintf("give a domain id: xen-disk connect %d", many.Domids[0]), Code: exitMissing,
		}
	case errors.Is(err, fs.ErrPermission):
		return &userError{
			What: "xenstore does not show other domains to this one", Why: cause(err),
			Hint: "run xen-disk in dom0, or in a driver domain", Code: exitNoXen,
		}
	}
	return &userError{What: "cannot ask xenstore for the virtual machines", Why: cause(err), Code: exitFailed}
}

// explainOpen explains why an image cannot be opened.
func explainOpen(path string, f disk.Format, err error) error {
	if f == disk.VHD {
		return explainImage("open", path, err)
	}
	u := &userError{What: fmt.Sprintf("cannot open %s", path), Why: cause(err), Code: exitFailed}
	var used *disk.InUseError
	switch {
	case errors.As(err, &used):
		u.What, u.Code = fmt.Sprintf("%s is in use", path), exitBusy
		u.Why, u.Hint = explainHolder(used)
	case errors.Is(err, fs.ErrNotExist):
		u.Why, u.Code = "there is no such file", exitMissing
		u.Hint = "make one: truncate -s 1G " + path
	case errors.Is(err, disk.ErrDirectory):
		u.Why, u.Code, u.Hint = "it is a directory", exitUsage, "an image is a file or a block device"
	case errors.Is(err, disk.ErrNotRegular):
		u.Why, u.Code = "it is neither a file nor a block device", exitUsage
		u.Hint = "an image is a file or a block device"
	case errors.Is(err, disk.ErrTooSmall):
		u.Why = "it is smaller than one sector of 512 bytes"
		u.Hint = "make it larger: truncate -s 1G " + path
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		u.Hint = "check its owner and mode, or try --read-only"
	}
	return u
}

// explainHolder says who has the image and how to get it.
func explainHolder(e *disk.InUseError) (why, hint string) {
	switch {
	case e.MountPoint != "":
		return "it is mounted on " + e.MountPoint, "unmount it first"
	case e.Claimed:
		return "it is mounted, swap, or part of a RAID or volume group", "lsblk " + e.Path
	case e.PID != 0:
		return fmt.Sprintf("process %d (%s) has it", e.PID, e.Command),
			"detach it there; to share it, both must be read-only"
	}
	return "a process that the kernel does not name has locked it",
		"detach it there; to share it, both must be read-only"
}

// explainAttach explains why the nodes of a device cannot be made.
func explainAttach(vdev string, dom blkback.Domain, err error) error {
	if errors.Is(err, blkback.ErrVdevTaken) {
		return &userError{
			What: fmt.Sprintf("%s is in use in %s", vdev, describeDomain(dom)),
			Why:  "the virtual machine has such a device already",
			Hint: "choose another --vdev, or none to get the next free one", Code: exitBusy,
		}
	}
	if errors.Is(err, unix.EAGAIN) {
		return &userError{
			What: "cannot make the device in xenstore", Why: "others' changes to it got in the way",
			Hint: "try again", Code: exitFailed,
		}
	}
	return &userError{What: "cannot make the device in xenstore", Why: cause(err), Code: exitFailed}
}
