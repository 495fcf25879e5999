package blkback

import (
	"errors"
	"fmt"
	"time"

	"xen-disk/xs"
)

// requestDetach does what libxl does to detach a disk (libxl_device.c,
// libxl__initiate_device_generic_remove): online=0 and Closing, in one
// transaction. The frontend sees Closing and lets go when it can.
func (v *VBD) requestDetach() error {
	v.asked = true
	v.emit(Event{Kind: EventDetaching})
	return v.b.conn.Transaction(func(tx *xs.Tx) error {
		state, exists, err := readState(tx, v.paths.back)
		if err != nil || !exists {
			return err
		}
		if err := tx.Write(v.paths.back+"/online", "0"); err != nil {
			return err
		}
		if state == xs.StateClosed {
			return nil
		}
		return tx.Write(v.paths.back+"/state", xs.StateClosing.Value())
	})
}

// disconnect drops the ring after every request on it was answered.
func (v *VBD) disconnect() error {
	l := v.link
	if l == nil {
		return nil
	}
	l.stop()
	if err := l.drain(nil, v.force); err != nil {
		// Only a forced detach interrupts; finish does the rest.
		return nil
	}
	v.setLink(nil, nil)
	if err := v.spec.Disk.Flush(); err != nil {
		v.log.Error().Err(err).Msg("cannot flush the disk as the guest lets go")
	}
	return l.close()
}

// cut drops the ring at once: nobody is left to be answered. The guest's
// pages are unmapped first, so that a dead guest is not kept a zombie by a
// slow disk.
func (v *VBD) cut() error {
	l := v.link
	if l == nil {
		return nil
	}
	l.stop()
	err := l.sever()
	giveUp := time.NewTimer(forcedDrain)
	defer giveUp.Stop()
	if drainErr := l.drain(giveUp.C, nil); drainErr != nil {
		// The door stays open: a worker may still be at it.
		return errors.Join(err, drainErr)
	}
	v.setLink(nil, nil)
	return errors.Join(err, l.close())
}

// finish ends the vbd: ring and nodes. run does the rest.
func (v *VBD) finish(now view) error {
	err := errors.Join(v.cut(), removeNodes(v.b.conn, &v.paths))
	kind := EventDetached
	switch {
	case now.forced:
		kind = EventForced
	case now.gone:
		kind = EventGone
	}
	v.emit(Event{Kind: kind})
	v.log.Info().Bool("forced", now.forced).Bool("gone", now.gone).Msg("detached")
	return err
}

// abandon is what is left when xenstore is: the ring is served on until the
// caller forces an end, since the guest knows nothing of our trouble. The
// nodes cannot be removed.
func (v *VBD) abandon(cause error) error {
	v.log.Error().Err(cause).Msg("lost xenstore; serving on until forced to stop")
	v.emit(Event{Kind: EventLost, Err: cause})
	if v.link != nil {
		<-v.force
	}
	return errors.Join(fmt.Errorf("lost xenstore: %w", cause), v.cut())
}

// fatal is the answer to a frontend that cannot be served: say why where
// toolstacks look, and ask it to start over (as xenbus_dev_fatal does).
func (v *VBD) fatal(cause error) error {
	v.guest.Warn().Err(cause).Msg("cannot serve the frontend")
	v.emit(Event{Kind: EventRefused, Err: cause})
	if err := v.b.conn.Write(v.paths.err+"/error", cause.Error()); err != nil {
		return err
	}
	return v.setState(xs.StateClosing)
}

// waiting tells the caller what the vbd waits for, once for each reason.
func (v *VBD) waiting(now view) {
	reason := ""
	switch {
	case v.asked:
		reason = fmt.Sprintf("the guest to let go (frontend is %s)", now.front)
		if text, err := v.b.conn.Read(v.paths.frontErr + "/error"); err == nil {
			reason += fmt.Sprintf("; it says %.80q", text)
		}
	case now.back == xs.StateInitWait:
		reason = fmt.Sprintf("the guest's block driver (frontend is %s)", now.front)
	}
	if reason != v.lastWait && reason != "" {
		v.emit(Event{Kind: EventWaiting, Text: reason})
	}
	v.lastWait = reason
}
