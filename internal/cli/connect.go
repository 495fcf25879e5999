package cli

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"xen-disk/disk"
	"xen-disk/internal/blkback"
	"xen-disk/reactor"
	"xen-disk/xs"
)

// connectCmd attaches one disk and serves it in the foreground.
type connectCmd struct {
	VM       string `arg:"" help:"Domain id, UUID or name of the virtual machine."`
	Path     string `help:"Image file or block device. Without it the disk is 1 GiB that acknowledges everything and keeps nothing." placeholder:"FILE"`
	Format   string `help:"One of raw, mmap, vhd, discard. Default: mmap with --path, else discard." placeholder:"FORMAT"`
	Vdev     string `help:"Device in the guest, such as xvdb. Default: the next free one." placeholder:"VDEV"`
	ReadOnly bool   `help:"Refuse the guest's writes."`
}

// Help is what 'xen-disk connect --help' says below the flags.
func (c *connectCmd) Help() string {
	return `Formats:
  discard  acknowledges everything, does nothing: for measuring the protocol
  mmap     the image mapped into memory: the fewest copies. A full file
           system or a bad block shows only when a page is touched.
  raw      the same bytes by pread and pwrite: choose it for sparse images,
           network mounts and disks that may fail, since every error is met
           at the request that causes it; flush is fdatasync.

Examples:
  xen-disk connect debian
  xen-disk connect debian --path disk.raw --format raw --vdev xvdc

Ctrl-C asks the guest to let go of the disk; a second one takes it away.`
}

// Run serves the disk until it is detached.
func (c *connectCmd) Run(env *environment) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	spec := blkback.Spec{}
	if c.Vdev != "" {
		if spec.Devid, err = blkback.ParseVdev(c.Vdev); err != nil {
			return &userError{What: "bad --vdev: " + err.Error(), Hint: "names are like xvdb, sda, hdc or xvda1", Code: exitUsage}
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
	if spec.Disk, err = disk.Open(c.Path, format, disk.Options{ReadOnly: c.ReadOnly}); err != nil {
		return explainDisk(c.Path, format, err)
	}
	return s.serve(spec, dom)
}

// format settles what --path and --format leave open.
func (c *connectCmd) format() (disk.Format, error) {
	if c.Format == "" {
		if c.Path == "" {
			return disk.Discard, nil
		}
		return disk.Mmap, nil
	}
	f, err := disk.ParseFormat(c.Format)
	if err != nil {
		return f, &userError{What: "bad --format: " + err.Error(), Hint: "run 'xen-disk connect --help'", Code: exitUsage}
	}
	if (f == disk.Discard) != (c.Path == "") {
		why := fmt.Sprintf("the format %s needs a --path", f)
		if f == disk.Discard {
			why = "the format discard keeps nothing and takes no --path"
		}
		return f, &userError{What: why, Hint: "run 'xen-disk connect --help'", Code: exitUsage}
	}
	return f, nil
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

// session is the machinery below a command that serves disks.
type session struct {
	env     *environment
	loop    *reactor.Loop
	backend *blkback.Backend
	signals chan os.Signal
	ended   chan error // the loop's end

	mu        sync.Mutex // guards what follows: events come from elsewhere
	connected bool
	last      blkback.EventKind
}

// signalDepth is how many signals are kept: two are told apart.
const signalDepth = 2

func startSession(env *environment, conn *xs.Conn) (*session, error) {
	loop, err := reactor.New()
	if err != nil {
		return nil, err
	}
	s := &session{
		env: env, loop: loop, signals: make(chan os.Signal, signalDepth), ended: make(chan error, 1),
	}
	if err := loop.Add(conn.FD(), &pump{conn, loop}); err != nil {
		return nil, errors.Join(err, loop.Close())
	}
	loop.Signal(func(sig os.Signal) {
		select {
		case s.signals <- sig:
		default:
		}
	}, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() { s.ended <- loop.Run() }()
	s.backend, err = blkback.New(blkback.Config{
		Conn: conn, Loop: loop, OpenXen: env.openXen, Log: env.log,
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// stop ends the machinery. The disks are detached by now.
func (s *session) stop() {
	if s.backend != nil {
		if err := s.backend.Close(); err != nil {
			s.env.log.Error().Err(err).Msg("cannot close the backend")
		}
	}
	s.loop.Stop()
	if err := errors.Join(<-s.ended, s.loop.Close()); err != nil {
		s.env.log.Error().Err(err).Msg("the loop ended badly")
	}
}

// pump feeds the xenstore connection from the loop.
type pump struct {
	conn *xs.Conn
	loop *reactor.Loop
}

// Ready reads what xenstored sent (reactor.Handler).
func (p *pump) Ready(uint32) {
	if p.conn.Pump() != nil {
		// The connection is lost; everyone who waits for it has been told.
		_ = p.loop.Remove(p.conn.FD())
	}
}

// serve attaches a disk and stays until it is detached.
func (s *session) serve(spec blkback.Spec, dom blkback.Domain) error {
	info := spec.Disk.Info()
	name := fmt.Sprintf("domain %d", dom.ID)
	if dom.Name != "" {
		name = fmt.Sprintf("%s (%s)", dom.Name, name)
	}
	spec.Events = s.event
	vbd, err := s.backend.Attach(spec)
	if err != nil {
		return explainAttach(blkback.VdevName(spec.Devid), spec.Domid, err)
	}
	s.printf("Disk:    %s\n", describe(info))
	s.printf("Device:  %s (%d) in %s: /dev/%s\n", vbd.Name(), vbd.Devid(), name, vbd.Name())
	s.printf("Press Ctrl-C to detach it.\n")
	if info.TailBytes != 0 {
		s.printf("Note:    the last %d bytes of the image are no whole sector; the guest does not see them.\n", info.TailBytes)
	}
	for asked := false; ; {
		select {
		case <-s.signals:
			if asked {
				vbd.Force()
			} else {
				vbd.Detach()
			}
			asked = true
			continue
		case <-vbd.Done():
		}
		break
	}
	stats := vbd.Stats()
	printStats(s.env.stdout, &stats)
	return s.verdict(vbd)
}

// verdict turns the end of a vbd into the command's.
func (s *session) verdict(vbd *blkback.VBD) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := vbd.Err(); err != nil {
		return err
	}
	switch {
	case s.last == blkback.EventForced:
		return &userError{
			What: fmt.Sprintf("%s was taken away from the guest", vbd.Name()),
			Why:  "it had not let go of it; what it had not flushed may be lost", Code: exitGuest,
		}
	case !s.connected:
		return &userError{
			What: fmt.Sprintf("the guest never took %s", vbd.Name()),
			Why:  "its block driver did not answer",
			Hint: "is xen-blkfront loaded in the guest?", Code: exitGuest,
		}
	}
	return nil
}

// event prints what happens to the vbd.
func (s *session) event(e blkback.Event) {
	s.mu.Lock()
	s.last = e.Kind
	if e.Kind == blkback.EventConnected {
		s.connected = true
	}
	s.mu.Unlock()
	switch e.Kind {
	case blkback.EventWaiting:
		s.printf("Waiting for %s.\n", e.Text)
	case blkback.EventConnected:
		s.printf("Connected: protocol %s, ring of %d slots.\n", e.Protocol, e.Slots)
	case blkback.EventRefused:
		s.printf("Refused: %s\n", oneLine(e.Err.Error()))
	case blkback.EventDetaching:
		s.printf("Asking the guest to let go; Ctrl-C again takes the disk away.\n")
	case blkback.EventClosing:
		s.printf("The guest is letting go.\n")
	case blkback.EventDetached:
		s.printf("Detached.\n")
	case blkback.EventGone:
		s.printf("The virtual machine or its device is gone.\n")
	case blkback.EventForced:
		s.printf("Taken away.\n")
	case blkback.EventLost:
		s.printf("Lost xenstore: the disk is served on, but can only be taken away (Ctrl-C).\n")
	}
}

func (s *session) printf(format string, args ...any) {
	// Nothing useful can be done when standard output is gone.
	_, _ = fmt.Fprintf(s.env.stdout, format, args...)
}

// describe says in one line what backs the disk.
func describe(info disk.Info) string {
	mode := "read-write"
	if info.ReadOnly {
		mode = "read-only"
	}
	path := info.Path
	if path == "" {
		path = "no image"
	}
	return fmt.Sprintf("%s, %s, %s, %s", path, info.Format, humanize.IBytes(uint64(info.SizeBytes)), mode)
}
