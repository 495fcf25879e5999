package xs_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/xs"
)

// device opens a character device with script at its other end: a pseudo
// terminal in raw mode passes bytes on as they are, which is all that
// /dev/xen/xenbus has in common with it. When the script returns, it hangs up.
func device(t *testing.T, script func(p *peer)) *xs.Conn {
	t.Helper()
	checkLeaks(t)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	fd := int(master.Fd()) // now blocking, as the script wants it
	check(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	check(t, err)
	termios, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	check(t, err)
	termios.Iflag, termios.Oflag, termios.Lflag = 0, 0, 0
	check(t, unix.IoctlSetTermios(fd, unix.TCSETS, termios))
	c, err := xs.Open(fmt.Sprintf("/dev/pts/%d", n))
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer master.Close()
		script(&peer{t, master})
	}()
	t.Cleanup(func() {
		_ = c.Close()
		await(t, "script", done)
	})
	c.Start()
	return c
}

func TestDeviceAnswersWatchesWithoutANumber(t *testing.T) {
	c := device(t, func(p *peer) {
		w := p.expect(watch)
		p.event("/a", w.token())
		p.write(message(watch, 0, 0, "OK\x00")) // Linux before 4.10
		p.expect(unwatch)
		p.write(message(unwatch, 0, 0, "OK\x00"))
		p.drain()
	})
	f, events := collect()
	w := must[*xs.Watch](t)(c.Watch("/a", f))
	wantEqual(t, "event", await(t, "event", events), "/a")
	check(t, w.Close())
}

func TestDeviceTakesOneRequestAtATime(t *testing.T) {
	const readers = 8
	var c *xs.Conn
	opened := make(chan struct{})
	c = device(t, func(p *peer) {
		<-opened
		for range readers {
			r := p.expect(read)
			wantEqual(t, "requests in flight", c.Calls(), 1)
			p.reply(r, "v")
		}
		p.drain()
	})
	close(opened)
	var all []<-chan error
	for range readers {
		all = append(all, spawn(func() error {
			_, err := c.Read("/a")
			return err
		}))
	}
	for _, one := range all {
		check(t, await(t, "read", one))
	}
}

func TestDeviceTakesLess(t *testing.T) {
	c := device(t, func(p *peer) { p.drain() })
	err := c.Write("/a", strings.Repeat("v", 4096-16-2))
	wantError(t, "write", err, unix.E2BIG)
	if err != nil && !strings.Contains(err.Error(), "4081 bytes, at most 4080") {
		t.Errorf("got %v", err)
	}
}

func TestDeviceLost(t *testing.T) {
	c := device(t, func(p *peer) { p.expect(read) })
	_, err := c.Read("/a")
	wantError(t, "read", err, xs.ErrLost)
	wantError(t, "read", err, io.EOF)
}
