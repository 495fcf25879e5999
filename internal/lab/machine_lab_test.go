//go:build lab

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDom0Processes(t *testing.T) {
	ctx := testContext(t)
	d := machine.Dom0()
	t.Run("exit error", func(t *testing.T) {
		_, err := d.Shell(ctx, "echo out; echo bad >&2; exit 3")
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != 3 || exit.Stderr != "bad\n" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		if _, err := d.Run(ctx, "/no/such"); err == nil || !strings.Contains(err.Error(), "/no/such") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("lines, input, signal", func(t *testing.T) {
		p, err := d.StartCommand(ctx, Command{KeepInput: true, Env: []string{"WORD=there"}, Dir: "/tmp",
			Argv: []string{"sh", "-c", `echo hello $WORD in $PWD; read line; echo got $line; exec sleep 1000`}})
		if err != nil {
			t.Fatal(err)
		}
		if line, err := p.WaitLine(ctx, regexp.MustCompile("hello")); line != "hello there in /tmp" || err != nil {
			t.Errorf("got %q, %v", line, err)
		}
		fmt.Fprintln(p, "a line")
		if line, err := p.WaitLine(ctx, regexp.MustCompile("got")); line != "got a line" || err != nil {
			t.Errorf("got %q, %v", line, err)
		}
		p.Signal(syscall.SIGTERM)
		if code, err := p.Wait(ctx); code != 128+15 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("a daemon keeps the output open", func(t *testing.T) {
		out, err := d.Shell(ctx, "sleep 1000 & echo $!")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Run(ctx, "kill", strings.TrimSpace(out)); err != nil {
			t.Error(err)
		}
	})
	t.Run("files", func(t *testing.T) {
		want := strings.Repeat("0123456789", 10000)
		if err := d.PutFile(ctx, "/tmp/deep/file", []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := d.GetFile(ctx, "/tmp/deep/file")
		if string(got) != want || err != nil {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if _, err := d.GetFile(ctx, "/tmp/none"); err == nil {
			t.Error("read a file that is not there")
		}
	})
	t.Run("share", func(t *testing.T) {
		if _, err := d.Shell(ctx, "echo from dom0 >/share/note"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(machine.ShareDir(), "note"))
		if string(got) != "from dom0\n" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestLeakSnapshotSeesALeak(t *testing.T) {
	ctx := testContext(t)
	before, err := machine.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	g, err := machine.StartGuest(ctx, GuestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := machine.Dom0().Run(ctx, "xenstore-write", "/local/domain/0/backend/vbd/99/1/state", "6"); err != nil {
		t.Fatal(err)
	}
	after, err := machine.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(Leaks(before, after), "\n")
	for _, want := range []string{
		`xenstore: /local/domain/0/backend/vbd/99/1/state = "6"`,
		fmt.Sprintf("domain: %d %s", g.DomID(), g.Name()),
		fmt.Sprintf("Remote Domain %d", g.DomID()),
		fmt.Sprintf("grant: d%d ", g.DomID()),
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in the leaks:\n%s", want, all)
		}
	}
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := machine.Dom0().Run(ctx, "xenstore-rm", "/local/domain/0/backend/vbd/99"); err != nil {
		t.Fatal(err)
	}
	leaks, err := machine.LeaksSince(ctx, before)
	if err != nil {
		t.Fatal(err)
	}
	for _, leak := range leaks {
		// libxl and xenstore-write leave the empty directories above.
		if !strings.Contains(leak, `= "" (`) {
			t.Errorf("left: %s", leak)
		}
	}
}

// TestQEMUDiesWithItsStarter starts an emulator in another process, kills
// that with a signal that it cannot catch, and waits for the emulator's end.
func TestQEMUDiesWithItsStarter(t *testing.T) {
	if os.Getenv("LAB_TEST_STARTER") != "" {
		starter()
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestQEMUDiesWithItsStarter$")
	cmd.Env = append(os.Environ(), "LAB_TEST_STARTER=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cmd.Process.Kill()
	cmd.Wait()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if n != 1 || err != nil {
		t.Errorf("qemu %d lives on: %d, %v", pid, n, err)
	}
}

// starter runs in the other process.
func starter() {
	dir, err := os.MkdirTemp("", "xen-disk-lab-")
	if err != nil {
		panic(err)
	}
	images, err := prepare(context.Background(), DefaultSuite, nil)
	if err != nil {
		panic(err)
	}
	var o Options
	o.defaults()
	q, err := startQEMU(o, images, filepath.Join(images, "dom0.cpio"), dir, newTranscript())
	if err != nil {
		panic(err)
	}
	os.Remove(dir)
	fmt.Println(q.cmd.Process.Pid)
	<-q.done
	os.Exit(0)
}

// TestIcount boots a second machine that counts instructions: two runs of one
// job must take the same guest time within a few percent.
func TestIcount(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	m, err := Boot(ctx, Options{Icount: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g, err := m.StartGuest(ctx, GuestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var seconds [2]float64
	for i := range seconds {
		out, err := g.MustRun(ctx, `read a rest </proc/uptime
			i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done
			read b rest </proc/uptime; awk "BEGIN { print $b - $a }"`)
		if err != nil {
			t.Fatal(err)
		}
		if seconds[i], err = strconv.ParseFloat(strings.TrimSpace(out), 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v s", seconds)
	if ratio := seconds[0] / seconds[1]; ratio < 0.9 || ratio > 1.1 {
		t.Errorf("got %v s, want them equal", seconds)
	}
}
