package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// What can be in the way of a socket, for errors.Is.
var (
	// ErrSocketInUse: someone listens on it.
	ErrSocketInUse = errors.New("another program listens there")
	// ErrNotSocket: the path is something else, which is not ours to remove.
	ErrNotSocket = errors.New("is there and is no socket")
)

// Listen makes a unix socket at path that only this user may connect to. The
// socket of a program that died is replaced; anything else in its place is
// left alone, and an error. Closing the listener removes the socket.
//
// The umask of the process is changed for an instant, since bind(2) has no
// other way to make a socket that is never open to others. So call it when no
// other goroutine makes files.
func Listen(path string) (net.Listener, error) {
	switch {
	case path == "":
		return nil, fmt.Errorf("listen: %w: an empty path", unix.EINVAL)
	case len(path) > maxPathBytes:
		return nil, fmt.Errorf("listen on %s: %w: a socket's has at most %d bytes", path, unix.ENAMETOOLONG, maxPathBytes)
	case path[0] == '@':
		path = "./" + path // package net would make one that all may connect to
	}
	ln, err := listen(path)
	if !errors.Is(err, unix.EADDRINUSE) {
		return ln, err
	}
	if err := removeDead(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return listen(path)
}

// maxPathBytes is what fits into sun_path with its NUL (unix(7)), and two
// bytes that Listen may put before it.
const maxPathBytes = 108 - 1 - 2

// removeDead removes the socket at path if nobody listens on it.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return ErrNotSocket
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return ErrSocketInUse
	case errors.Is(err, unix.EAGAIN): // its backlog is full
		return ErrSocketInUse
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}

func listen(path string) (net.Listener, error) {
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err // not a nil *UnixListener in an interface
	}
	return ln, nil
}
