package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options say what to boot. The zero value boots the default suite.
type Options struct {
	Suite         string            // Debian suite; default DefaultSuite
	Icount        bool              // count instructions instead of time: one core, reproducible
	Dom0VCPUs     int               // default 1
	MemoryMiB     int               // of the whole machine; default 3072
	Dom0MemoryMiB int               // default 1400
	XenArgs       string            // added to the hypervisor's command line
	Console       io.Writer         // gets what hypervisor and dom0 print; may be nil
	Share         string            // host directory that dom0 sees as /share; default a temporary one
	ExtraFiles    map[string]string // path in dom0 -> file on the host; modes are kept
	Log           func(string)      // told the steps of Prepare; may be nil
}

// bootTimeout bounds a boot where the context has no deadline. A boot takes
// 15 s on two idle cores; a loaded CI machine is ten times slower.
const bootTimeout = 4 * time.Minute

// consoleTailLines is how much of the console an error shows.
const consoleTailLines = 40

// Machine is a running hypervisor with its dom0.
type Machine struct {
	opts    Options
	images  string // the directory that dom0 sees as /lab
	work    string // private files of this machine
	share   string
	console *transcript
	qemu    *qemu
	dom0    *Dom0
	guests  atomic.Int64 // started so far, to name them
	dmesg   sync.Mutex   // held while the hypervisor's log is read and cleared

	closeOnce sync.Once
	closeErr  error
}

// Boot prepares the suite if it must, and starts a machine. It returns when
// dom0's agent has answered and Xen's daemons run.
func Boot(ctx context.Context, opts Options) (*Machine, error) {
	opts.defaults()
	images, err := prepare(ctx, opts.Suite, opts.Log)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "xen-disk-lab-")
	if err != nil {
		return nil, err
	}
	m := &Machine{opts: opts, images: images, work: work, share: opts.Share, console: newTranscript()}
	if err := m.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("boot: %w\n%s", err, m.console.tail(consoleTailLines)), m.Close())
	}
	return m, nil
}

func (o *Options) defaults() {
	if o.Suite == "" {
		o.Suite = DefaultSuite
	}
	if o.Dom0VCPUs == 0 {
		o.Dom0VCPUs = 1
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 3072
	}
	if o.Dom0MemoryMiB == 0 {
		o.Dom0MemoryMiB = 1400
	}
}

func (m *Machine) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if m.share == "" {
		m.share = filepath.Join(m.work, "share")
		if err := os.Mkdir(m.share, 0o755); err != nil {
			return err
		}
	}
	agent := filepath.Join(m.work, "agent")
	if err := buildAgent(ctx, agent); err != nil {
		return err
	}
	initrd := filepath.Join(m.work, "dom0.cpio")
	if err := m.writeInitrd(initrd, agent); err != nil {
		return err
	}
	var sink io.Writer = m.console
	if m.opts.Console != nil {
		sink = io.MultiWriter(m.console, m.opts.Console)
	}
	q, err := startQEMU(m.opts, m.images, initrd, m.share, sink)
	if err != nil {
		return err
	}
	m.qemu = q
	m.dom0 = newDom0(m, q.agent)
	go func() { // ends with QEMU
		<-q.done
		m.console.close(fmt.Errorf("the machine is off: qemu: %w", q.err))
		m.dom0.fail(fmt.Errorf("the machine is off: qemu: %w", q.err))
	}()
	go m.watchConsole()
	return m.dom0.waitHello(ctx)
}

// fatal are the console's ways to say that nothing more will come.
var fatal = []string{"lab: dom0 init failed", "noreboot' set", "Manual reset required"}

// watchConsole fails all calls when the hypervisor or dom0 dies, since then
// QEMU goes on but nobody answers. It ends with the console.
func (m *Machine) watchConsole() {
	from := 0
	err := m.console.wait(context.Background(), 0, func(text string) bool {
		for _, s := range fatal {
			if strings.Contains(text[min(from, len(text)):], s) {
				return true
			}
		}
		from = max(0, len(text)-100) // a message may arrive in two pieces
		return false
	})
	if err == nil {
		m.dom0.fail(errors.New("the machine died: see its console"))
	}
}

// writeInitrd appends an archive with the agent and the caller's extra files
// to the suite's dom0 image: Linux unpacks one after the other.
func (m *Machine) writeInitrd(path, agent string) error {
	extra := tree{}
	files := map[string]string{"/usr/bin/lab-agent": agent}
	for to, from := range m.opts.ExtraFiles {
		files[to] = from
	}
	for to, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		extra.file(to, info.Mode().Perm()|fs.FileMode(0o400), data)
	}
	base, err := os.Open(filepath.Join(m.images, "dom0.cpio"))
	if err != nil {
		return err
	}
	defer base.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, base); err != nil {
		f.Close()
		return err
	}
	if err := extra.writeTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// Dom0 returns the machine's control domain.
func (m *Machine) Dom0() *Dom0 { return m.dom0 }

// ShareDir is the host directory that dom0 sees as /share.
func (m *Machine) ShareDir() string { return m.share }

// ConsoleLog returns what hypervisor and dom0 have printed.
func (m *Machine) ConsoleLog() string { return m.console.String() }

// Close ends the machine and removes its temporary files. Nothing in it is
// worth an orderly shutdown: it lives in memory, and the share's files are on
// the host already.
func (m *Machine) Close() error {
	m.closeOnce.Do(func() {
		if m.qemu != nil {
			m.qemu.kill()
		}
		m.closeErr = os.RemoveAll(m.work)
	})
	return m.closeErr
}
