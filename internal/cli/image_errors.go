package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
	"xen-disk/vhd"
)

// explainImage explains why a command could not do to an image what the verb
// says.
func explainImage(verb, path string, err error) error {
	what := verb + " " + path
	u := &userError{What: "cannot " + what, Why: strings.TrimPrefix(cause(err), what+": "), Code: exitFailed}
	var (
		parent *vhd.ParentError
		used   *disk.InUseError
		file   *fs.PathError
	)
	switch {
	case errors.As(err, &parent):
		u.What, u.Code = fmt.Sprintf("cannot find the parent of %s", parent.Child), exitMissing
		u.Why = explainTried(parent)
		u.Hint = "if it was moved: xen-disk image reparent, or --search-path DIR"
	case errors.As(err, &used):
		u.What, u.Code = fmt.Sprintf("%s is in use", used.Path), exitBusy
		u.Why, u.Hint = explainHolder(used)
	case errors.Is(err, fs.ErrExist):
		u.Why, u.Hint = "it is there already, and images are never overwritten", "remove it, or choose another name"
	case errors.Is(err, fs.ErrNotExist):
		u.Code = exitMissing
		if errors.As(err, &file) && file.Path == path {
			u.Why = "there is no such file"
			if verb == "make" {
				u.Why = "its directory is not there"
			}
		}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		u.Hint = "check its owner and mode, and those of its directory"
	case errors.Is(err, unix.ENOSPC):
		u.Why, u.Hint = unix.ENOSPC.Error(), "make space on its file system, and try again"
	case errors.Is(err, disk.ErrDirectory), errors.Is(err, disk.ErrNotRegular), errors.Is(err, vhd.ErrNotRegular):
		u.Why, u.Code, u.Hint = "it is neither a file nor a block device", exitUsage, "name an image file or a block device"
	default:
		explainFormat(u, path, err)
	}
	return u
}

// explainWork is explainImage for long work, which a signal may have ended; then
// the state that it left is what a person must know.
func explainWork(verb, path, state string, err error) error {
	var stopped *stoppedError
	if errors.As(err, &stopped) {
		return &userError{What: stopped.Error(), Why: state, Code: stopped.code()}
	}
	return explainImage(verb, path, err)
}

// explainFormat explains what is wrong with the bytes of a file.
func explainFormat(u *userError, path string, err error) {
	var image *vhd.ImageError
	if errors.As(err, &image) {
		if u.Why = image.Error(); image.Path != path {
			u.Why = image.Path + ": " + u.Why
		}
		path = image.Path
	}
	if _, why, ok := strings.Cut(err.Error(), fs.ErrInvalid.Error()+": "); ok && errors.Is(err, fs.ErrInvalid) {
		u.Why, u.Code = why, exitUsage
	}
	switch {
	case errors.Is(err, vhd.ErrNotVHD), errors.Is(err, vhd.ErrUnsupported), errors.Is(err, vhd.ErrEncrypted):
		u.Code = exitUsage
	case errors.Is(err, vhd.ErrDamaged):
		u.Code, u.Hint = exitCorrupt, "xen-disk image repair "+path
		if image != nil {
			u.What, u.Why = path+" must be repaired first", image.Text
		}
	case errors.Is(err, vhd.ErrDataLoss):
		u.Hint = "if they are of no use: --force"
	case errors.Is(err, vhd.ErrParentShows):
		u.Hint = "make one without parents first: xen-disk image convert " + path + " NEW.vhd"
	case errors.Is(err, vhd.ErrRange):
		u.Code = exitUsage
	case errors.Is(err, vhd.ErrRawParent):
		u.Code, u.Hint = exitUsage, "if you trust the image: --raw-parent"
	case errors.Is(err, vhd.ErrTooDeep):
		u.Code, u.Hint = exitUsage, "xen-disk image coalesce makes chains shorter"
	case errors.Is(err, vhd.ErrCorrupt):
		u.Code, u.Hint = exitCorrupt, "xen-disk image check "+path+" says more"
	}
}

// explainTried lists where a parent was looked for, and why it is not there.
func explainTried(e *vhd.ParentError) string {
	if len(e.Tried) == 0 {
		return "the image names none"
	}
	var tried []string
	for _, a := range e.Tried {
		why := cause(a.Err)
		switch {
		case errors.Is(a.Err, fs.ErrNotExist):
			why = a.Path + " is not there"
		case a.Path == "":
			why = a.Found + " cannot be read"
		}
		tried = append(tried, why)
	}
	return strings.Join(tried, "; ")
}
