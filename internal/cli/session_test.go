package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"xen-disk/internal/blkback"
	"xen-disk/internal/fakexen"
)

// TestSession is the life of a disk, and what is printed in it.
func TestSession(t *testing.T) {
	dir := here(t)
	r := newRig(t)
	makeFile(t, "disk.raw", 1<<20+100)
	r.start("connect", "debian", "--path", "disk.raw", "--format", "raw")
	front := r.connected(t, fakexen.Options{ABI: "x86_64-abi"})
	data := bytes.Repeat([]byte("0123456789abcdef"), 44<<10/16)
	ctx := deadline(t)
	for i := range 3 {
		if err := front.Write(ctx, uint64(i*88), data); err != nil {
			t.Fatal(err)
		}
	}
	got, err := front.Read(ctx, 88, 88)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read back: %v", err)
	}
	if _, err := front.Read(ctx, 0, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := front.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if status, err := front.Do(ctx, fakexen.Req{Op: fakexen.OpBarrier}); err != nil || status != fakexen.StatusNotSupported {
		t.Fatalf("barrier: %d, %v", status, err)
	}
	if status, err := front.Do(ctx, fakexen.Req{Op: fakexen.OpRead, Sector: 1 << 40, Data: make([]byte, 512)}); err != nil || status != fakexen.StatusError {
		t.Fatalf("read past the end: %d, %v", status, err)
	}
	r.press(unix.SIGINT)
	r.wait(t, exitOK)
	r.clean(t)
	if r.err.String() != "" {
		t.Errorf("standard error: %s", &r.err)
	}
	if r.readies != 1 {
		t.Errorf("the process was prepared %d times", r.readies)
	}
	golden(t, dir, "session.golden", r.out.String())
}

// TestSessionDiscard is the seed's first example, read-only.
func TestSessionDiscard(t *testing.T) {
	r := newRig(t)
	r.start("connect", "11111111-2222-3333-4444-555555555555", "--vdev", "sda", "--read-only")
	r.see(t, "Waiting for the guest's block driver (frontend is Initialising).\n")
	want := "Disk:    no image (keeps nothing), discard, 1.0 GiB, read-only\n" +
		"Device:  sda (2048) in debian (domain 1): /dev/xvda\n" +
		"Press Ctrl-C to detach it.\n" +
		"Waiting for the guest's block driver (frontend is Initialising).\n"
	if r.out.String() != want {
		t.Errorf("got:\n%swant:\n%s", &r.out, want)
	}
	r.press(unix.SIGTERM)
	r.wait(t, exitGuest)
	r.clean(t)
}

// TestGuestNeverAnswers: it is waited for with a reason, and one Ctrl-C ends.
func TestGuestNeverAnswers(t *testing.T) {
	r := newRig(t)
	r.start("connect", "1")
	r.see(t, "Waiting for the guest's block driver (frontend is Initialising).\n")
	r.press(os.Interrupt)
	r.wait(t, exitGuest)
	r.clean(t)
	out, err := r.out.String(), r.err.String()
	if !strings.HasSuffix(out, "Removing the device; the guest has not taken it.\nDetached.\n") {
		t.Errorf("it says:\n%s", out)
	}
	if err != "xen-disk: the guest never took xvda\n  its block driver did not answer\n"+
		"  hint: is xen-blkfront loaded in the guest?\n" {
		t.Errorf("it says:\n%s", err)
	}
}

// TestGuestNeverAnswersAndIsDestroyed ends by itself.
func TestGuestNeverAnswersAndIsDestroyed(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	r.see(t, "Waiting for the guest's block driver")
	if err := r.m.DestroyDomain(guestID); err != nil {
		t.Fatal(err)
	}
	r.wait(t, exitGuest)
	if !strings.Contains(r.out.String(), "is gone.\n") || !strings.Contains(r.err.String(), "went away before") {
		t.Errorf("it says:\n%s%s", &r.out, &r.err)
	}
	r.nothingOfOurs(t)
}

// TestGuestRefuses: a guest that has the disk open says so, in bytes that a
// terminal must not see; the second Ctrl-C takes the disk away.
func TestGuestRefuses(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	front := r.connected(t, fakexen.Options{ABI: "x86_64-abi", RefuseClose: true})
	r.press(os.Interrupt)
	r.see(t, "Waiting for the guest to let go (frontend is Closing); it says \"16 Device in\n"+
		"  use; refusing to close\".\n")
	guest := r.x.Store(guestID)
	node := fmt.Sprintf("error/device/vbd/%d", xvda)
	if err := guest.Write(node+"/error", "\x1b]0;owned\a\x1b[2J\u202e\xff"); err != nil {
		t.Fatal(err)
	}
	r.see(t, `"\x1b]0;owned\a\x1b[2J\u202e\xff".`)
	if got := r.out.String(); strings.ContainsAny(got, "\x1b\a\u202e") || !utf8.ValidString(got) {
		t.Errorf("what a guest wrote reached the terminal: %q", r.out.String())
	}
	r.press(os.Interrupt)
	r.wait(t, exitGuest)
	out, err := r.out.String(), r.err.String()
	if !strings.Contains(out, "Taking the disk away; Ctrl-C a third time ends at once.\nTaken away.\n") ||
		!strings.HasPrefix(err, "xen-disk: xvda was taken away from the guest\n") {
		t.Errorf("it says:\n%s%s", out, err)
	}
	if err := front.Stop(); err != nil {
		t.Error(err)
	}
	if err := guest.Rm("error/device"); err != nil {
		t.Fatal(err)
	}
	guest.Close()
	r.clean(t)
}

// TestForcedAtOnce: two signals that come before the guest had a chance.
func TestForcedAtOnce(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	r.press(os.Interrupt)
	r.press(os.Interrupt)
	r.wait(t, exitGuest)
	r.clean(t)
	if !strings.HasPrefix(r.err.String(), "xen-disk: the guest never took xvda\n") {
		t.Errorf("it says: %s", &r.err)
	}
}

// TestGuestDestroyed: nobody is left to complain to, which is in order.
func TestGuestDestroyed(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	front := r.connected(t, fakexen.Options{ABI: "x86_64-abi"})
	if _, err := front.Read(deadline(t), 0, 8); err != nil {
		t.Fatal(err)
	}
	if err := r.m.DestroyDomain(guestID); err != nil {
		t.Fatal(err)
	}
	r.wait(t, exitOK)
	if !strings.Contains(r.out.String(), "\nDetached: the virtual machine or its device is gone.\n") ||
		!strings.Contains(r.out.String(), "answered ok") || r.err.String() != "" {
		t.Errorf("it says:\n%s%s", &r.out, &r.err)
	}
	r.nothingOfOurs(t)
	if z := r.m.Zombies(); len(z) != 0 {
		t.Errorf("zombies: %v", z)
	}
}

// nothingOfOurs is clean for a test in which the guest's own nodes went.
func (r *rig) nothingOfOurs(t *testing.T) {
	t.Helper()
	if d := r.x.Dump(); strings.Contains(d, "xen-disk") || strings.Contains(d, "/vbd") {
		t.Errorf("left in the store:\n%s", d)
	}
}

// TestGuestComesBack: a guest lets go by itself and takes the disk again.
func TestGuestComesBack(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	front := r.connected(t, fakexen.Options{ABI: "x86_64-abi"})
	if err := front.Close(deadline(t)); err != nil {
		t.Fatal(err)
	}
	r.see(t, "The guest is letting go of the disk; it may come back for it.\n")
	if err := front.SetState("1"); err != nil {
		t.Fatal(err)
	}
	store := r.x.Store(0)
	defer store.Close()
	if err := store.WaitValue(deadline(t), front.Backend()+"/state", "2"); err != nil {
		t.Fatal(err)
	}
	front.Auto()
	if err := front.WaitConnected(deadline(t)); err != nil {
		t.Fatal(err)
	}
	r.press(os.Interrupt)
	r.wait(t, exitOK)
	r.clean(t)
}

// TestGuestTalksNonsense: what cannot be served is said, without its bytes.
func TestGuestTalksNonsense(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	front := r.guest(t, fakexen.Options{Manual: true})
	r.see(t, "Waiting for the guest's block driver")
	for _, n := range [][2]string{{"protocol", "\x1b[2Jx86"}, {"ring-ref", "8"}, {"event-channel", "9"}} {
		if err := front.Node(n[0], n[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := front.SetState("3"); err != nil {
		t.Fatal(err)
	}
	r.see(t, `protocol "\x1b[2Jx86"`)
	if strings.Contains(r.out.String(), "\x1b") {
		t.Errorf("what a guest wrote reached the terminal: %q", r.out.String())
	}
	r.press(os.Interrupt)
	r.press(os.Interrupt)
	r.wait(t, exitGuest)
	r.clean(t)
}

// TestXenstoreLost: the disk is served on, until it is taken away.
func TestXenstoreLost(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	front := r.connected(t, fakexen.Options{ABI: "x86_64-abi"})
	r.x.Drop()
	r.see(t, "Lost xenstore. The disk is served on; Ctrl-C takes it away.\n")
	if _, err := front.Read(deadline(t), 0, 8); err != nil {
		t.Fatal(err)
	}
	r.press(os.Interrupt)
	r.waitEnd(t, exitFailed)
	want := "xen-disk: lost xenstore while xvda was attached\n" +
		"  xenstored ended, or closed the connection\n" +
		"  hint: what may be left: xenstore-ls /local/domain/0/backend/xen-disk/1/51712\n"
	if !strings.HasSuffix(r.err.String(), want) {
		t.Errorf("it says:\n%s", &r.err)
	}
	if n := r.m.Mapped(); n != 0 {
		t.Errorf("%d pages are still mapped", n)
	}
}

// TestXenstoreLostWhileWaiting: there is nothing to serve on.
func TestXenstoreLostWhileWaiting(t *testing.T) {
	r := newRig(t)
	r.start("connect", "debian")
	r.see(t, "Waiting for the guest's block driver")
	r.x.Drop()
	r.waitEnd(t, exitFailed)
	if strings.Contains(r.out.String(), "served on") || !strings.Contains(r.err.String(), "xen-disk: lost xenstore while xvda was attached\n") {
		t.Errorf("it says:\n%s%s", &r.out, &r.err)
	}
}

// TestQuota: a guest cannot fill the file that our output goes to.
func TestQuota(t *testing.T) {
	var out screen
	now := time.Unix(1000, 0)
	a := &attachment{out: &out, now: func() time.Time { return now }, shown: make(chan struct{})}
	close(a.shown)
	for range quotaLines + 1000 {
		a.event(blkback.Event{Kind: blkback.EventClosing})
	}
	if n := strings.Count(out.String(), "\n"); n != quotaLines {
		t.Errorf("%d lines, want %d", n, quotaLines)
	}
	a.event(blkback.Event{Kind: blkback.EventDetached})
	if !strings.HasSuffix(out.String(), "\nDetached.\n") {
		t.Error("the end was not printed")
	}
	now = now.Add(quotaPeriod)
	a.event(blkback.Event{Kind: blkback.EventClosing})
	if !strings.Contains(out.String(), "(1000 lines left out: the guest changes its mind too often.)\nThe guest is") {
		t.Errorf("nothing is said of what was left out:\n%s", &out)
	}
}

// TestEventsArePrintable: this room trusts no other to have quoted a guest.
func TestEventsArePrintable(t *testing.T) {
	var out screen
	a := &attachment{out: &out, now: time.Now, shown: make(chan struct{})}
	close(a.shown)
	a.event(blkback.Event{Kind: blkback.EventWaiting, Text: "\x1b[2J"})
	a.event(blkback.Event{Kind: blkback.EventRefused, Err: errors.Join(errors.New("\x1b[2J"), errors.New("b"))})
	a.event(blkback.Event{Kind: blkback.EventConnected, Protocol: "\x1b[2J"})
	want := "Waiting for \\x1b[2J.\nCannot serve the guest: \\x1b[2J; b\nConnected: protocol \\x1b[2J, ring of 0 slots.\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}
