package fakexen

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// waitBackend waits until the backend is in one of the states, or gone.
func (b *Blkfront) waitBackend(ctx context.Context, states ...string) error {
	return b.store.WaitFor(ctx, b.backend+"/state", func(v string, exists bool) bool {
		return !exists || slices.Contains(states, v)
	})
}

// take stops the automatic handshake, so that the caller can do its own.
func (b *Blkfront) take() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.auto = false
}

// SetState writes the frontend's state node, and nothing else.
func (b *Blkfront) SetState(s string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.setState(s)
}

// Quiesce waits until no request is in flight.
func (b *Blkfront) Quiesce(ctx context.Context) error {
	for _, q := range b.allQueues() {
		for {
			q.mu.Lock()
			n, changed := len(q.inflight), q.changed
			q.mu.Unlock()
			if n == 0 {
				break
			}
			if b.opts.Polled {
				q.consume()
				if err := ctx.Err(); err != nil {
					return err
				}
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return fmt.Errorf("%d requests in flight: %w", n, ctx.Err())
			}
		}
	}
	return nil
}

// free waits for the backend's Closed and gives the rings back; a backend that
// says Closed and still has one mapped is a violation.
func (b *Blkfront) free(ctx context.Context) error {
	if err := b.waitBackend(ctx, stateClosed); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.freeQueues(); err != nil {
		return b.violate(fmt.Errorf("backend is Closed: %w", err))
	}
	return nil
}

// Close unplugs from the guest's side, as a driver that is unloaded: 5, wait
// for the backend's 5, 6, wait for its 6, and everything is freed.
func (b *Blkfront) Close(ctx context.Context) error {
	b.take()
	if err := b.SetState(stateClosing); err != nil {
		return err
	}
	if err := b.waitBackend(ctx, stateClosing, stateClosed); err != nil {
		return err
	}
	for _, q := range b.allQueues() {
		q.close()
	}
	if err := b.SetState(stateClosed); err != nil {
		return err
	}
	return b.free(ctx)
}

// Reopen is the hand-over from GRUB to a kernel: 6 without 5, wait for the
// backend's 6, remove ring-ref and event-channel, 1, and wait until the
// backend is ready for a new frontend, which then connects by itself.
func (b *Blkfront) Reopen(ctx context.Context) error {
	b.take()
	for _, q := range b.allQueues() {
		q.close()
	}
	if err := b.SetState(stateClosed); err != nil {
		return err
	}
	if err := b.free(ctx); err != nil {
		return err
	}
	if err := b.forget(); err != nil {
		return err
	}
	if err := b.SetState(stateInitialising); err != nil {
		return err
	}
	if err := b.waitBackend(ctx, stateInitWait); err != nil {
		return err
	}
	b.Auto()
	return nil
}

// ReopenMiniOS closes as MiniOS does: 5 and wait for 5, 6 and wait for 6, 1
// and wait for anything from 2 to 5, and then is gone for good.
func (b *Blkfront) ReopenMiniOS(ctx context.Context) error {
	if err := b.Close(ctx); err != nil {
		return err
	}
	if err := b.SetState(stateInitialising); err != nil {
		return err
	}
	err := b.waitBackend(ctx, stateInitWait, stateInitialised, stateConnected, stateClosing)
	return errors.Join(err, b.forget())
}

func (b *Blkfront) forget() error {
	return errors.Join(b.store.Rm(b.dir+"/ring-ref"), b.store.Rm(b.dir+"/event-channel"))
}

// Auto lets the frontend react by itself again.
func (b *Blkfront) Auto() {
	b.mu.Lock()
	b.auto = true
	b.mu.Unlock()
	b.Step()
}

// Reset is a kexec or a crash kernel: nothing is closed, the old ring is
// forgotten though the backend has it mapped, the state goes to 1 and at once
// to 3 with a new ring and a new port. Requests in flight fail with ErrClosed.
func (b *Blkfront) Reset() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.setState(stateInitialising); err != nil {
		return err
	}
	return b.talk()
}

// Publish makes rings and writes the frontend's nodes and state now, whatever
// the backend's state is.
func (b *Blkfront) Publish() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.talk()
}

// Vanish removes the frontend's own directory, as a guest may at any time.
func (b *Blkfront) Vanish() error {
	b.take()
	return b.store.Rm(b.dir)
}

// Node sets a node of the frontend's directory; with no value it removes it.
func (b *Blkfront) Node(name string, value ...string) error {
	if len(value) == 0 {
		return b.store.Rm(b.dir + "/" + name)
	}
	return b.store.Write(b.dir+"/"+name, value[0])
}

// Dir is the frontend's directory in xenstore, Backend the backend's.
func (b *Blkfront) Dir() string { return b.dir }

// Backend is the backend's directory in xenstore.
func (b *Blkfront) Backend() string { return b.backend }

// Domain is the guest that the frontend runs in.
func (b *Blkfront) Domain() *Domain { return b.dom }
