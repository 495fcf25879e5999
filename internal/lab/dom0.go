package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"xen-disk/internal/lab/wire"
)

// Dom0 is the control domain of a machine, driven through its agent. Its
// methods may be called from many goroutines.
type Dom0 struct {
	m     *Machine
	conn  *wire.Conn
	hello chan struct{}

	mu    sync.Mutex
	last  uint64
	calls map[uint64]func(wire.Message) // who gets the events of an ID; never blocks
	err   error                         // why nothing will answer any more
}

func newDom0(m *Machine, port *os.File) *Dom0 {
	d := &Dom0{m: m, conn: wire.NewConn(port, port), hello: make(chan struct{}),
		calls: map[uint64]func(wire.Message){}}
	go d.receive() // ends with the port
	return d
}

func (d *Dom0) receive() {
	for {
		msg, err := d.conn.Receive()
		if err != nil {
			d.fail(fmt.Errorf("talk to the agent: %w", err))
			return
		}
		if msg.Ev == wire.EvHello {
			close(d.hello)
			continue
		}
		d.mu.Lock()
		call := d.calls[msg.ID]
		d.mu.Unlock()
		if call != nil {
			call(msg)
		}
	}
}

// fail tells all calls, now and later, that nothing will answer.
func (d *Dom0) fail(err error) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.err = err
	calls := d.calls
	d.calls = map[uint64]func(wire.Message){}
	d.mu.Unlock()
	for id, call := range calls {
		call(wire.Message{ID: id, Ev: wire.EvError, Text: err.Error()})
	}
}

func (d *Dom0) waitHello(ctx context.Context) error {
	failed := make(chan error, 1)
	id := d.register(func(m wire.Message) { failed <- errors.New(m.Text) })
	defer d.forget(id)
	select {
	case <-d.hello:
		return nil
	case err := <-failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for dom0: %w", context.Cause(ctx))
	}
}

// register reserves an ID and names the receiver of its events.
func (d *Dom0) register(call func(wire.Message)) (id uint64) {
	d.mu.Lock()
	d.last++
	id = d.last
	err := d.err
	if err == nil {
		d.calls[id] = call
	}
	d.mu.Unlock()
	if err != nil {
		call(wire.Message{ID: id, Ev: wire.EvError, Text: err.Error()})
	}
	return id
}

func (d *Dom0) forget(id uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.calls, id)
}

// Command is a process to start in dom0.
type Command struct {
	Argv  []string
	Env   []string // added to the agent's own, "NAME=value"
	Dir   string
	Stdin []byte // the whole input; the process sees its end
	// KeepInput leaves the input open behind Stdin, for Process.Write.
	KeepInput bool
}

// Process is a process in dom0.
type Process struct {
	d      *Dom0
	id     uint64
	argv   []string
	out    *transcript
	errs   *transcript
	cursor int // how far WaitLine has read

	started chan struct{} // closed when pid is known, or the process failed
	exited  chan struct{} // closed when code or err is known
	mu      sync.Mutex    // held by event
	pid     int
	code    int
	err     error
}

// ExitError is a process that ended with a code other than zero.
type ExitError struct {
	Argv   []string
	Code   int // 128+n after signal n
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("run %s: exit code %d: %s", strings.Join(e.Argv, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Run runs a process to its end and returns its output. A code other than
// zero is an *ExitError.
func (d *Dom0) Run(ctx context.Context, argv ...string) (stdout string, err error) {
	p, err := d.Start(ctx, argv...)
	if err != nil {
		return "", err
	}
	code, err := p.Wait(ctx)
	if err != nil {
		p.Signal(syscall.SIGKILL)
		return p.Stdout(), err
	}
	if code != 0 {
		return p.Stdout(), &ExitError{Argv: argv, Code: code, Stderr: p.Stderr()}
	}
	return p.Stdout(), nil
}

// Shell is Run of a shell script.
func (d *Dom0) Shell(ctx context.Context, script string) (stdout string, err error) {
	return d.Run(ctx, "sh", "-c", script)
}

// Start starts a process with empty input.
func (d *Dom0) Start(ctx context.Context, argv ...string) (*Process, error) {
	return d.StartCommand(ctx, Command{Argv: argv})
}

// StartCommand starts a process and waits until it has its process id. The
// process outlives the context.
func (d *Dom0) StartCommand(ctx context.Context, c Command) (*Process, error) {
	p := &Process{d: d, argv: c.Argv, out: newTranscript(), errs: newTranscript(),
		started: make(chan struct{}), exited: make(chan struct{})}
	p.id = d.register(p.event)
	d.conn.Send(wire.Message{ID: p.id, Op: wire.OpStart, Argv: c.Argv, Env: c.Env, Dir: c.Dir})
	p.Write(c.Stdin)
	if !c.KeepInput {
		p.CloseInput()
	}
	select {
	case <-p.started:
	case <-ctx.Done():
		return nil, fmt.Errorf("start %s: %w", strings.Join(c.Argv, " "), context.Cause(ctx))
	}
	if p.pid == 0 {
		return nil, p.err
	}
	return p, nil
}

// event takes what the agent says of the process. Both the receiver and
// whoever fails the whole dom0 call it.
func (p *Process) event(m wire.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited:
		return
	default:
	}
	switch m.Ev {
	case wire.EvStarted:
		p.pid = m.Code
		close(p.started)
	case wire.EvOut:
		to := p.out
		if m.FD == 2 {
			to = p.errs
		}
		to.Write(m.Data)
	case wire.EvExit:
		p.code = m.Code
		p.end(nil)
	case wire.EvError:
		p.end(fmt.Errorf("run %s: %s", strings.Join(p.argv, " "), m.Text))
	}
}

func (p *Process) end(err error) {
	p.err = err
	if p.pid == 0 {
		close(p.started)
	}
	close(p.exited)
	p.out.close(nil)
	p.errs.close(nil)
	p.d.forget(p.id)
}

// PID is the process id in dom0.
func (p *Process) PID() int { return p.pid }

// Wait waits for the end and returns the exit code, 128+n after signal n.
func (p *Process) Wait(ctx context.Context) (code int, err error) {
	select {
	case <-p.exited:
		return p.code, p.err
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s: %w", strings.Join(p.argv, " "), context.Cause(ctx))
	}
}

// WaitLine waits for the next line of the output, behind the one that the
// last call returned, that matches.
func (p *Process) WaitLine(ctx context.Context, re *regexp.Regexp) (line string, err error) {
	from := p.cursor
	err = p.out.wait(ctx, from, func(text string) bool {
		at := 0
		for {
			end := strings.IndexByte(text[at:], '\n')
			if end < 0 {
				return false
			}
			line, at = text[at:at+end], at+end+1
			if re.MatchString(line) {
				p.cursor = from + at
				return true
			}
		}
	})
	if err != nil {
		return "", fmt.Errorf("wait for %q from %s: %w\nstdout: %s\nstderr: %s",
			re, strings.Join(p.argv, " "), err, p.out.tail(10), p.errs.tail(10))
	}
	return line, nil
}

// Signal sends a signal to the process and its group.
func (p *Process) Signal(sig syscall.Signal) {
	p.d.conn.Send(wire.Message{ID: p.id, Op: wire.OpSignal, Signal: int(sig)})
}

// Write appends to the process's input.
func (p *Process) Write(data []byte) (int, error) {
	for at := 0; at < len(data); at += wire.MaxData {
		chunk := data[at:min(at+wire.MaxData, len(data))]
		if err := p.d.conn.Send(wire.Message{ID: p.id, Op: wire.OpInput, Data: chunk}); err != nil {
			return at, err
		}
	}
	return len(data), nil
}

// CloseInput ends the process's input.
func (p *Process) CloseInput() { p.d.conn.Send(wire.Message{ID: p.id, Op: wire.OpEOF}) }

// Stdout returns the output so far.
func (p *Process) Stdout() string { return p.out.String() }

// Stderr returns the error output so far.
func (p *Process) Stderr() string { return p.errs.String() }

// PutFile writes a small file in dom0, with the directories above it. Large
// files belong into ShareDir.
func (d *Dom0) PutFile(ctx context.Context, path string, data []byte, perm fs.FileMode) error {
	for at, first := 0, true; first || at < len(data); first = false {
		end := min(at+wire.MaxData, len(data))
		_, err := d.call(ctx, wire.Message{Op: wire.OpPut, Path: path, Mode: uint32(perm),
			Append: !first, Data: data[at:end]})
		if err != nil {
			return fmt.Errorf("put file %s: %w", path, err)
		}
		at = end
	}
	return nil
}

// GetFile reads a small file of dom0.
func (d *Dom0) GetFile(ctx context.Context, path string) ([]byte, error) {
	data, err := d.call(ctx, wire.Message{Op: wire.OpGet, Path: path})
	if err != nil {
		return nil, fmt.Errorf("get file %s: %w", path, err)
	}
	return data, nil
}

// call sends a request and waits for done, gathering the data on the way.
func (d *Dom0) call(ctx context.Context, m wire.Message) (data []byte, err error) {
	done := make(chan error, 2) // its own end, and that of the whole dom0
	m.ID = d.register(func(ev wire.Message) {
		switch ev.Ev {
		case wire.EvOut:
			data = append(data, ev.Data...)
		case wire.EvDone:
			done <- nil
		case wire.EvError:
			done <- errors.New(ev.Text)
		}
	})
	defer d.forget(m.ID)
	if err := d.conn.Send(m); err != nil {
		return nil, err
	}
	select {
	case err := <-done:
		return data, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
