package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/internal/blkback"
	"xen-disk/internal/fakexen"
	"xen-disk/xs"
)

// roleVar makes the test binary a child that plays a role; what only whole
// processes can show is tested so.
const roleVar = "XEN_DISK_TEST_ROLE"

// nobody is a user without rights.
const nobody = 65534

func itoa(n int) string { return strconv.Itoa(n) }

// child plays a role and returns an exit code.
func child(role string) int {
	r, err := makeRig()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 100
	}
	r.env.stdout, r.env.stderr = os.Stdout, os.Stderr
	r.env.signals, r.env.ready = signals, ready
	switch role {
	case "denied store", "denied door":
		return denied(r, role)
	case "early":
		return run([]string{"connect", "debian"}, early(r))
	case "stuck":
		return stuck(r)
	case "stopped", "stuck work":
		return worksUntilSignal(role)
	}
	if strings.HasPrefix(role, "image ") || strings.HasPrefix(role, "export ") {
		return Main(strings.Fields(role), "")
	}
	return served(r)
}

// served connects a disk to a guest that takes it. For each line on standard
// input the guest writes and reads; the answer goes to standard error.
func served(r *rig) int {
	r.start("connect", "debian")
	front, err := takes(r)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 101
	}
	go func() { // until the process ends
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			err := front.Write(context.Background(), 0, make([]byte, 4096))
			fmt.Fprintf(os.Stderr, "write: %v, connects: %d\n", err, front.Connects())
			if lines.Text() == "reset" {
				err := errors.Join(front.Reset(), front.WaitConnected(context.Background()))
				fmt.Fprintf(os.Stderr, "reset: %v\n", err)
			}
		}
	}()
	return <-r.finished
}

// takes starts the guest's driver once the device is there.
func takes(r *rig) (*fakexen.Blkfront, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dir := fmt.Sprintf("/local/domain/%d/device/vbd/%d/state", guestID, xvda)
	s := r.x.Store(0)
	defer s.Close()
	if err := s.WaitValue(ctx, dir, "1"); err != nil {
		return nil, err
	}
	front, err := fakexen.NewBlkfront(r.m, guestID, xvda, fakexen.Options{ABI: "x86_64-abi"})
	if err != nil {
		return nil, err
	}
	return front, front.WaitConnected(ctx)
}

// early never gets an answer from xenstored, so no device is made.
func early(r *rig) *environment {
	r.x.OnRequest(func(kind, path string) {
		fmt.Fprintln(os.Stdout, "asked")
		select {}
	})
	return r.env
}

// stuck is served by a xenstored that answers no more once the guest has the
// disk.
func stuck(r *rig) int {
	r.start("connect", "debian")
	if _, err := takes(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 101
	}
	r.x.OnRequest(func(kind, path string) {
		fmt.Fprintln(os.Stderr, "asked")
		select {}
	})
	fmt.Fprintln(os.Stderr, "deaf")
	return <-r.finished
}

// denied runs the command as a user who may not use the socket or the device.
func denied(r *rig, role string) int {
	dir, err := os.MkdirTemp("", "denied")
	if err != nil {
		return 102
	}
	defer os.RemoveAll(dir)
	device := filepath.Join(dir, "gntdev")
	if role == "denied store" {
		err = os.Chmod(r.x.Path(), 0)
	} else {
		err = errors.Join(os.WriteFile(device, nil, 0), os.Chmod(filepath.Dir(r.x.Path()), 0o755),
			os.Chmod(r.x.Path(), 0o777), os.Chmod(dir, 0o755))
	}
	if os.Geteuid() == 0 {
		err = errors.Join(err, syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 103
	}
	r.env.dial = func() (*xs.Conn, error) { return xs.Open(r.x.Path()) }
	r.env.openXen = func() (blkback.Xen, error) {
		fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(errors.New("it could be opened"), unix.Close(fd))
		}
		return nil, &fs.PathError{Op: "open", Path: device, Err: err}
	}
	return run([]string{"connect", "debian"}, r.env)
}

// process is a child as its parent sees it.
type process struct {
	cmd         *exec.Cmd
	stdin       io.WriteCloser
	out         *os.File
	stdout, err *bufio.Reader
}

func startChild(t *testing.T, role string, wrapper ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(wrapper, self)
	p := &process{cmd: exec.CommandContext(deadline(t), args[0], args[1:]...)}
	dir := t.TempDir()
	// A child without rights must come as far as the socket.
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	p.cmd.Env = append(os.Environ(), roleVar+"="+role, "TMPDIR="+dir)
	out, child, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	p.cmd.Stdout = child
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := startHearing(p.cmd); err != nil {
		t.Fatal(err)
	}
	_ = child.Close()
	t.Cleanup(func() { // where the test did not come to the end
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	p.out, p.stdout, p.err = out, bufio.NewReader(out), bufio.NewReader(stderr)
	return p
}

// startHearing starts a process that ignores no signal, whatever the test does:
// CI may run it under nohup or in the background of a shell. What a process
// handles, as this one does meanwhile, is back at its default after exec.
func startHearing(cmd *exec.Cmd) error {
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(heard)
	return cmd.Start()
}

// line reads until a line that begins with a text.
func line(t *testing.T, r *bufio.Reader, text string) string {
	t.Helper()
	for seen := ""; ; {
		line, err := r.ReadString('\n')
		seen += line
		if strings.HasPrefix(line, text) {
			return line
		}
		if err != nil {
			t.Fatalf("no line %q: %v\n%s", text, err, seen)
		}
	}
}

// wait returns what was not yet read, and how the process ended.
func (p *process) wait(t *testing.T) (stdout, stderr string, state *os.ProcessState) {
	t.Helper()
	out, _ := io.ReadAll(p.stdout) // fails where the test has closed it
	errs, err := io.ReadAll(p.err)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait() // the state says it
	return string(out), string(errs), p.cmd.ProcessState
}

// TestSignals: all that ask for an end do it in order.
func TestSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			p := startChild(t, "served")
			line(t, p.stdout, "Connected:")
			if err := p.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			out, errs, state := p.wait(t)
			if state.ExitCode() != 0 || !strings.Contains(out, "\nDetached.\n") || errs != "" {
				t.Errorf("%v\n%s%s", state, out, errs)
			}
		})
	}
}

// TestNohup: the end of the terminal does not end what was to outlive it.
func TestNohup(t *testing.T) {
	p := startChild(t, "served", "sh", "-c", `trap "" HUP; exec "$0"`)
	line(t, p.stdout, "Connected:")
	if err := p.cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.stdin, "write\n"); err != nil {
		t.Fatal(err)
	}
	line(t, p.err, "write: <nil>, connects: 1")
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if out, errs, state := p.wait(t); state.ExitCode() != 0 {
		t.Errorf("%v\n%s%s", state, out, errs)
	}
}

// TestEarlySignal: before a device is made a signal just ends the process.
func TestEarlySignal(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			p := startChild(t, "early")
			line(t, p.stdout, "asked")
			if err := p.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			out, errs, state := p.wait(t)
			if state.Sys().(syscall.WaitStatus).Signal() != sig {
				t.Errorf("%v\n%s%s", state, out, errs)
			}
		})
	}
}

// TestThirdSignal: where xenstored does not answer, three signals end it.
func TestThirdSignal(t *testing.T) {
	p := startChild(t, "stuck")
	line(t, p.err, "deaf")
	line(t, p.stdout, "Connected:")
	for _, said := range []string{"Asking", "Taking", ""} {
		if err := p.cmd.Process.Signal(unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		if said != "" { // the kernel merges signals that come together
			line(t, p.stdout, said)
		}
	}
	out, errs, state := p.wait(t)
	if state.ExitCode() != exitFailed || !strings.Contains(errs, "xen-disk: ended without detaching xvda in order\n") {
		t.Errorf("%v\n%s%s", state, out, errs)
	}
}

// TestClosedOutput: the disk is served on when nobody reads what is printed.
func TestClosedOutput(t *testing.T) {
	p := startChild(t, "served")
	line(t, p.stdout, "Connected:")
	if err := p.out.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ say, want string }{
		{"reset", "reset: <nil>"}, // makes it print
		{"write", "write: <nil>, connects: 2"},
	} {
		if _, err := io.WriteString(p.stdin, c.say+"\n"); err != nil {
			t.Fatal(err)
		}
		line(t, p.err, c.want)
	}
	if err := p.cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, errs, state := p.wait(t); state.ExitCode() != 0 {
		t.Errorf("%v\n%s", state, errs)
	}
}

// TestNotRoot: really as another user where the test runs as root.
func TestNotRoot(t *testing.T) {
	for _, role := range []string{"denied store", "denied door"} {
		t.Run(role, func(t *testing.T) {
			out, errs, state := startChild(t, role).wait(t)
			if state.ExitCode() != exitFailed || out != "" || strings.Count(errs, "\n") != 3 ||
				!strings.HasPrefix(errs, "xen-disk: not allowed to talk to Xen\n") ||
				!strings.Contains(errs, "permission denied\n  hint: run xen-disk as root\n") {
				t.Errorf("%v\n%s%s", state, out, errs)
			}
		})
	}
}
