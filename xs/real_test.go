//go:build realxenstored

package xs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/xs"
)

// oxenstoredConf is for a store that keeps nothing on disk. The last two are
// where noxen.so shows dom0's ring.
const oxenstoredConf = `pid-file = %[1]s/pid
xenstored-log-file = %[1]s/log
access-log-file = %[1]s/access
persistent = false
quota-activate = false
xenstored-kva = /proc/xen/xsd_kva
xenstored-port = /proc/xen/xsd_port
`

// realXenstoreds are the programs to test with.
//
//	XS_REAL_XENSTORED   paths of xenstored and oxenstored, joined by ':'
//	XS_REAL_LIBS        LD_LIBRARY_PATH for their shared libraries
//
// From Debian's packages, without installing them:
//
//	apt-get download xen-utils-4.17 libxen{call1,evtchn1,gnttab1,foreignmemory1} \
//	    libxen{devicemodel1,toolcore1,toollog1,misc4.17}
//	for p in *.deb; do dpkg -x $p root; done
//	bin=$PWD/root/usr/lib/xen-4.17/bin
//	XS_REAL_XENSTORED=$bin/xenstored:$bin/oxenstored \
//	XS_REAL_LIBS=$PWD/root/usr/lib/x86_64-linux-gnu \
//	    go test -tags realxenstored -run Real ./xs
func realXenstoreds(t *testing.T) []string {
	t.Helper()
	programs := filepath.SplitList(os.Getenv("XS_REAL_XENSTORED"))
	if len(programs) == 0 {
		t.Fatal("XS_REAL_XENSTORED is not set: this test needs the xenstored of Xen")
	}
	return programs
}

// startXenstored runs a xenstored of Xen on this machine, without Xen below it
// (testdata/noxen/noxen.c says how), and returns its socket.
func startXenstored(t *testing.T, program string) (socket string, kill func()) {
	t.Helper()
	dir := tempDir(t)
	shim := filepath.Join(dir, "noxen.so")
	out, err := exec.Command("gcc", "-Wall", "-shared", "-fPIC", "-O1", "-o", shim,
		"testdata/noxen/noxen.c").CombinedOutput()
	if err != nil {
		t.Fatalf("build noxen.so: %v\n%s", err, out)
	}
	cmd := exec.Command(program, "--no-fork")
	if filepath.Base(program) == "oxenstored" {
		conf := filepath.Join(dir, "conf")
		check(t, os.WriteFile(conf, fmt.Appendf(nil, oxenstoredConf, dir), 0o600))
		cmd.Args = append(cmd.Args, "--config-file", conf)
	}
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+shim, "LD_LIBRARY_PATH="+os.Getenv("XS_REAL_LIBS"),
		"XENSTORED_RUNDIR="+dir, "XENSTORED_ROOTDIR="+dir)
	cmd.Stderr = os.Stderr
	check(t, cmd.Start())
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			await(t, "xenstored to exit", exited)
		}
	}
	t.Cleanup(kill)
	socket = filepath.Join(dir, "socket")
	eventually(t, "xenstored's socket", func() bool {
		c, err := xs.Open(socket)
		if err == nil {
			_ = c.Close()
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
		return err == nil || len(exited) > 0
	})
	return socket, kill
}

func TestRealXenstored(t *testing.T) {
	for _, program := range realXenstoreds(t) {
		t.Run(filepath.Base(program), func(t *testing.T) {
			socket, _ := startXenstored(t, program)
			testConn(t, opener(t, socket))
		})
	}
}

func TestRealXenstoredDies(t *testing.T) {
	for _, program := range realXenstoreds(t) {
		t.Run(filepath.Base(program), func(t *testing.T) { diesUnderClient(t, program) })
	}
}

func diesUnderClient(t *testing.T, program string) {
	socket, kill := startXenstored(t, program)
	c := opener(t, socket)()
	f, events := collect()
	w := must[*xs.Watch](t)(c.Watch("/local", f))
	until(t, events, "/local")
	kill()
	await(t, "Done", c.Done())
	wantError(t, "Err", c.Err(), xs.ErrLost)
	wantError(t, "request", c.Mkdir("/a"), xs.ErrLost)
	check(t, w.Close())
	t.Setenv("XENSTORED_PATH", socket)
	_, err := xs.Dial()
	wantError(t, "Dial", err, unix.ECONNREFUSED)
}
