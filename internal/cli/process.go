package cli

import (
	"os"
	"os/signal"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"xen-disk/grant"
	"xen-disk/internal/blkback"
	"xen-disk/reactor"
)

// ready prepares the process to serve disks.
func ready() {
	// Who reads our output may go away ("| head -1"), which must not take the
	// disk from under a guest. Go dies of SIGPIPE on standard output and error
	// unless it is told not to (os/signal, "SIGPIPE").
	signal.Ignore(unix.SIGPIPE)
	if _, set := os.LookupEnv("GOMAXPROCS"); !set {
		runtime.GOMAXPROCS(processors(runtime.GOMAXPROCS(0), blkback.Workers))
	}
}

// processors is how many threads may run Go code. Workers that are inside the
// disk hold on to their places until the runtime notices, so that on a dom0
// with one or two CPUs the loop starves: with a place for each worker, the
// loop and the control goroutines its wake-up at 8 busy workers took 130 us in
// place of 1.5 ms (p99, 2 CPUs).
func processors(now, workers int) int { return max(now, workers+2) }

// signals listens to what asks for an end. A process that was started by
// nohup keeps ignoring SIGHUP. SIGINT is heard even where it was ignored,
// since shells ignore it for whatever they start in the background.
func signals(loop *reactor.Loop, f func(os.Signal)) {
	sigs := []os.Signal{unix.SIGINT, unix.SIGTERM}
	if !signal.Ignored(unix.SIGHUP) {
		sigs = append(sigs, unix.SIGHUP)
	}
	loop.Signal(f, sigs...)
}

// onXen asks the kernel whether it runs under Xen.
func onXen() bool {
	text, err := os.ReadFile("/sys/hypervisor/type")
	if err == nil {
		return strings.TrimSpace(string(text)) == "xen"
	}
	_, err = os.Stat("/dev/xen") // a small dom0 need not mount sysfs
	return err == nil
}

func openDoor() (blkback.Xen, error) {
	door, err := grant.Open()
	if err != nil {
		return nil, err // not a nil *Door in an interface
	}
	return door, nil
}
