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
	err := v.b.conn.Transaction(func(tx *xs.Tx) error {
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
	if err != nil {
		return err // wait comes back here
	}
	v.asked = true
	v.emit(Event{Kind: EventDetaching})
	return nil
}

// disconnect drops the ring after every request on it was answered. It
// reports false where the end of the vbd came first; finish does the rest.
func (v *VBD) disconnect() bool {
	l := v.link
	if l == nil {
		return true
	}
	l.stop()
	lost := v.b.conn.Done()
	for l.busy() > 0 {
		select {
		case <-l.idleC:
		case <-v.force:
			return false
		case <-lost:
			lost = nil // nobody will tell of an end, but the drain goes on
		case <-v.poke:
			// A guest that is destroyed while a slow disk drains would
			// else stay a zombie for as long as that takes.
			if now, err := v.look(); err == nil && decide(now) == stepFinish {
				return false
			}
		}
	}
	v.setLink(nil, nil)
	// The guest's pages go back before the disk is asked for anything more.
	if err := l.close(); err != nil {
		v.log.Error().Err(err).Msg("cannot close the door to the hypervisor")
	}
	if err := v.await(v.spec.Disk.Flush); err != nil {
		v.log.Error().Err(err).Msg("cannot flush the disk as the guest lets go")
	}
	return true
}

// await runs what hangs for as long as the disk does. A forced end leaves it
// behind after a while, to a goroutine that ends with the disk's answer.
func (v *VBD) await(f func() error) error {
	done := make(chan error, 1)
	v.b.late.Add(1)
	go func() {
		err := f()
		v.b.late.Add(-1)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-v.force:
	}
	giveUp := time.NewTimer(v.b.forcedDrain)
	defer giveUp.Stop()
	select {
	case err := <-done:
		return err
	case <-giveUp.C:
		return errBusy
	}
}

// release closes the disk, and before it the door where cut had to leave it
// open because a worker was still inside.
func (v *VBD) release() error {
	l := v.link
	return v.await(func() error {
		var err error
		if l != nil {
			err = errors.Join(l.drain(nil), l.close())
		}
		return errors.Join(err, v.spec.Disk.Close())
	})
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
	giveUp := time.NewTimer(v.b.forcedDrain)
	defer giveUp.Stop()
	if drainErr := l.drain(giveUp.C); drainErr != nil {
		// The door stays open: a worker may still be at it.
		return errors.Join(err, drainErr)
	}
	v.setLink(nil, nil)
	return errors.Join(err, l.close())
}

// finish ends the vbd: ring and nodes. run does the rest.
func (v *VBD) finish(now view) error {
	err := errors.Join(v.cut(), removeNodes(v.b.conn, &v.paths))
	end := EventDetached
	switch {
	case now.forced:
		end = EventForced
	case now.gone:
		end = EventGone
	}
	v.emit(Event{Kind: end})
	v.log.Info().Bool("forced", now.forced).Bool("gone", now.gone).Msg("detached")
	return err
}

// abandon is what is left when xenstore is: the ring is served on until the
// caller forces an end, since the guest knows nothing of our trouble. The
// nodes cannot be removed.
func (v *VBD) abandon(cause error) error {
	v.log.Debug().Err(cause).Msg("lost xenstore; serving on until forced to stop")
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
	text := cause.Error()
	if err := v.b.conn.Write(v.paths.err+"/error", text[:min(len(text), maxErrorBytes)]); err != nil {
		v.guest.Error().Err(err).Msg("cannot write the error node")
	}
	back, exists, err := readState(v.b.conn, v.paths.back)
	if err != nil || !exists || back == xs.StateClosed {
		return err
	}
	_, err = v.move(back, xs.StateClosing)
	return err
}

// maxErrorBytes bounds an error node: what a message of xenstore can hold is
// 4096 bytes with the path.
const maxErrorBytes = 1024

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
	case now.back == xs.StateClosed:
		reason = "the guest, which let go of the disk, to take it again"
	}
	if reason != v.lastWait && reason != "" {
		v.emit(Event{Kind: EventWaiting, Text: reason})
	}
	v.lastWait = reason
}
