package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"xen-disk/internal/lab/wire"
)

// server answers the requests of one connection.
type server struct {
	conn *wire.Conn

	mu    sync.Mutex
	tasks map[uint64]*task // running processes and open terminals
}

// task is a process or a terminal: something with input.
type task struct {
	process *os.Process // nil for a terminal
	input   chan []byte // queued input; closed by end of input
	ended   bool        // input is closed
	tty     *os.File
}

func newServer(r io.Reader, w io.Writer) *server {
	return &server{conn: wire.NewConn(r, w), tasks: map[uint64]*task{}}
}

// serve says hello and answers requests until the connection ends.
func (s *server) serve() error {
	if err := s.conn.Send(wire.Message{Ev: wire.EvHello}); err != nil {
		return err
	}
	for {
		m, err := s.conn.Receive()
		if err != nil {
			return err
		}
		s.handle(m)
	}
}

// handle does one request. What may block goes to its own goroutine, which
// ends with the file or the process that it serves.
func (s *server) handle(m wire.Message) {
	var err error
	switch m.Op {
	case wire.OpStart:
		err = s.start(m)
	case wire.OpConsole:
		err = s.console(m)
	case wire.OpSignal:
		err = s.signal(m)
	case wire.OpInput:
		s.input(m.ID, m.Data)
	case wire.OpEOF:
		s.endInput(m.ID)
	case wire.OpClose:
		s.close(m.ID)
	case wire.OpPut:
		go func() { s.finish(m.ID, put(m)) }()
	case wire.OpGet:
		go func() { s.finish(m.ID, s.get(m)) }()
	default:
		err = fmt.Errorf("do %q: unknown operation", m.Op)
	}
	if err != nil {
		s.finish(m.ID, err)
	}
}

// finish reports done, or the error.
func (s *server) finish(id uint64, err error) {
	if err != nil {
		s.conn.Send(wire.Message{ID: id, Ev: wire.EvError, Text: err.Error()})
		return
	}
	s.conn.Send(wire.Message{ID: id, Ev: wire.EvDone})
}

// maxInput bounds the queued input chunks of one task. A full queue blocks
// the connection: then the process does not read, and that is its bug to show.
const maxInput = 1024

func (s *server) start(m wire.Message) error {
	if len(m.Argv) == 0 {
		return errors.New("start process: no arguments")
	}
	cmd := exec.Command(m.Argv[0], m.Argv[1:]...)
	cmd.Env = append(os.Environ(), m.Env...)
	cmd.Dir = m.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var ends []*os.File // read, write of fd 1, then of fd 2
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(ends)
			return err
		}
		ends = append(ends, r, w)
	}
	cmd.Stdout, cmd.Stderr = ends[1], ends[3]
	if err := cmd.Start(); err != nil {
		closeAll(ends)
		return err
	}
	ends[1].Close()
	ends[3].Close()
	t := &task{process: cmd.Process, input: make(chan []byte, maxInput)}
	s.add(m.ID, t)
	s.conn.Send(wire.Message{ID: m.ID, Ev: wire.EvStarted, Code: cmd.Process.Pid})
	go feed(stdin, t.input)
	go s.reap(m.ID, cmd, ends[0], ends[2])
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// reap relays the output of a process and at its end reports the exit code.
// A daemon that the process left behind may keep its output open for ever, so
// only what is there when the process ends is waited for.
func (s *server) reap(id uint64, cmd *exec.Cmd, stdout, stderr *os.File) {
	var wg sync.WaitGroup
	for i, f := range []*os.File{stdout, stderr} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer f.Close()
			s.relay(id, i+1, f)
			s.drain(id, i+1, f)
		}()
	}
	err := cmd.Wait()
	stdout.SetReadDeadline(time.Now()) // wakes relay
	stderr.SetReadDeadline(time.Now())
	wg.Wait()
	s.remove(id)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
	} else if err != nil {
		s.finish(id, err)
		return
	}
	s.conn.Send(wire.Message{ID: id, Ev: wire.EvExit, Code: code})
}

// drain relays what is in the pipe now and waits for nothing.
func (s *server) drain(id uint64, fd int, f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, wire.MaxData)
	raw.Control(func(pipe uintptr) {
		for {
			n, err := syscall.Read(int(pipe), buf) // nonblocking, as os.Pipe makes it
			if err == syscall.EINTR {
				continue
			}
			if n <= 0 || err != nil {
				return
			}
			s.conn.Send(wire.Message{ID: id, Ev: wire.EvOut, FD: fd, Data: buf[:n]})
		}
	})
}

// relay sends what r yields until its end.
func (s *server) relay(id uint64, fd int, r io.Reader) {
	buf := make([]byte, wire.MaxData)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			s.conn.Send(wire.Message{ID: id, Ev: wire.EvOut, FD: fd, Data: buf[:n]})
		}
		if err != nil {
			return
		}
	}
}

// feed writes queued input; after an error it drops the rest.
func feed(w io.WriteCloser, input <-chan []byte) {
	var err error
	for data := range input {
		if err == nil {
			_, err = w.Write(data)
		}
	}
	w.Close()
}

func (s *server) signal(m wire.Message) error {
	t := s.task(m.ID)
	if t == nil || t.process == nil {
		return nil // it has ended, its exit is on the way
	}
	// The whole group: a shell's children too.
	err := syscall.Kill(-t.process.Pid, syscall.Signal(m.Signal))
	if err == syscall.ESRCH {
		return nil
	}
	return err
}

func (s *server) add(id uint64, t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[id] = t
}

func (s *server) task(id uint64) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id]
}

func (s *server) remove(id uint64) {
	s.endInput(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, id)
}

func (s *server) input(id uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[id]
	if t == nil || t.ended {
		return
	}
	select {
	case t.input <- data:
	default: // the reader is stuck; see maxInput
		s.conn.Send(wire.Message{ID: id, Ev: wire.EvError, Text: "input queue is full"})
	}
}

func (s *server) endInput(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tasks[id]; t != nil && !t.ended {
		t.ended = true
		close(t.input)
	}
}

func put(m wire.Message) error {
	if err := os.MkdirAll(filepath.Dir(m.Path), 0o755); err != nil {
		return err
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	if m.Append {
		flags = os.O_WRONLY | os.O_APPEND
	}
	f, err := os.OpenFile(m.Path, flags, fs.FileMode(m.Mode))
	if err != nil {
		return err
	}
	if _, err := f.Write(m.Data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func (s *server) get(m wire.Message) error {
	f, err := os.Open(m.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, wire.MaxData)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			s.conn.Send(wire.Message{ID: m.ID, Ev: wire.EvOut, FD: 1, Data: buf[:n]})
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
