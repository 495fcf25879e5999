package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal makes a terminal of 80 columns: what a person sees is read from
// screen.
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	screen = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { screen.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	size := unix.Winsize{Row: 24, Col: columns}
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &size); err != nil {
		t.Fatal(err)
	}
	return screen, terminal
}

// TestProgress: a terminal shows how much is done, in one line that fits and
// goes away.
func TestProgress(t *testing.T) {
	screen, terminal := openTerminal(t)
	show, end := startProgress(terminal, "Converting", inBytes)
	show(0, 1<<30)
	show(512<<20, 1<<30)
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "512.0 MiB / 1.0 GiB") {
		n, err := screen.Read(buf)
		if err != nil {
			t.Fatalf("%v; seen:\n%q", err, &seen)
		}
		seen.Write(buf[:n])
	}
	show(1<<30, 1<<30)
	end()
	terminal.Close() // so that what is to be read has an end
	rest, _ := io.ReadAll(screen)
	if !strings.HasSuffix(string(rest), "\x1b[1A\x1b[J") {
		t.Errorf("the bar stays: %q", rest)
	}
	line, _, _ := strings.Cut(seen.String()[strings.Index(seen.String(), "Converting"):], "\r\n")
	if !strings.Contains(seen.String(), "iB/s") || !strings.Contains(seen.String(), "[###") {
		t.Errorf("no bar and rate in %q", &seen)
	}
	if len(line) > columns {
		t.Errorf("a bar of %d columns: %q", len(line), line)
	}
}

// TestProgressElsewhere: what is no terminal is not drawn upon.
func TestProgressElsewhere(t *testing.T) {
	var out bytes.Buffer
	show, end := startProgress(&out, "Converting", inBytes)
	show(1, 2)
	end()
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	show, end = startProgress(file, "Converting", inBytes)
	show(1, 2)
	end()
	if st, err := file.Stat(); err != nil || st.Size() != 0 || out.Len() != 0 {
		t.Errorf("drawn: %q, %v", &out, err)
	}
}

// worksUntilSignal is the child of TestStopped. It converts once a signal has
// come.
func worksUntilSignal(role string) int {
	if err := errors.Join(os.Chdir(os.TempDir()), os.WriteFile("in.raw", make([]byte, 1<<20), 0o600)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 104
	}
	env := &environment{stdout: os.Stdout, stderr: os.Stderr}
	env.untilSignal = func() (context.Context, func()) {
		ctx, stop := untilSignal()
		fmt.Fprintln(os.Stderr, "working")
		<-ctx.Done()
		if role == "stuck work" {
			fmt.Fprintln(os.Stderr, "heard")
			select {}
		}
		return ctx, stop
	}
	return dieOf(run([]string{"image", "convert", "in.raw", "out.raw"}, env))
}

// TestStopped: long work dies of its signal, as a shell must see, and the
// second one does not wait for anybody.
func TestStopped(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			for _, role := range []string{"stopped", "stuck work"} {
				p := startChild(t, role)
				line(t, p.err, "working")
				if err := p.cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				if role == "stuck work" {
					line(t, p.err, "heard")
					if err := p.cmd.Process.Signal(sig); err != nil {
						t.Fatal(err)
					}
				}
				out, errs, state := p.wait(t)
				if state.Sys().(syscall.WaitStatus).Signal() != sig || out != "" {
					t.Errorf("%s: %v\n%s%s", role, state, out, errs)
				}
				if want := fmt.Sprintf("xen-disk: stopped by %s\n  out.raw was removed again\n", unix.SignalName(sig)); role == "stopped" && !strings.HasSuffix(errs, want) {
					t.Errorf("it says %q, want %q", errs, want)
				}
			}
		})
	}
}
