package xs

import (
	"errors"
	"fmt"
	"io/fs"
)

// ErrClosed is what requests fail with once [Conn.Close] was called.
// errors.Is(ErrClosed, fs.ErrClosed) holds.
var ErrClosed = fmt.Errorf("xenstore connection: %w", fs.ErrClosed)

// ErrLost is what requests fail with once the other side is gone (xenstored
// died) or has broken the protocol; the cause is wrapped beside it. Nodes
// outlive the connection; watches and transactions do not.
var ErrLost = errors.New("xenstore connection lost")

// Error is a request that failed. Err is or wraps a [unix.Errno] where
// xenstore refused it, so errors.Is(err, fs.ErrNotExist) holds for ENOENT and
// fs.ErrPermission for EACCES; it wraps [ErrLost] or [ErrClosed] where the
// connection ended.
//
// [unix.Errno]: https://pkg.go.dev/golang.org/x/sys/unix#Errno
type Error struct {
	Op   string // the request: "read", "write", "mkdir", "watch", ...
	Path string // the node; empty where the request has none
	Err  error
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Op + " in xenstore: " + e.Err.Error()
	}
	return e.Op + " " + e.Path + " in xenstore: " + e.Err.Error()
}

// Unwrap returns e.Err.
func (e *Error) Unwrap() error { return e.Err }
