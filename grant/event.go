package grant

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// portBytes is the size of a port number in what evtchn reads and writes.
const portBytes = 4

// EventFD is readable while a bound port is pending. It stays the Door's: the
// caller may wait for it, and neither reads it nor closes it. After Close it
// is -1.
func (d *Door) EventFD() int {
	d.use.RLock()
	defer d.use.RUnlock()
	if d.closed {
		return -1
	}
	return d.evtchn
}

// Bind binds a port that domid allocated for us and returns ours. Ours is
// pending at once, whether or not the other side has sent anything. EINVAL
// also means that somebody else, an earlier backend perhaps, still holds it.
func (d *Door) Bind(domid, remotePort uint32) (uint32, error) {
	if err := checkDomid(domid); err != nil {
		return 0, err
	}
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.use.RUnlock()
	port, errno := d.sys.bind(d.evtchn, domid, remotePort)
	for errno == unix.EINTR {
		port, errno = d.sys.bind(d.evtchn, domid, remotePort)
	}
	if errno != 0 {
		return 0, fmt.Errorf("bind port %d of domain %d: %w", remotePort, domid, errno)
	}
	return port, nil
}

// Unbind gives a port up. Pending may still return its number once, if it was
// read into the kernel's queue before.
func (d *Door) Unbind(port uint32) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.use.RUnlock()
	errno := d.sys.unbind(d.evtchn, port)
	for errno == unix.EINTR {
		errno = d.sys.unbind(d.evtchn, port)
	}
	if errno != 0 {
		return fmt.Errorf("unbind port %d: %w", port, errno)
	}
	return nil
}

// Notify tells the other side of a port. It does not block and does not
// allocate. ENOTCONN: this Door has not bound the port.
func (d *Door) Notify(port uint32) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.use.RUnlock()
	errno := d.sys.notify(d.evtchn, port)
	for errno == unix.EINTR {
		errno = d.sys.notify(d.evtchn, port)
	}
	if errno != 0 {
		return fmt.Errorf("notify port %d: %w", port, errno)
	}
	return nil
}

// Pending fills ports with local ports that fired and returns how many; none
// is 0, nil. Each is silent from then on until Unmask. What does not fit in
// ports comes with the next call. It does not block and does not allocate.
//
// EFBIG: the kernel's queue overflowed. It has as many places as the Door has
// ports and each port is in it once, so this should not happen. Pending has
// reset the queue then: it works again, but which ports were in it is lost and
// those stay silent. The caller looks at the rings of all its ports and
// unmasks them all, or gives the device up.
func (d *Door) Pending(ports []uint32) (int, error) {
	if len(ports) == 0 {
		return 0, nil
	}
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.use.RUnlock()
	n, errno := d.sys.read(d.evtchn, ports)
	for errno == unix.EINTR {
		n, errno = d.sys.read(d.evtchn, ports)
	}
	switch errno {
	case 0:
		return n / portBytes, nil
	case unix.EAGAIN:
		return 0, nil
	case unix.EFBIG:
		err := fmt.Errorf("read pending ports: queue overflowed: %w", errno)
		if errno := d.sys.reset(d.evtchn); errno != 0 {
			err = errors.Join(err, fmt.Errorf("reset event channels: %w", errno))
		}
		return 0, err
	}
	return 0, fmt.Errorf("read pending ports: %w", errno)
}

// Unmask lets ports fire again, all in one write, or in one for each 1024 as
// the kernel takes at most a page. A port that fired while it was masked is
// pending at once. It does not block and does not allocate. Ports that are not
// masked, or not bound, are passed over by the kernel.
func (d *Door) Unmask(ports []uint32) error {
	if len(ports) == 0 {
		return nil
	}
	if err := d.enter(); err != nil {
		return err
	}
	defer d.use.RUnlock()
	for len(ports) > 0 {
		n, errno := d.sys.write(d.evtchn, ports)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return fmt.Errorf("unmask %d ports: %w", len(ports), errno)
		case n < portBytes:
			return fmt.Errorf("unmask %d ports: the kernel took %d bytes", len(ports), n)
		default:
			ports = ports[n/portBytes:]
		}
	}
	return nil
}
