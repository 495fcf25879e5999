package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// imageRig runs image commands on a machine without Xen, in a directory of its
// own, and keeps what they print.
type imageRig struct {
	env      environment
	out, err bytes.Buffer
	session  strings.Builder   // commands and answers, for golden files
	hide     *strings.Replacer // what differs from run to run; may be nil
	uuids    map[string]string // that steady has seen
}

// newImageRig's end checks that descriptors and goroutines are as they were.
func newImageRig(t *testing.T) *imageRig {
	t.Helper()
	t.Chdir(t.TempDir())
	r := &imageRig{uuids: map[string]string{}}
	r.env = environment{
		stdout: &r.out, stderr: &r.err, version: "xen-disk test",
		untilSignal: func() (context.Context, func()) { return context.WithCancel(context.Background()) },
	}
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		if got := openFDs(t); got != fds {
			t.Errorf("open descriptors: got %d, want %d", got, fds)
		}
	})
	return r
}

// run runs a command line whose words are split at spaces, and checks its exit
// code, and that its answer fits a terminal.
func (r *imageRig) run(t *testing.T, want int, line string) {
	t.Helper()
	if code := r.answer(t, line); code != want {
		t.Errorf("%s: exit code %d, want %d\n%s%s", line, code, want, &r.out, &r.err)
	}
}

// answer is run for any exit code.
func (r *imageRig) answer(t *testing.T, line string) (code int) {
	t.Helper()
	r.out.Reset()
	r.err.Reset()
	code = run(strings.Fields("image "+line), &r.env)
	if strings.Count(r.err.String(), "\n") > 3 {
		t.Errorf("%s: an error of more than three lines:\n%s", line, &r.err)
	}
	if !strings.Contains(line, "--json") {
		narrow(t, r.out.String())
	}
	narrow(t, r.err.String())
	said := r.out.String() + r.err.String()
	if r.hide != nil {
		said = r.hide.Replace(said)
	}
	fmt.Fprintf(&r.session, "$ xen-disk image %s\n%s", line, said)
	if code != exitOK {
		fmt.Fprintf(&r.session, "(exit code %d)\n", code)
	}
	r.session.WriteString("\n")
	return code
}

// made runs what is no part of the session.
func (r *imageRig) made(t *testing.T, line string) {
	t.Helper()
	before := r.session.String()
	r.run(t, exitOK, line)
	r.out.Reset()
	r.session.Reset()
	r.session.WriteString(before)
}

// note explains the next commands in the golden file.
func (r *imageRig) note(text string) { r.session.WriteString("# " + text + "\n") }

// stopAtOnce makes each command find a signal that has come already.
func (r *imageRig) stopAtOnce() {
	r.env.untilSignal = func() (context.Context, func()) {
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(&stoppedError{unix.SIGINT})
		return ctx, func() {}
	}
}

// steady replaces what differs from run to run: UUIDs by the numbers of their
// first appearance, times, and what a file takes on this file system.
func (r *imageRig) steady(text string) string {
	text = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`).ReplaceAllStringFunc(text, func(u string) string {
		if r.uuids[u] == "" {
			r.uuids[u] = fmt.Sprintf("00000000-0000-0000-0000-%012d", len(r.uuids)+1)
		}
		return r.uuids[u]
	})
	text = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(Z| UTC)?`).ReplaceAllString(text, "2026-01-02T03:04:05Z")
	text = regexp.MustCompile(`it takes .* on its`).ReplaceAllString(text, "it takes 4.0 KiB on its")
	text = regexp.MustCompile(`("disk_usage": )\d+`).ReplaceAllString(text, "${1}4096")
	return text
}

// writeAt puts a text into a file that is there, or makes it.
func writeAt(t *testing.T, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
