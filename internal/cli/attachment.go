package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"xen-disk/disk"
	"xen-disk/internal/blkback"
	"xen-disk/xs"
)

// attachment is one disk in one guest as a person sees it.
type attachment struct {
	out   io.Writer
	now   func() time.Time
	vbd   *blkback.VBD
	shown chan struct{} // closed when what was made has been shown

	connected atomic.Bool // the guest has had the disk

	// The control goroutine's until the vbd is done.
	lost  bool // xenstore is gone
	last  blkback.EventKind
	quota quota
}

// show says what was made.
func (a *attachment) show(info disk.Info, dom blkback.Domain) {
	a.label("Disk:", describe(info))
	if info.TailBytes != 0 {
		a.label("Note:", fmt.Sprintf("the last %d bytes of the image are no whole sector of 512 bytes; "+
			"the guest neither sees nor changes them.", info.TailBytes))
	}
	a.label("Device:", fmt.Sprintf("%s (%d) in %s: %s",
		a.vbd.Name(), a.vbd.Devid(), describeDomain(dom), guestPath(a.vbd.Name())))
	a.say("Press Ctrl-C to detach it.")
}

// event prints what happens to the vbd. That the guest is asked to let go has
// been said by then, at the signal.
func (a *attachment) event(e blkback.Event) {
	<-a.shown
	a.last = e.Kind
	switch e.Kind {
	case blkback.EventWaiting:
		a.chat("Waiting for " + e.Text + ".")
	case blkback.EventConnected:
		a.connected.Store(true)
		a.chat(fmt.Sprintf("Connected: protocol %s, ring of %d slots.", e.Protocol, e.Slots))
	case blkback.EventRefused:
		a.chat("Cannot serve the guest: " + oneLine(e.Err.Error()))
	case blkback.EventClosing:
		a.chat("The guest is letting go of the disk; it may come back for it.")
	case blkback.EventDetached:
		a.say("Detached.")
	case blkback.EventGone:
		a.say("Detached: the virtual machine or its device is gone.")
	case blkback.EventForced:
		a.say("Taken away.")
	case blkback.EventLost:
		a.lost = true
		if a.connected.Load() {
			a.say("Lost xenstore. The disk is served on; Ctrl-C takes it away.")
		}
	}
}

// verdict turns the end of a vbd into the command's.
func (a *attachment) verdict() error {
	err, name := a.vbd.Err(), a.vbd.Name()
	why := ""
	if err != nil {
		why = cause(err)
	}
	switch {
	case a.lost:
		return &userError{
			What: fmt.Sprintf("lost xenstore while %s was attached", name), Why: storeCause(err),
			Hint: "what may be left: xenstore-ls " + a.vbd.BackendPath(), Code: exitFailed,
		}
	case a.connected.Load() && a.last == blkback.EventForced:
		if why == "" {
			why = "it had not let go of it; what it had not flushed may be lost"
		}
		return &userError{What: name + " was taken away from the guest", Why: why, Code: exitGuest}
	case err != nil:
		return &userError{What: fmt.Sprintf("%s is detached, but not in order", name), Why: why, Code: exitFailed}
	case !a.connected.Load() && a.last == blkback.EventGone:
		return &userError{
			What: "the guest never took " + name,
			Why:  "the virtual machine or its device went away before", Code: exitGuest,
		}
	case !a.connected.Load():
		return &userError{
			What: "the guest never took " + name, Why: "its block driver did not answer",
			Hint: "is xen-blkfront loaded in the guest?", Code: exitGuest,
		}
	}
	return nil
}

// storeCause is the reason within blkback's "lost xenstore: ...".
func storeCause(err error) string {
	if errors.Is(err, xs.ErrLost) {
		return "xenstored ended, or closed the connection"
	}
	return cause(err)
}

// say prints a line, wrapped.
func (a *attachment) say(line string) { write(a.out, wrap(printable(line), "  ")+"\n") }

// label prints a line that begins with a label, wrapped beside it.
func (a *attachment) label(label, text string) {
	text = fmt.Sprintf("%-9s", label) + printable(text)
	write(a.out, wrap(text, strings.Repeat(" ", 9))+"\n")
}

// chat prints a line that a guest can cause at will, unless it causes many.
func (a *attachment) chat(line string) {
	ok, left := a.quota.take(a.now())
	if !ok {
		return
	}
	if left > 0 {
		a.say(fmt.Sprintf("(%d lines left out: the guest changes its mind too often.)", left))
	}
	a.say(line)
}

// A guest may cause quotaLines lines a quotaPeriod, so that it cannot fill
// dom0's disk where our output goes to a file. A guest that boots or shuts
// down causes less than ten.
const (
	quotaLines  = 30
	quotaPeriod = time.Minute
)

type quota struct {
	since       time.Time
	taken, left int
}

// take asks for a line. left is how many were refused before.
func (q *quota) take(now time.Time) (ok bool, left int) {
	if now.Sub(q.since) >= quotaPeriod {
		left = q.left
		*q = quota{since: now}
	}
	if q.taken == quotaLines {
		q.left++
		return false, 0
	}
	q.taken++
	return true, left
}

// describe says in one line what backs the disk.
func describe(info disk.Info) string {
	mode := "read-write"
	if info.ReadOnly {
		mode = "read-only"
	}
	path := info.Path
	if path == "" {
		path = "no image (keeps nothing)"
	}
	return fmt.Sprintf("%s, %s, %s, %s", path, info.Format, humanize.IBytes(uint64(info.SizeBytes)), mode)
}

// describeDomain names a domain.
func describeDomain(dom blkback.Domain) string {
	if dom.Name == "" {
		return fmt.Sprintf("domain %d", dom.ID)
	}
	return fmt.Sprintf("%s (domain %d)", dom.Name, dom.ID)
}

// guestPath is what a Linux guest calls a vdev: all are xvd, and of the IDE
// names the partition is lost (drivers/block/xen-blkfront.c,
// xen_translate_vdev).
func guestPath(vdev string) string {
	if disk, ok := strings.CutPrefix(vdev, "sd"); ok {
		vdev = "xvd" + disk
	} else if disk, ok := strings.CutPrefix(vdev, "hd"); ok {
		vdev = "xvd" + strings.TrimRight(disk, "0123456789")
	}
	return "/dev/" + vdev
}
