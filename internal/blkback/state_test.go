package blkback

import (
	"testing"

	"xen-disk/xs"
)

// views calls f with every view there can be.
func views(f func(view)) {
	bools := []bool{false, true}
	for front := xs.StateUnknown; front <= xs.StateReconfigured; front++ {
		for back := xs.StateUnknown; back <= xs.StateReconfigured; back++ {
			for _, online := range bools {
				for _, connected := range bools {
					for _, moved := range bools {
						f(view{front: front, back: back, online: online, connected: connected, moved: moved})
					}
				}
			}
		}
	}
}

// apply is what a step does to the view, had it succeeded.
func apply(v view, st step) view {
	switch st {
	case stepOffer:
		v.connected, v.back = false, xs.StateInitWait
	case stepConnect:
		v.connected, v.moved, v.back = true, false, xs.StateConnected
	case stepClosing:
		v.back = xs.StateClosing
	case stepClosed:
		v.connected, v.back = false, xs.StateClosed
	case stepDisconnect:
		v.connected = false
	}
	return v
}

func TestDecideSettles(t *testing.T) {
	// Whatever the nodes say, a few steps lead to a rest: a guest that
	// writes one state cannot make the backend spin.
	const most = 4
	views(func(v view) {
		start := v
		for range most {
			st := decide(v)
			if st == stepWait || st == stepFinish {
				return
			}
			v = apply(v, st)
		}
		if st := decide(v); st != stepWait && st != stepFinish {
			t.Errorf("%+v: still at %v after %d steps", start, st, most)
		}
	})
}

func TestDecideInvariants(t *testing.T) {
	views(func(v view) {
		st := decide(v)
		ready := v.front == xs.StateInitialised || v.front == xs.StateConnected
		if st == stepConnect && (!ready || v.connected) {
			t.Errorf("%+v: connects without a frontend that is ready, or twice", v)
		}
		if (st == stepOffer || st == stepConnect && v.back != xs.StateConnected) && !v.online {
			t.Errorf("%+v: %v although it is to be detached", v, st)
		}
		if st == stepFinish && v.connected {
			t.Errorf("%+v: ends without closing the ring in order", v)
		}
		if v.connected && v.front == xs.StateClosing && st != stepWait && st != stepClosing && v.back != xs.StateClosed {
			t.Errorf("%+v: %v: I/O must be served until the frontend is Closed", v, st)
		}
		for _, end := range []view{{gone: true}, {forced: true}} {
			w := v
			w.gone, w.forced = end.gone, end.forced
			if got := decide(w); got != stepFinish {
				t.Errorf("%+v: %v, want finish", w, got)
			}
		}
	})
}

func TestDecide(t *testing.T) {
	const (
		unknown      = xs.StateUnknown
		initialising = xs.StateInitialising
		initWait     = xs.StateInitWait
		initialised  = xs.StateInitialised
		connected    = xs.StateConnected
		closing      = xs.StateClosing
		closed       = xs.StateClosed
	)
	for _, c := range []struct {
		name string
		v    view
		want step
	}{
		{"fresh nodes are offered", view{front: initialising, back: initialising, online: true}, stepOffer},
		{"then it waits", view{front: initialising, back: initWait, online: true}, stepWait},
		{"a frontend at Initialised is connected", view{front: initialised, back: initWait, online: true}, stepConnect},
		{"MiniOS publishes Connected at once", view{front: connected, back: initWait, online: true}, stepConnect},
		{"never without InitWait, even for an eager frontend", view{front: initialised, back: initialising, online: true}, stepOffer},
		{"Initialised again is no news", view{front: initialised, back: connected, online: true, connected: true}, stepWait},
		{"a resumed guest has a new ring", view{front: initialised, back: connected, online: true, connected: true, moved: true}, stepDisconnect},
		{"a kexec that was too quick to see", view{front: connected, back: connected, online: true, connected: true, moved: true}, stepDisconnect},
		{"nodes changed at Closing wait", view{front: connected, back: closing, connected: true, moved: true}, stepWait},
		{"kexec starts over without a word", view{front: initialising, back: connected, online: true, connected: true}, stepOffer},
		{"the guest closes", view{front: closing, back: connected, online: true, connected: true}, stepClosing},
		{"and is served until it is closed", view{front: closing, back: closing, online: true, connected: true}, stepWait},
		{"then the ring is dropped", view{front: closed, back: closing, online: true, connected: true}, stepClosed},
		{"an online device stays at Closed", view{front: closed, back: closed, online: true}, stepWait},
		{"GRUB hands over to Linux", view{front: initialising, back: closed, online: true}, stepOffer},
		{"winvbd closes first, before it ever connected", view{front: closing, back: initWait, online: true}, stepClosing},
		{"a detach waits for the guest", view{front: connected, back: closing, connected: true}, stepWait},
		{"a detach of a guest without a driver does not wait", view{front: initialising, back: closing}, stepClosed},
		{"a detach of a guest that never connected does not wait", view{front: initialised, back: closing}, stepClosed},
		{"a detach ends when the ring is dropped", view{front: closed, back: closed}, stepFinish},
		{"a toolstack that lost patience wrote Closed", view{front: connected, back: closed, connected: true}, stepClosed},
		{"a frontend that writes nonsense cannot hold up a detach", view{front: unknown, back: closing}, stepClosed},
		{"a refused frontend is left at Closing", view{front: initialised, back: closing, online: true}, stepWait},
	} {
		if got := decide(c.v); got != c.want {
			t.Errorf("%s: %+v: %v, want %v", c.name, c.v, got, c.want)
		}
	}
}
