package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
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
	note := ""
	if info.TailBytes != 0 {
		note = fmt.Sprintf("Its last %d bytes are no whole sector of 512 bytes and are left out.\n", info.TailBytes)
	}
	return fmt.Sprintf("Serving %s: %s, %s%s.\n%sConnect to: %s\n",
		printable(c.File), info.Format, sizeText(info.SizeBytes), access, note, socketURI(c.Socket))
}

// socketURI is how NBD clients name an export on a unix socket, from whatever
// directory (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md).
func socketURI(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	query := strings.NewReplacer("%2F", "/", "+", "%20").Replace(url.QueryEscape(path))
	return "nbd+unix:///?socket=" + query
}

// drainTime is what clients have to take the answers to what they asked before
// the end. They get them in milliseconds, unless they have stopped reading.
const drainTime = 5 * time.Second

// serve runs the server until a signal ends it, which is what it is for. A
// second signal ends the process at once: a disk may hang.
func (c *exportCmd) serve(ctx context.Context, env *environment, ln net.Listener, d disk.Disk) error {
	env.ready()
	report := &limitedLog{log: env.log}
	server := nbd.New(d, nbd.Options{Report: func(err error) { report.error(time.Now(), err) }})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }() // until Shutdown
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-served:
		served <- nil
	}
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		report.error(time.Now(), err) // Close waits for what is inside the disk
	}
	if err := errors.Join(failed, <-served); err != nil {
		return &userError{What: "cannot go on serving " + c.File, Why: cause(err), Code: exitFailed}
	}
	return nil
}

// limitedLog logs what goes wrong, but not as often as clients can cause it.
type limitedLog struct {
	log zerolog.Logger

	mu    sync.Mutex
	quota quota
}

func (l *limitedLog) error(now time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ok, left := l.quota.take(now)
	if left > 0 {
		l.log.Error().Int("lines", left).Msg("lines were left out")
	}
	if ok {
		l.log.Error().Err(err).Msg("export")
	}
}

// explainSocket explains why there is no socket.
func explainSocket(path string, err error) error {
	u := &userError{What: fmt.Sprintf("cannot listen on %s", path), Why: cause(err), Code: exitFailed}
	switch {
	case errors.Is(err, nbd.ErrSocketInUse):
		u.Code, u.Why = exitBusy, nbd.ErrSocketInUse.Error()
		u.Hint = "choose another --socket, or end the program that listens there"
	case errors.Is(err, nbd.ErrNotSocket):
		u.Code, u.Why, u.Hint = exitUsage, "it "+nbd.ErrNotSocket.Error(), "choose another --socket"
	case errors.Is(err, unix.ENAMETOOLONG):
		u.Code, u.Why, u.Hint = exitUsage, "its path is longer than a socket's can be", "choose a shorter --socket"
	case errors.Is(err, fs.ErrNotExist):
		u.Code, u.Why, u.Hint = exitMissing, "its directory is not there", "make it: mkdir -p "+filepath.Dir(path)
	}
	return u
}
