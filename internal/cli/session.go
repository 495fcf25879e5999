package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"xen-disk/internal/blkback"
	"xen-disk/reactor"
	"xen-disk/xs"
)

// session is the machinery below a command that serves disks.
type session struct {
	env     *environment
	conn    *xs.Conn
	loop    *reactor.Loop
	backend *blkback.Backend
	signals chan os.Signal
	ended   chan error // the loop's end
	hasty   bool       // the process ends without cleaning up
}

// signalDepth is how many signals are kept: three are told apart.
const signalDepth = 3

func startSession(env *environment, conn *xs.Conn) (*session, error) {
	loop, err := reactor.New()
	if err != nil {
		return nil, err
	}
	s := &session{
		env: env, conn: conn, loop: loop,
		signals: make(chan os.Signal, signalDepth), ended: make(chan error, 1),
	}
	if err := loop.Add(conn.FD(), &pump{conn, loop}); err != nil {
		return nil, errors.Join(err, loop.Close())
	}
	go func() { s.ended <- loop.Run() }() // until stop
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
	if s.hasty {
		return
	}
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

// listen begins to take signals. Before it they end the process at once,
// which is right as long as nothing has been made.
func (s *session) listen() {
	s.env.signals(s.loop, func(sig os.Signal) {
		select {
		case s.signals <- sig:
		default:
		}
	})
}

// serve attaches a disk and stays until it is detached.
func (s *session) serve(spec blkback.Spec, dom blkback.Domain) error {
	info := spec.Disk.Info()
	a := &attachment{out: s.env.stdout, now: s.env.now, shown: make(chan struct{})}
	spec.Events = a.event
	s.listen()
	vbd, err := s.backend.Attach(spec)
	if err != nil {
		return explainAttach(blkback.VdevName(spec.Devid), dom, err)
	}
	a.vbd = vbd
	a.show(info, dom)
	close(a.shown)
	if err := s.obey(a); err != nil {
		return err
	}
	if a.connected.Load() {
		stats := vbd.Stats()
		printStats(s.env.stdout, &stats)
	}
	return a.verdict()
}

// obey waits for the end of a vbd and does what signals ask for: the first
// asks the guest, the second does without it, the third without us.
func (s *session) obey(a *attachment) error {
	for n := 0; ; {
		select {
		case <-a.vbd.Done():
			return nil
		case <-s.signals:
		}
		n++
		if n == 1 && s.conn.Err() != nil {
			n = 2 // without xenstore the guest cannot be asked
		}
		switch n {
		case 1:
			if a.connected.Load() {
				a.say("Asking the guest to let go; Ctrl-C again takes the disk away.")
			} else {
				a.say("Removing the device; the guest has not taken it.")
			}
			a.vbd.Detach()
		case 2:
			a.say("Taking the disk away; Ctrl-C a third time ends at once.")
			a.vbd.Force()
		default:
			s.hasty = true
			return &userError{
				What: fmt.Sprintf("ended without detaching %s in order", a.vbd.Name()),
				Why:  "xenstore or the disk did not answer",
				Hint: "what may be left: xenstore-ls " + a.vbd.BackendPath(), Code: exitFailed,
			}
		}
	}
}

// write prints; nothing useful can be done when standard output is gone, and
// the disk must be served on.
func write(w io.Writer, text string) { _, _ = io.WriteString(w, text) }
