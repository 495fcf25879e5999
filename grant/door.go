package grant

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

// The kernel's devices. In dom0 they belong to the modules xen-gntdev and
// xen-evtchn, and to root.
const (
	gntdevPath = "/dev/xen/gntdev"
	evtchnPath = "/dev/xen/evtchn"
)

// errClosed is what all methods say after Close.
var errClosed = fmt.Errorf("use the door to xen: %w", fs.ErrClosed)

// Door is one open handle on gntdev and one on evtchn. All methods may be
// called from any goroutine, also while another closes the Door: a call that
// is under way is waited for, a later one fails with fs.ErrClosed.
//
// Mapped memory is another matter: nothing tells the Door who still uses it.
// Reading or writing it after Unmap or Close is a fault.
type Door struct {
	sys    kernel
	gntdev int
	evtchn int

	// use is held for reading by each call, so that Close cannot give the
	// number of a descriptor to somebody else under it.
	use    sync.RWMutex
	closed bool

	mu   sync.Mutex
	maps map[*byte]mapping // by the first byte
}

// mapping is what one Map registered.
type mapping struct {
	mem   []byte
	index uint64
	count uint32
}

// Open opens both devices. Without Xen, or without the kernel's modules, the
// error is fs.ErrNotExist, without the right it is fs.ErrPermission; it names
// the device.
func Open() (*Door, error) {
	return open(linux(), gntdevPath, evtchnPath)
}

func open(sys kernel, gntdevPath, evtchnPath string) (*Door, error) {
	d := &Door{sys: sys, maps: make(map[*byte]mapping)}
	var err error
	if d.gntdev, err = d.openDevice(gntdevPath, 0); err != nil {
		return nil, err
	}
	if d.evtchn, err = d.openDevice(evtchnPath, unix.O_NONBLOCK); err != nil {
		return nil, errors.Join(err, d.closeDevice(gntdevPath, d.gntdev))
	}
	return d, nil
}

func (d *Door) openDevice(path string, flags int) (int, error) {
	for {
		fd, err := d.sys.open(path, unix.O_RDWR|unix.O_CLOEXEC|flags)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		default:
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func (d *Door) closeDevice(path string, fd int) error {
	// Not repeated on EINTR: Linux has released the number by then.
	if err := d.sys.close(fd); err != nil {
		return &fs.PathError{Op: "close", Path: path, Err: err}
	}
	return nil
}

// enter begins a call, which ends with d.use.RUnlock if enter returns nil.
func (d *Door) enter() error {
	d.use.RLock()
	if d.closed {
		d.use.RUnlock()
		return errClosed
	}
	return nil
}

// Close unmaps everything that is still mapped, unbinds all ports and closes
// both devices. Take EventFD out of the loop before. The first call returns
// what went wrong, further ones do nothing and return nil.
//
// It waits for calls under way, a Copy for instance, so it should not be
// called on the loop before the workers are done with this Door.
func (d *Door) Close() error {
	d.use.Lock()
	defer d.use.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return errors.Join(
		d.unmapAll(),
		d.closeDevice(evtchnPath, d.evtchn),
		d.closeDevice(gntdevPath, d.gntdev))
}

// checkDomid refuses what the kernel would cut to 16 bits in silence: it takes
// a u32 in its structs and has a domid_t behind them.
func checkDomid(domid uint32) error {
	if domid > math.MaxUint16 {
		return fmt.Errorf("domid %d is more than 16 bits: %w", domid, unix.EINVAL)
	}
	return nil
}
