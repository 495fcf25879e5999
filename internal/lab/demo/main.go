// Command demo shows xen-disk's main job on real Xen: it boots a hypervisor,
// a dom0 and a guest called debian under QEMU, and runs the two examples of
// the README in front of the reader. make demo calls it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"xen-disk/internal/lab"
)

// limit bounds the whole demo once its images are built. It takes a minute on
// two idle cores.
const limit = 10 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// stage is the demo's scene: what it prints, and the machine it plays on.
type stage struct {
	out     io.Writer
	began   time.Time
	machine *lab.Machine
	guest   *lab.Guest
}

func run(ctx context.Context, out io.Writer) (err error) {
	s := &stage{out: out, began: time.Now()}
	s.say("Building the static binary, and getting Xen, Linux and QEMU ready.")
	s.say("The first time this downloads some 200 MB of packages; later it takes seconds.")
	if err := lab.Prepare(ctx, s.say); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "xen-disk-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "xen-disk")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "xen-disk")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build xen-disk: %w: %s", err, text)
	}
	s.say("Booting Xen and dom0 under QEMU, without hardware virtualisation.")
	s.machine, err = lab.Boot(ctx, lab.Options{ExtraFiles: map[string]string{"/usr/bin/xen-disk": binary}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.machine.Close()) }()
	if err := s.dom0(ctx, "xl info | grep -E '^(release|xen_version|virt_caps)'"); err != nil {
		return err
	}
	s.say("Starting a guest called debian.")
	s.guest, err = s.machine.StartGuest(ctx, lab.GuestOptions{Name: "debian"})
	if err != nil {
		return err
	}
	if err := s.dom0(ctx, "xl list"); err != nil {
		return err
	}
	if err := s.discard(ctx); err != nil {
		return fmt.Errorf("first example: %w", err)
	}
	if err := s.image(ctx); err != nil {
		return fmt.Errorf("second example: %w", err)
	}
	s.say("Both examples of the README ran on real Xen.")
	return nil
}

// discard is the seed's first example: the protocol alone.
func (s *stage) discard(ctx context.Context) error {
	s.title("Example 1: the performance of the disk protocol code")
	return s.connect(ctx, "xen-disk connect debian", func(vdev string) error {
		return s.inGuest(ctx, "dd if=/dev/"+vdev+" of=/dev/null bs=1M iflag=direct count=100")
	})
}

// image is the seed's second example: a file system made in dom0, used in the
// guest, and found clean in dom0.
func (s *stage) image(ctx context.Context) error {
	s.title("Example 2: an existing file as a virtual disk")
	for _, cmd := range []string{
		"dd if=/dev/zero of=disk.raw bs=1M count=1 seek=1K",
		"modprobe loop && losetup /dev/loop0 disk.raw",
		"mkfs.ext3 -q /dev/loop0",
		"losetup -d /dev/loop0",
	} {
		if err := s.dom0(ctx, cmd); err != nil {
			return err
		}
	}
	err := s.connect(ctx, "xen-disk connect debian --path disk.raw", func(vdev string) error {
		for _, cmd := range []string{
			"mkdir -p /mnt && mount -t ext3 /dev/" + vdev + " /mnt",
			"echo 'written in the guest' > /mnt/hello",
			"cat /mnt/hello",
			"df -h /mnt",
			"umount /mnt",
		} {
			if err := s.inGuest(ctx, cmd); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, cmd := range []string{
		"e2fsck -f -n disk.raw",
		"debugfs -R 'cat /hello' disk.raw 2>/dev/null | grep 'written in the guest'",
	} {
		if err := s.dom0(ctx, cmd); err != nil {
			return err
		}
	}
	return nil
}

var (
	deviceLine = regexp.MustCompile(`^Device: +(\S+) `)
	connected  = regexp.MustCompile(`^Connected:`)
)

// connect runs a command line of xen-disk in dom0, does what use does with
// the device, and presses Ctrl-C.
func (s *stage) connect(ctx context.Context, line string, use func(vdev string) error) error {
	s.prompt("dom0", line)
	p, err := s.machine.Dom0().Start(ctx, "sh", "-c", "cd /root 2>/dev/null || cd /tmp; exec "+line)
	if err != nil {
		return err
	}
	device, err := p.WaitLine(ctx, deviceLine)
	if err == nil {
		_, err = p.WaitLine(ctx, connected)
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s%s", line, err, p.Stdout(), p.Stderr())
	}
	shown := p.Stdout()
	s.print(shown)
	vdev := deviceLine.FindStringSubmatch(device)[1]
	if _, err := s.guest.MustRun(ctx, "until test -b /dev/"+vdev+"; do sleep 0.05; done"); err != nil {
		return err
	}
	if err := use(vdev); err != nil {
		return err
	}
	s.prompt("dom0", "^C")
	p.Signal(syscall.SIGINT)
	code, err := p.Wait(ctx)
	s.print(strings.TrimPrefix(p.Stdout(), shown) + p.Stderr())
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: exit code %d", line, code)
	}
	return err
}

// dom0 shows and runs a command in dom0.
func (s *stage) dom0(ctx context.Context, line string) error {
	s.prompt("dom0", line)
	out, err := s.machine.Dom0().Shell(ctx, "cd /root 2>/dev/null || cd /tmp; { "+line+"; } 2>&1")
	s.print(out)
	return err
}

// inGuest shows and runs a command in the guest.
func (s *stage) inGuest(ctx context.Context, line string) error {
	s.prompt("debian", line)
	out, err := s.guest.MustRun(ctx, line)
	s.print(out)
	return err
}

func (s *stage) say(text string) {
	fmt.Fprintf(s.out, "[%5.1fs] %s\n", time.Since(s.began).Seconds(), text)
}

func (s *stage) title(text string) { fmt.Fprintf(s.out, "\n== %s\n", text) }

func (s *stage) prompt(where, line string) { fmt.Fprintf(s.out, "%s# %s\n", where, line) }

func (s *stage) print(text string) {
	if text = strings.TrimRight(text, "\n"); text != "" {
		fmt.Fprintln(s.out, text)
	}
}
