package reactor

import (
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
)

// signalBacklog is how many signals may wait while the loop is busy. Like the
// kernel's pending set it may drop repeats; sixteen different signals are more
// than any caller asks for.
const signalBacklog = 16

// Signal runs f on the loop for each of sigs that the process receives, until
// stop is called or the loop is closed. No sigs means none, not all. Called on
// the loop, stop guarantees that f does not run afterwards; it may be called
// more than once.
func (l *Loop) Signal(f func(os.Signal), sigs ...os.Signal) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(sigs) == 0 {
		return func() {}
	}
	s := &forwarder{
		l:    l,
		f:    f,
		in:   make(chan os.Signal, signalBacklog),
		ran:  make(chan struct{}, 1),
		quit: make(chan struct{}),
		gone: make(chan struct{}),
	}
	signal.Notify(s.in, sigs...)
	l.forwards.Add(1)
	go s.run()
	return s.stop
}

// forwarder carries signals from the runtime's channel to the loop. Its
// goroutine ends by stop or by Loop.Close.
type forwarder struct {
	l       *Loop
	f       func(os.Signal)
	in      chan os.Signal
	ran     chan struct{} // the posted function has run
	quit    chan struct{}
	gone    chan struct{}
	once    sync.Once
	stopped atomic.Bool
}

func (s *forwarder) run() {
	defer s.l.forwards.Done()
	defer close(s.gone)
	defer signal.Stop(s.in)
	for {
		select {
		case <-s.quit:
			return
		case <-s.l.done:
			return
		case sig := <-s.in:
			s.l.Post(func() {
				if !s.stopped.Load() {
					s.f(sig)
				}
				s.ran <- struct{}{}
			})
		}
		// One post outstanding: that is this poster's bound.
		select {
		case <-s.quit:
			return
		case <-s.l.done:
			return
		case <-s.ran:
		}
	}
}

func (s *forwarder) stop() {
	s.once.Do(func() {
		s.stopped.Store(true)
		close(s.quit)
	})
	<-s.gone
}
