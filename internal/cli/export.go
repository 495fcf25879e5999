package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"xen-disk/disk"
	"xen-disk/nbd"
)

// exportCmd serves one image to NBD clients in the foreground.
type exportCmd struct {
	File       string   `arg:"" help:"Image file or block device."`
	Socket     string   `required:"" placeholder:"PATH" help:"Unix socket to make; only this user may connect to it."`
	Format     string   `placeholder:"FORMAT" help:"raw, mmap or vhd. Default: raw, whatever the file's name or contents."`
	ReadOnly   bool     `help:"Refuse the clients' writes; others may read the image too."`
	SearchPath []string `sep:"none" placeholder:"DIR" help:"vhd: also look for parents by name in DIR; may be repeated."`
	RawParent  bool     `help:"vhd: accept a parent that is a raw disk, where the child asks for one."`
	MapParents bool     `help:"vhd: read the files that nobody writes through mmap."`
}

// Help is what 'xen-disk export --help' says besides the flags.
func (c *exportCmd) Help() string {
	return `Clients speak NBD: qemu-img, nbdcopy, fio, and the kernel's nbd driver. It
needs neither Xen nor root, and stays until Ctrl-C (or SIGTERM, SIGHUP), which
answers what is under way, flushes the disk and removes the socket.

Examples:
  xen-disk export disk.vhd --format vhd --socket /run/disk.sock
  nbdinfo nbd+unix:///?socket=/run/disk.sock`
}

// Run serves the image until a signal.
func (c *exportCmd) Run(env *environment) (err error) {
	format, err := c.format()
	if err != nil {
		return err
	}
	if format == disk.Raw && c.Format == "" && strings.EqualFold(filepath.Ext(c.File), ".vhd") {
		write(env.stderr, "xen-disk: "+printable(c.File)+" is served as raw bytes; for the disk in it: --format vhd\n")
	}
	d, err := disk.Open(c.File, format, disk.Options{
		ReadOnly: c.ReadOnly, SearchPath: c.SearchPath, RawParent: c.RawParent, MapParents: c.MapParents,
	})
	if err != nil {
		return explainOpen(c.File, format, err)
	}
	defer func() {
		if closed := d.Close(); err == nil && closed != nil {
			err = &userError{What: fmt.Sprintf("cannot close %s in order", c.File), Why: cause(closed), Code: exitFailed}
		}
	}()
	ctx, stop := env.untilSignal()
	defer stop()
	ln, err := nbd.Listen(c.Socket)
	if err != nil {
		return explainSocket(c.Socket, err)
	}
	write(env.stdout, c.greeting(d.Info()))
	return c.serve(ctx, env, ln, d)
}

// format settles what --format leaves open. What is in the file is no help:
// the first sector of a raw disk is its guest's.
func (c *exportCmd) format() (disk.Format, error) {
	if c.Format == "" {
		return disk.Raw, nil
	}
	f, err := disk.ParseFormat(c.Format)
	if err != nil || f == disk.Discard {
		return f, &userError{
			What: fmt.Sprintf("bad --format: %s is none of raw, mmap and vhd", c.Format),
			Hint: "run 'xen-disk export --help'", Code: exitUsage,
		}
	}
	return f, nil
}

func (c *exportCmd) greeting(info disk.Info) string {
	access := ""
	if info.ReadOnly {
		access = ", read-only"
	}
	path := c.Socket
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	uri := "nbd+unix:///?socket=" + (&url.URL{Path: path}).EscapedPath()
	return fmt.Sprintf("Serving %s: %s, %s%s.\nConnect to: %s\n",
		printable(c.File), info.Format, sizeText(info.SizeBytes), access, printable(uri))
}

// serve runs the server until a signal ends it, which is what it is for.
func (c *exportCmd) serve(ctx context.Context, env *environment, ln net.Listener, d disk.Disk) error {
	signal.Ignore(unix.SIGPIPE) // who reads our output may go away: see ready
	server := nbd.New(d, nbd.Options{Report: func(err error) { env.log.Warn().Err(err).Msg("nbd") }})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }() // until Shutdown
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-served:
		served <- nil
	}
	// A second signal ends the process at once: a disk may hang.
	err := errors.Join(failed, server.Shutdown(context.Background()), <-served)
	if err != nil {
		return &userError{What: "cannot go on serving " + c.File, Why: cause(err), Code: exitFailed}
	}
	return nil
}

// explainSocket explains why there is no socket.
func explainSocket(path string, err error) error {
	u := &userError{What: fmt.Sprintf("cannot listen on %s", path), Why: cause(err), Code: exitFailed}
	switch {
	case errors.Is(err, nbd.ErrSocketInUse):
		u.Code, u.Hint = exitBusy, "choose another --socket, or end the program that listens there"
	case errors.Is(err, nbd.ErrNotSocket):
		u.Code, u.Hint = exitUsage, "choose another --socket"
	}
	return u
}
