package lab

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"xen-disk/internal/lab/wire"
)

// The types of a guest, as xl spells them.
const (
	PV  = "pv"
	PVH = "pvh"
)

// GuestOptions say what guest to start. The zero value is a PV guest with the
// lab's own kernel and initramfs, which answers Run.
type GuestOptions struct {
	Name      string   // default "guest<n>"
	Type      string   // PV (default) or PVH
	VCPUs     int      // default 1
	MemoryMiB int      // default 192; 384 with Fio
	Fio       bool     // use the larger initramfs, which has fio
	Blkfront  []string // parameters of xen_blkfront, "max_queues=1"
	Args      string   // added to the guest kernel's command line

	// Kernel and Ramdisk are paths in dom0 of what to boot instead, GRUB for
	// one. Then nothing answers Run, and StartGuest waits for nothing.
	Kernel, Ramdisk string

	Paused      bool   // create only; Unpause and WaitReady are the caller's
	ExtraConfig string // lines added to the xl configuration, "disk = [...]"
}

func (o *GuestOptions) defaults(number int64) {
	if o.Name == "" {
		o.Name = fmt.Sprintf("guest%d", number)
	}
	if o.Type == "" {
		o.Type = PV
	}
	if o.VCPUs == 0 {
		o.VCPUs = 1
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 192
		if o.Fio {
			o.MemoryMiB = 384
		}
	}
}

// xlConfig writes the guest's xl configuration.
func (o GuestOptions) xlConfig() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("name = %q", o.Name)
	line("type = %q", o.Type)
	if o.Kernel != "" {
		line("kernel = %q", o.Kernel)
		if o.Ramdisk != "" {
			line("ramdisk = %q", o.Ramdisk)
		}
		if o.Args != "" {
			line("extra = %q", o.Args)
		}
	} else {
		ramdisk := "/lab/guest.cpio"
		if o.Fio {
			ramdisk = "/lab/guest-fio.cpio"
		}
		line("kernel = %q", "/lab/vmlinux")
		line("ramdisk = %q", ramdisk)
		args := []string{"console=hvc0", "mitigations=off", "rodata=off", "quiet", "panic=1", "rdinit=/init"}
		for _, p := range o.Blkfront {
			args = append(args, "xen_blkfront."+p)
		}
		if o.Args != "" {
			args = append(args, o.Args)
		}
		line("extra = %q", strings.Join(args, " "))
	}
	line("vcpus = %d", o.VCPUs)
	line("memory = %d", o.MemoryMiB)
	if o.Type == PVH {
		line("tsc_mode = %q", "native") // the emulated TSC needs what the lab's CPU hides
	}
	for _, event := range []string{"on_poweroff", "on_reboot", "on_crash"} {
		line("%s = %q", event, "destroy")
	}
	b.WriteString(o.ExtraConfig)
	if o.ExtraConfig != "" && !strings.HasSuffix(o.ExtraConfig, "\n") {
		b.WriteByte('\n')
	}
	return b.String()
}

// Guest is a guest of a machine. Its methods may be called from many
// goroutines; several Runs go side by side.
type Guest struct {
	m       *Machine
	opts    GuestOptions
	domid   int
	console *transcript
	tty     uint64 // the relay's ID at the agent

	mu   sync.Mutex
	jobs int // sent so far, to name them
}

// StartGuest creates a guest and, unless it is to stay paused or boots a
// kernel of the caller's, waits until it answers Run. The console is attached
// before the guest's first instruction.
func (m *Machine) StartGuest(ctx context.Context, o GuestOptions) (*Guest, error) {
	o.defaults(m.guests.Add(1))
	conf := "/run/" + o.Name + ".cfg"
	if err := m.dom0.PutFile(ctx, conf, []byte(o.xlConfig()), 0o644); err != nil {
		return nil, err
	}
	out, err := m.dom0.Shell(ctx, fmt.Sprintf("xl create -q -p %s >&2 && xl domid %s", conf, o.Name))
	if err != nil {
		return nil, fmt.Errorf("create guest %s: %w", o.Name, err)
	}
	domid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return nil, fmt.Errorf("create guest %s: %w", o.Name, err)
	}
	g := &Guest{m: m, opts: o, domid: domid, console: newTranscript()}
	if err := g.attach(ctx); err != nil {
		return nil, errors.Join(err, g.Destroy(ctx))
	}
	if o.Paused {
		return g, nil
	}
	if err := g.Unpause(ctx); err != nil {
		return nil, errors.Join(err, g.Destroy(ctx))
	}
	if o.Kernel != "" {
		return g, nil
	}
	if err := g.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, g.Destroy(context.WithoutCancel(ctx)))
	}
	return g, nil
}

// attach finds the terminal that xenconsoled made for the guest and relays it.
func (g *Guest) attach(ctx context.Context) error {
	path, err := g.ttyPath(ctx)
	if err != nil {
		return fmt.Errorf("find console of %s: %w", g.opts.Name, err)
	}
	started := make(chan error, 2)
	g.tty = g.m.dom0.register(func(m wire.Message) {
		switch m.Ev {
		case wire.EvStarted:
			started <- nil
		case wire.EvOut:
			g.console.Write(m.Data)
		case wire.EvDone:
			g.console.close(fmt.Errorf("the console of %s is gone", g.opts.Name))
		case wire.EvError:
			err := errors.New(m.Text)
			g.console.close(err)
			select {
			case started <- err:
			default:
			}
		}
	})
	if err := g.m.dom0.conn.Send(wire.Message{ID: g.tty, Op: wire.OpConsole, Path: path}); err != nil {
		return err
	}
	select {
	case err := <-started:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ttyPath waits for xenconsoled, which takes note of a guest some time after
// xl has created it.
func (g *Guest) ttyPath(ctx context.Context) (string, error) {
	node := fmt.Sprintf("/local/domain/%d/console/tty", g.domid)
	read := func() string {
		out, err := g.m.dom0.Run(ctx, "xenstore-read", node)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(out)
	}
	if path := read(); path != "" {
		return path, nil
	}
	watch, err := g.m.dom0.Start(ctx, "xenstore-watch", node)
	if err != nil {
		return "", err
	}
	defer watch.Signal(9)
	for {
		if _, err := watch.WaitLine(ctx, regexp.MustCompile("tty")); err != nil {
			return "", err
		}
		if path := read(); path != "" {
			return path, nil
		}
	}
}

// DomID is the guest's domain id.
func (g *Guest) DomID() int { return g.domid }

// Name is the guest's name.
func (g *Guest) Name() string { return g.opts.Name }

// ConsoleLog returns what the guest has printed.
func (g *Guest) ConsoleLog() string { return g.console.String() }

// Unpause lets a paused guest run.
func (g *Guest) Unpause(ctx context.Context) error {
	_, err := g.m.dom0.Run(ctx, "xl", "unpause", g.opts.Name)
	return err
}

// WaitConsole waits until the console has printed something that matches, and
// returns the match and its groups.
func (g *Guest) WaitConsole(ctx context.Context, re *regexp.Regexp) (match []string, err error) {
	err = g.console.wait(ctx, 0, func(text string) bool {
		match = re.FindStringSubmatch(text)
		return match != nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for %q on the console of %s: %w\n%s",
			re, g.opts.Name, err, g.console.tail(consoleTailLines))
	}
	return match, nil
}

// WaitReady waits until the guest answers Run.
func (g *Guest) WaitReady(ctx context.Context) error {
	_, err := g.WaitConsole(ctx, regexp.MustCompile(`<guest:ready>`))
	return err
}

// Send types bytes on the guest's console.
func (g *Guest) Send(text string) error {
	return g.m.dom0.conn.Send(wire.Message{ID: g.tty, Op: wire.OpInput, Data: []byte(text)})
}

// Destroy ends the guest at once, as a power cut would. A guest that is gone
// already is no error.
func (g *Guest) Destroy(ctx context.Context) error {
	g.m.dom0.conn.Send(wire.Message{ID: g.tty, Op: wire.OpClose})
	_, err := g.m.dom0.Run(ctx, "xl", "destroy", strconv.Itoa(g.domid))
	g.m.dom0.forget(g.tty)
	g.console.close(fmt.Errorf("guest %s is destroyed", g.opts.Name))
	if err != nil && !g.alive(ctx) {
		return nil
	}
	return err
}

func (g *Guest) alive(ctx context.Context) bool {
	_, err := g.m.dom0.Run(ctx, "xl", "domname", strconv.Itoa(g.domid))
	return err == nil
}
