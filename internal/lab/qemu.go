package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// qemu is one emulator process.
type qemu struct {
	cmd   *exec.Cmd
	agent *os.File      // our end of the agent's port
	done  chan struct{} // closed when the process is gone
	err   error         // valid after done: how it ended
}

// agentFD is the number of the agent's socket in QEMU: the first of
// exec.Cmd.ExtraFiles.
const agentFD = 3

// qemuArgs is the command line that is known to boot Xen without hardware
// virtualisation:
//
//   - "max" offers SVM with nested paging, which PVH guests need;
//   - without smap, since QEMU 7.2's iret faults with it in a PV dom0;
//   - without rdtscp, since its nested intercept kills PVH guests;
//   - without AVX, since its state is lost when a PVH guest is switched to:
//     a C library that uses it dies of an invalid opcode.
func qemuArgs(o Options, images, initrd, share string) []string {
	accel := []string{"-accel", "tcg,thread=multi"}
	if o.Icount {
		// Every executed instruction is one nanosecond of guest time.
		accel = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"}
	}
	xen := fmt.Sprintf("console=com1 com1=115200,8n1 dom0_mem=%dM,max:%dM dom0_max_vcpus=%d "+
		"loglvl=warning guest_loglvl=warning noreboot=1 spec-ctrl=no sched=credit %s",
		o.Dom0MemoryMiB, o.Dom0MemoryMiB, o.Dom0VCPUs, o.XenArgs)
	linux := "console=hvc0 mitigations=off rodata=off quiet panic=1 rdinit=/init"
	return append(accel,
		"-cpu", "max,-smap,-rdtscp,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq", "-smp", "2", "-m", strconv.Itoa(o.MemoryMiB),
		"-nodefaults", "-display", "none", "-no-reboot", "-monitor", "none", "-serial", "stdio",
		"-kernel", filepath.Join(images, "xen"), "-append", strings.TrimSpace(xen),
		"-initrd", filepath.Join(images, "vmlinux")+" "+linux+","+initrd,
		"-fsdev", "local,id=share,path="+share+",security_model=none,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
		"-fsdev", "local,id=lab,path="+images+",security_model=none,readonly=on",
		"-device", "virtio-9p-pci,fsdev=lab,mount_tag=lab",
		"-chardev", "socket,id=agent,fd="+strconv.Itoa(agentFD),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent",
	)
}

// startQEMU starts the emulator. It dies with this process, even when that is
// killed: the kernel signals it when the thread that started it ends, so one
// thread is kept for that.
func startQEMU(o Options, images, initrd, share string, console io.Writer) (*qemu, error) {
	for _, path := range []string{images, initrd, share} {
		if strings.Contains(path, ",") {
			return nil, fmt.Errorf("start qemu: its options cannot name %q: a comma", path)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "agent"), os.NewFile(uintptr(pair[1]), "agent-qemu")
	defer theirs.Close()
	cmd := exec.Command("qemu-system-x86_64", qemuArgs(o, images, initrd, share)...)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	q := &qemu{cmd: cmd, agent: ours, done: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the process
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			if q.err = cmd.Wait(); q.err == nil {
				q.err = fmt.Errorf("exit status 0")
			}
			close(q.done)
		}
	}()
	if err := <-started; err != nil {
		ours.Close()
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	return q, nil
}

// kill ends the emulator and waits until it is gone.
func (q *qemu) kill() {
	_ = syscall.Kill(-q.cmd.Process.Pid, syscall.SIGKILL) // gone already: fine
	<-q.done
	q.agent.Close()
}

// buildAgent compiles dom0's agent from this repository.
func buildAgent(ctx context.Context, out string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./internal/lab/agent")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build agent: %w: %s", err, bytes.TrimSpace(msg))
	}
	return nil
}

// moduleRoot finds the checkout of xen-disk around the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "internal/lab/agent")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("find the checkout of xen-disk: start this inside of it")
		}
		dir = parent
	}
}
