package reactor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// eventsPerTurn bounds what one epoll_wait returns, so what is posted or due
// waits for at most this many handlers. More descriptors than that are served
// in later turns: the kernel rotates its ready list.
const eventsPerTurn = 64

// Handler is told that its descriptor is ready. It runs on the loop, so it
// must not block. events holds EPOLLIN, and also EPOLLERR or EPOLLHUP, which
// the kernel reports unasked. As long as the handler leaves the descriptor
// readable it is called again in each turn (level-triggered).
type Handler interface {
	Ready(events uint32)
}

// slot is a place in the handler table. gen makes an event of an earlier
// registration of the same place recognisable: see Remove.
type slot struct {
	h   Handler
	fd  int
	gen int32
}

// Loop is one epoll instance and the goroutine that calls Run. It runs once.
// Its methods may be called from any goroutine unless they say otherwise.
type Loop struct {
	epfd    int
	wakefd  int // eventfd: something was posted, or Stop was called
	timerfd int

	// events is written by the kernel and read by the loop only.
	events [eventsPerTurn]unix.EpollEvent

	stopping atomic.Bool
	goid     atomic.Uint64 // of the goroutine inside Run; 0: none

	mu      sync.Mutex
	idle    sync.Cond // signalled when running becomes false
	running bool
	closed  bool

	slots []slot
	free  []int32 // empty places in slots
	byFD  map[int]int32

	posted []func()
	spare  []func() // the other half of posted's double buffer; loop only
	woken  bool     // wakefd was written and not yet read

	timers   timerHeap
	timerSeq uint64
	armed    int64     // the instant timerfd fires; 0: it does not
	base     time.Time // instants are ns since then, on the monotonic clock

	done      chan struct{} // closed by Close: ends the signal forwarders
	forwards  sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// New opens a loop's three descriptors. Close releases them.
func New() (*Loop, error) {
	l := &Loop{
		epfd: -1, wakefd: -1, timerfd: -1,
		byFD: make(map[int]int32),
		base: time.Now(),
		done: make(chan struct{}),
	}
	l.idle.L = &l.mu
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.closeFDs())
	}
	return l, nil
}

func (l *Loop) open() (err error) {
	if l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("create epoll instance: %w", err)
	}
	if l.wakefd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("create eventfd: %w", err)
	}
	l.timerfd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("create timerfd: %w", err)
	}
	if err := l.Add(l.wakefd, wakeHandler{l}); err != nil {
		return err
	}
	return l.Add(l.timerfd, timerHandler{l})
}

// Add calls h.Ready on the loop whenever fd is readable, until Remove. The
// caller keeps fd open until then. Adding an fd twice is EEXIST.
func (l *Loop) Add(fd int, h Handler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("add fd %d to loop: %w", fd, os.ErrClosed)
	}
	i := l.takeSlot()
	s := &l.slots[i]
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: i, Pad: s.gen}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.dropSlot(i)
		return fmt.Errorf("add fd %d to epoll: %w", fd, err)
	}
	// The kernel took fd although the table has it: its earlier file was closed
	// without Remove. That registration is dead; its place is not lost.
	if old, ok := l.byFD[fd]; ok {
		l.dropSlot(old)
	}
	s.h, s.fd = h, fd
	l.byFD[fd] = i
	return nil
}

// Remove ends what Add began. Call it before closing fd: if a duplicate keeps
// the file open, epoll reports a closed descriptor for ever and nothing can
// take it out.
//
// Called on the loop, no event of this registration is delivered after Remove
// returns: not one that the current epoll_wait has already returned, and not
// to whoever adds the same descriptor number next. Called elsewhere, the
// handler may still be running, once; Post a function to wait for it.
//
// On an error of the kernel the handler is not called again either.
func (l *Loop) Remove(fd int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.byFD[fd]
	if !ok {
		return fmt.Errorf("remove fd %d from loop: %w", fd, unix.ENOENT)
	}
	delete(l.byFD, fd)
	l.dropSlot(i)
	if l.closed {
		return nil // the epoll instance is gone, and its entries with it
	}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("remove fd %d from epoll: %w", fd, err)
	}
	return nil
}

// takeSlot returns an empty place of the table. The caller holds mu.
func (l *Loop) takeSlot() int32 {
	if n := len(l.free); n > 0 {
		i := l.free[n-1]
		l.free = l.free[:n-1]
		return i
	}
	l.slots = append(l.slots, slot{fd: -1})
	return int32(len(l.slots) - 1)
}

// dropSlot empties a place; its next user has another generation, which 2^32
// registrations within one turn would be needed to repeat. The caller holds mu.
func (l *Loop) dropSlot(i int32) {
	s := &l.slots[i]
	s.h, s.fd = nil, -1
	s.gen++
	l.free = append(l.free, i)
}

// handler returns whom an event is for; nil: that registration is gone.
func (l *Loop) handler(ev *unix.EpollEvent) Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := &l.slots[ev.Fd]; s.gen == ev.Pad {
		return s.h
	}
	return nil
}

// Run serves the loop on the calling goroutine until Stop, and then runs what
// was posted before Stop. A panic of a handler passes through it. The thread
// is not locked: with LockOSThread the yield in turn would cost two thread
// switches.
func (l *Loop) Run() error {
	if err := l.enter(); err != nil {
		return err
	}
	defer l.leave()
	for !l.stopping.Load() {
		if err := l.turn(); err != nil {
			return err
		}
	}
	l.runPosted()
	return nil
}

func (l *Loop) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("run loop: %w", os.ErrClosed)
	}
	if l.running {
		return errors.New("run loop: it is running already")
	}
	l.running = true
	l.goid.Store(goroutineID())
	return nil
}

func (l *Loop) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.goid.Store(0)
	l.running = false
	l.idle.Broadcast()
}

// turn waits for events and hands each to its handler.
func (l *Loop) turn() error {
	n, err := l.wait()
	if err != nil {
		return fmt.Errorf("wait for epoll events: %w", err)
	}
	for i := range l.events[:n] {
		ev := &l.events[i]
		if h := l.handler(ev); h != nil {
			h.Ready(ev.Events)
		}
	}
	return nil
}

// wait fills events and returns how many there are.
//
// A goroutine that blocks in epoll_wait keeps its P until sysmon takes it, and
// a worker woken in this turn waits on that P: 90 µs a request were measured
// instead of 10. So the loop yields, looks without blocking (a raw syscall, no
// scheduler involved), and only then blocks.
func (l *Loop) wait() (int, error) {
	runtime.Gosched()
	n, errno := pollNow(l.epfd, l.events[:])
	if errno != 0 && errno != unix.EINTR {
		return 0, errno
	}
	if errno == 0 && n > 0 {
		return n, nil
	}
	for {
		n, err := unix.EpollWait(l.epfd, l.events[:], -1)
		if err != unix.EINTR { // Go's preemption is a signal
			return n, err
		}
	}
}

// Stop makes Run return after the handlers of its current turn; a Run that
// comes later returns at once. It does not wait.
func (l *Loop) Stop() {
	l.stopping.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake()
}

// Close stops the loop, waits for Run and for the signal forwarders, and closes
// the loop's own descriptors, not those that were added. Further calls do
// nothing and return the same. Functions posted and timers set that have not
// run by then never do. It panics when called on the loop, where it would wait
// for itself.
func (l *Loop) Close() error {
	if l.OnLoop() {
		panic("reactor: Close was called on the loop, want another goroutine")
	}
	l.closeOnce.Do(func() {
		l.Stop()
		l.mu.Lock()
		for l.running {
			l.idle.Wait()
		}
		l.closed = true
		l.posted, l.timers = nil, nil
		l.mu.Unlock()
		close(l.done)
		l.forwards.Wait()
		l.closeErr = l.closeFDs()
	})
	return l.closeErr
}

func (l *Loop) closeFDs() error {
	var errs []error
	for _, fd := range []int{l.timerfd, l.wakefd, l.epfd} {
		if fd < 0 {
			continue
		}
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close fd %d of loop: %w", fd, err))
		}
	}
	return errors.Join(errs...)
}

// OnLoop reports whether the caller runs on the loop's goroutine. It formats a
// stack trace to find out (about a microsecond): for assertions on the control
// plane and in tests.
func (l *Loop) OnLoop() bool {
	id := l.goid.Load()
	return id != 0 && id == goroutineID()
}

// goroutineID reads the number in "goroutine 7 [running]:", the only place
// where Go shows it.
func goroutineID() uint64 {
	var buf [32]byte
	const prefix = len("goroutine ")
	n := runtime.Stack(buf[:], false)
	var id uint64
	for _, c := range buf[prefix:n] {
		if c < '0' || c > '9' {
			break
		}
		id = id*10 + uint64(c-'0')
	}
	return id
}
