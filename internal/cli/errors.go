package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
	"xen-disk/grant"
	"xen-disk/internal/blkback"
)

// Exit codes, the same for every command. README.md has the table.
const (
	exitOK      = 0
	exitFailed  = 1 // anything without a code of its own
	exitUsage   = 2 // the command line is wrong
	exitMissing = 3 // no such virtual machine or image, or not just one
	exitBusy    = 4 // the image or the device is in use
	exitGuest   = 5 // the guest did not take the disk, or did not let go of it
	exitNoXen   = 9 // no usable Xen on this machine
)

// userError is an error for a person: at most three lines that say what, why
// and what to do.
type userError struct {
	What, Why, Hint string
	Code            int
}

func (e *userError) Error() string { return e.What }

// report prints an error and returns its exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var u *userError
	if !errors.As(err, &u) {
		u = &userError{What: oneLine(err.Error()), Code: exitFailed}
	}
	fmt.Fprintf(w, "xen-disk: %s\n", u.What)
	if u.Why != "" {
		fmt.Fprintf(w, "  %s\n", u.Why)
	}
	if u.Hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", u.Hint)
	}
	return u.Code
}

// oneLine joins what errors.Join put on lines of their own.
func oneLine(s string) string { return strings.Join(strings.Split(s, "\n"), "; ") }

// explainStore explains why xenstore cannot be reached.
func explainStore(env *environment, err error) error {
	u := &userError{What: "cannot reach xenstore", Why: oneLine(err.Error()), Code: exitNoXen}
	switch {
	case !env.onXen():
		u.What = "this machine does not run under Xen"
		u.Why = "there is neither a xenstored socket nor a /dev/xen/xenbus"
		u.Hint = "run xen-disk in dom0, or in a driver domain"
	case errors.Is(err, fs.ErrPermission):
		return notRoot(err)
	default:
		u.Hint = "start xenstored (on Debian: systemctl start xenstored)"
	}
	return u
}

// explainDoor explains why the kernel's Xen devices cannot be opened.
func explainDoor(env *environment, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return notRoot(err)
	case !env.onXen():
		return &userError{
			What: "this machine does not run under Xen", Why: oneLine(err.Error()),
			Hint: "run xen-disk in dom0, or in a driver domain", Code: exitNoXen,
		}
	}
	return &userError{
		What: "the kernel's Xen devices are missing", Why: oneLine(err.Error()),
		Hint: "modprobe xen-gntdev xen-evtchn (as: modprobe -a xen-gntdev xen-evtchn)", Code: exitNoXen,
	}
}

func notRoot(err error) error {
	return &userError{
		What: "not allowed to talk to Xen", Why: oneLine(err.Error()),
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
	}
	return err
}

// explainDisk explains why an image cannot be opened.
func explainDisk(path string, format disk.Format, err error) error {
	u := &userError{What: fmt.Sprintf("cannot open %s", path), Why: oneLine(err.Error()), Code: exitFailed}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		u.Why, u.Code = "there is no such file", exitMissing
		u.Hint = "make one: truncate -s 1G " + path
	case errors.Is(err, disk.ErrInUse):
		u.Code = exitBusy
		u.Hint = "detach it there first, or attach it --read-only on both sides"
	case errors.Is(err, disk.ErrDirectory), errors.Is(err, disk.ErrNotRegular):
		u.Code, u.Hint = exitUsage, "--path takes an image file or a block device"
	case errors.Is(err, disk.ErrTooSmall):
		u.Hint = "a disk has at least one sector of 512 bytes"
	case errors.Is(err, disk.ErrUnsupportedFormat):
		u.Why = fmt.Sprintf("the format %s is not supported yet", format)
		u.Code, u.Hint = exitUsage, "use --format raw or --format mmap"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		u.Hint = "check the file's owner and mode, or try --read-only"
	}
	return u
}

// explainAttach explains why the nodes of a device cannot be made.
func explainAttach(vdev string, domid uint32, err error) error {
	if errors.Is(err, blkback.ErrVdevTaken) {
		return &userError{
			What: fmt.Sprintf("%s is in use in domain %d", vdev, domid),
			Why:  fmt.Sprintf("/local/domain/%d/device/vbd has it already", domid),
			Hint: "choose another --vdev, or leave it out to get the next free one", Code: exitBusy,
		}
	}
	return fmt.Errorf("attach a device: %w", err)
}

// onXen asks the kernel whether it runs under Xen.
func onXen() bool {
	text, err := os.ReadFile("/sys/hypervisor/type")
	return err == nil && strings.TrimSpace(string(text)) == "xen"
}

func openDoor() (blkback.Xen, error) {
	door, err := grant.Open()
	if err != nil {
		return nil, err // not a nil *Door in an interface
	}
	return door, nil
}
