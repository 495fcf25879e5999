package blkback

import "xen-disk/xs"

// view is all that the handshake depends on, read anew at every step: watches
// may be merged, late or spurious, so no step is taken on what one says.
type view struct {
	front  xs.State // Unknown when the node holds no state
	back   xs.State
	online bool

	gone      bool // the frontend's directory, our own, or the domain is gone
	forced    bool // the caller asked to let go without the guest
	connected bool // we serve a ring
	moved     bool // the frontend's ring nodes name another ring than ours
}

// step is what the control goroutine does next.
type step uint8

const (
	stepWait       step = iota // nothing until a watch fires
	stepOffer                  // drop a ring we have, write the features, go to InitWait
	stepConnect                // read the frontend's nodes, map its ring, go to Connected
	stepClosing                // go to Closing; keep serving
	stepClosed                 // drain, drop the ring, go to Closed
	stepFinish                 // drop the ring if there is one, remove the nodes: the end
	stepDisconnect             // drop the ring without answering: nobody is left to see it
)

func (s step) String() string {
	return [...]string{"wait", "offer", "connect", "closing", "closed", "finish", "disconnect"}[s]
}

// decide is the whole handshake as a pure function (xen: public/io/blkif.h and
// xenbus.h; linux: xen-blkback/xenbus.c, frontend_changed; libxl_device.c for
// what a toolstack writes).
func decide(v view) step {
	if v.gone || v.forced {
		return stepFinish
	}
	if v.back == xs.StateClosed && !v.online {
		if v.connected {
			// A toolstack that lost patience wrote Closed itself.
			return stepClosed
		}
		return stepFinish
	}
	switch v.front {
	case xs.StateInitialising:
		return decideInitialising(v)
	case xs.StateInitialised, xs.StateConnected:
		return decideReady(v)
	case xs.StateClosing:
		return decideClosing(v)
	case xs.StateClosed:
		if v.back != xs.StateClosed || v.connected {
			return stepClosed
		}
		return stepWait
	}
	// A frontend at InitWait, at a state we do not know or without one has
	// nothing to say; it cannot hold up a detach either.
	if !v.online && !v.connected {
		return stepClosed
	}
	return stepWait
}

// decideInitialising: the frontend is new, or starts over (driver reload,
// GRUB handing over to a kernel, kexec without a word). It wants to see
// InitWait. A ring that it had before is no ring any more.
func decideInitialising(v view) step {
	switch {
	case !v.online:
		return stepClosed
	case v.connected, v.back != xs.StateInitWait:
		return stepOffer
	}
	return stepWait
}

// decideReady: the frontend has published a ring. Most say so with
// Initialised; MiniOS and U-Boot write Connected at once.
func decideReady(v view) step {
	if !v.online && !v.connected {
		// To be detached, and nothing to let go of.
		return stepClosed
	}
	switch v.back {
	case xs.StateInitialising, xs.StateClosed:
		// Always through InitWait: frontends read features only then.
		if v.online {
			return stepOffer
		}
	case xs.StateInitWait:
		if v.connected {
			return stepDisconnect
		}
		return stepConnect
	case xs.StateConnected:
		if !v.connected {
			return stepConnect
		}
		if v.moved {
			// Resumed from suspend, or a kernel that another one
			// started (kexec): new ring, same device. A blkfront that
			// finds us at Connected goes from Initialising to Connected
			// at once, so that may be all we get to see.
			return stepDisconnect
		}
	}
	// At Closing the toolstack or we asked the guest to let go. It is served
	// until it does.
	return stepWait
}

// decideClosing: the frontend is on its way out, but an old blkfront with the
// disk still open goes on doing I/O here until its last close.
func decideClosing(v view) step {
	switch v.back {
	case xs.StateClosing, xs.StateClosed:
		if !v.online && !v.connected {
			return stepClosed
		}
		return stepWait
	}
	return stepClosing
}
