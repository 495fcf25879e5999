package main

import (
	"os"

	"golang.org/x/sys/unix"

	"xen-disk/internal/lab/wire"
)

// console opens a terminal, makes it raw, and relays its bytes both ways
// until it is closed or hangs up.
func (s *server) console(m wire.Message) error {
	// Nonblocking, so that the runtime polls it and close wakes the reader.
	fd, err := unix.Open(m.Path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: m.Path, Err: err}
	}
	if err := makeRaw(fd); err != nil {
		unix.Close(fd)
		return &os.PathError{Op: "make raw", Path: m.Path, Err: err}
	}
	tty := os.NewFile(uintptr(fd), m.Path)
	t := &task{tty: tty, input: make(chan []byte, maxInput)}
	s.add(m.ID, t)
	s.conn.Send(wire.Message{ID: m.ID, Ev: wire.EvStarted})
	go feed(nopCloser{tty}, t.input)
	go func() { // ends with the terminal
		s.relay(m.ID, 1, tty)
		s.remove(m.ID)
		tty.Close()
		s.conn.Send(wire.Message{ID: m.ID, Ev: wire.EvDone})
	}()
	return nil
}

// close ends a terminal's relay, which then reports done.
func (s *server) close(id uint64) {
	if t := s.task(id); t != nil && t.tty != nil {
		t.tty.Close()
	}
}

// nopCloser keeps feed from closing the terminal under its reader.
type nopCloser struct{ *os.File }

func (nopCloser) Close() error { return nil }

// makeRaw switches off echo, line editing and every translation.
func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag = 0
	t.Oflag = 0
	t.Lflag = 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}
