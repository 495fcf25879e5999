package xs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dial connects to the xenstore of this machine. It tries, in this order,
//
//	$XENSTORED_PATH               if it is set, then nothing else
//	$XENSTORED_RUNDIR/socket      if it is set, instead of the next two
//	/run/xenstored/socket
//	/var/run/xenstored/socket
//	/dev/xen/xenbus
//	/proc/xen/xenbus
//
// as libxenstore does. A xenstore in a domain of its own, and every domain but
// dom0, have only the devices.
//
// The error names each path and what was wrong with it. errors.Is finds the
// most telling reason: unix.ECONNREFUSED for a socket that nobody listens on
// (xenstored died; the search ends there, since the device would block for
// ever), else fs.ErrPermission, else another, and fs.ErrNotExist only where
// no path exists at all.
func Dial() (*Conn, error) {
	var failed dialError
	for _, path := range candidates(os.Getenv) {
		c, err := Open(path)
		if err == nil {
			return c, nil
		}
		failed = append(failed, err)
		if errors.Is(err, unix.ECONNREFUSED) {
			break
		}
	}
	return nil, failed
}

// candidates lists the paths that Dial tries.
func candidates(getenv func(string) string) []string {
	if path := getenv("XENSTORED_PATH"); path != "" {
		return []string{path}
	}
	sockets := []string{"/run/xenstored/socket", "/var/run/xenstored/socket"}
	if dir := getenv("XENSTORED_RUNDIR"); dir != "" {
		sockets = []string{filepath.Join(dir, "socket")}
	}
	return append(sockets, "/dev/xen/xenbus", "/proc/xen/xenbus")
}

// dialError is one error for each path that was tried.
type dialError []error

func (e dialError) Error() string {
	var b strings.Builder
	b.WriteString("connect to xenstore: ")
	for i, err := range e {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// Unwrap returns the most telling of the errors.
func (e dialError) Unwrap() error {
	best, bestRank := error(nil), -1
	for _, err := range e {
		rank := 1
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			rank = 3
		case errors.Is(err, fs.ErrPermission):
			rank = 2
		case errors.Is(err, fs.ErrNotExist):
			rank = 0
		}
		if rank > bestRank {
			best, bestRank = err, rank
		}
	}
	return best
}

// Open connects to the xenstore at path: a unix socket, a character device
// (/dev/xen/xenbus), or the file xenbus of a xenfs (/proc/xen/xenbus).
func Open(path string) (*Conn, error) {
	var st unix.Stat_t
	if err := retryEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	isSocket := st.Mode&unix.S_IFMT == unix.S_IFSOCK
	var fd int
	var err error
	switch {
	case isSocket:
		fd, err = dialSocket(path)
	case st.Mode&unix.S_IFMT == unix.S_IFCHR || onXenfs(path):
		fd, err = openDevice(path)
	default:
		err = &fs.PathError{Op: "open", Path: path,
			Err: fmt.Errorf("neither a socket nor a xenbus device: %w", unix.ENOTSOCK)}
	}
	if err != nil {
		return nil, err
	}
	c, err := newConn(path, fd, isSocket)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return c, nil
}

// onXenfs reports whether path is on a xenfs, whose files are special although
// their type is regular (linux: drivers/xen/xenfs/super.c).
func onXenfs(path string) bool {
	var st unix.Statfs_t
	err := retryEINTR(func() error { return unix.Statfs(path, &st) })
	return err == nil && st.Type == unix.XENFS_SUPER_MAGIC
}

func openDevice(path string) (int, error) {
	fd := -1
	err := retryEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err == unix.ENOENT {
		// The file is there: this is the driver's word for having no event
		// channel to a xenstore.
		err = fmt.Errorf("kernel is not connected to a xenstore: %w", err)
	}
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func dialSocket(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "connect", Path: path, Err: err}
	}
	// Connecting blocks where the backlog is full (xenstored's is 1), so the
	// descriptor becomes non-blocking only afterwards.
	err = retryEINTR(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, &fs.PathError{Op: "connect", Path: path, Err: err}
	}
	return fd, nil
}

// retryEINTR repeats a system call that a signal (the Go runtime sends some)
// has interrupted.
func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
