package reactor

// Post runs f on the loop, after everything posted before it. It never blocks,
// and any number of posts between two turns cost one write to the eventfd.
//
// Posts are the control plane: the queue has no bound of its own, so each
// poster has to have one (blkback: one outstanding post for each vbd; Signal:
// one for each forwarder). Data goes through a Pool.
//
// What f posts runs in a later turn, so descriptors are served in between.
// After Stop, f runs if it was posted before; after Close it is dropped.
func (l *Loop) Post(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.posted = append(l.posted, f)
	l.wake()
}

// wake makes epoll_wait return. The caller holds mu, which keeps wakefd open.
func (l *Loop) wake() {
	if l.woken || l.closed {
		return
	}
	l.woken = true
	signalEventfd(l.wakefd)
}

// wakeHandler is the loop's own handler of wakefd.
type wakeHandler struct{ l *Loop }

func (w wakeHandler) Ready(uint32) {
	// First the eventfd, then the flag (in runPosted): a Post in between finds
	// the flag still set and its function is among those taken.
	drainCounter(w.l.wakefd)
	w.l.runPosted()
}

// runPosted runs what has been posted so far.
func (l *Loop) runPosted() {
	l.mu.Lock()
	fs := l.posted
	l.posted = l.spare[:0]
	l.spare = nil
	l.woken = false
	l.mu.Unlock()
	for i, f := range fs {
		fs[i] = nil // what it refers to is garbage as soon as it has run
		f()
	}
	l.spare = fs[:0]
}
