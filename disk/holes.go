package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// punchHole frees the range, which reads as zeros then; zeroRange makes it read
// as zeros and keeps or reserves its space (fallocate(2)). Neither moves the
// end of a file.
//
// Both work on block devices since Linux 4.9 (block/fops.c, blkdev_fallocate):
// punchHole asks the device to write zeros and to unmap, and fails where it
// cannot do the former by itself; zeroRange asks it to keep the space, and the
// kernel sends zeros to a device that knows no such command.
const (
	punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zeroRange = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// zeros is the source of zeros to write and to compare with, and never written.
// 64 KiB is where larger pwrites gain nothing any more.
var zeros [64 << 10]byte

// unsupported says that the store cannot do what was asked, now or ever: the
// filesystem or device does not know the command (EOPNOTSUPP, ENODEV, ENOTTY),
// the kernel or a sandbox does not have it (ENOSYS, EPERM), or not in units
// that small (EINVAL, of a device of 4 KiB sectors and of odd filesystems).
func unsupported(err error) bool {
	switch err {
	case unix.EOPNOTSUPP, unix.ENODEV, unix.ENOTTY, unix.ENOSYS, unix.EPERM, unix.EINVAL:
		return true
	}
	return false
}

// PunchHole makes n bytes at off read as zeros and gives their space back. It
// fails with errors.ErrUnsupported where the store cannot. A file has not
// changed then; of a block device the kernel may have dropped what the page
// cache held of the range, before the device refused.
func (f *imageFile) PunchHole(off, n int64) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	err := f.writable()
	if err == nil && n > 0 {
		err = f.fallocate(punchHole, off, n)
	}
	if unsupported(err) {
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("punch hole into %s at byte %d: %w", f.path, off, err)
	}
	return nil
}

func (f *imageFile) fallocate(mode uint32, off, n int64) error {
	return retry(func() error { return f.sys.fallocate(f.fd, mode, off, n) })
}

// zero makes n bytes at off read as zeros, by the cheapest way there is.
func (f *imageFile) zero(off, n int64, mayFree bool) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.writable(); err != nil {
		return fmt.Errorf("write zeros to %s: %w", f.path, err)
	}
	if n == 0 {
		return nil // fallocate refuses it
	}
	ways := []uint32{punchHole, zeroRange}
	if !mayFree {
		ways = ways[1:]
	}
	for _, mode := range ways {
		err := f.fallocate(mode, off, n)
		if err == nil {
			return nil
		}
		if !unsupported(err) {
			return fmt.Errorf("write zeros to %s at byte %d: %w", f.path, off, err)
		}
	}
	for end := off + n; off < end; {
		k, err := f.write(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(k)
	}
	return nil
}

// discard gives the space of n bytes at off back, or does nothing where the
// store cannot.
//
// On a block device it is BLKDISCARD and not punchHole: LVM's thin volumes know
// discards only (drivers/md/dm-thin.c, thin_ctr: no num_write_zeroes_bios), and
// the kernel refuses it before it touches the page cache (block/ioctl.c,
// blk_ioctl_discard). The third mode of fallocate that was a discard,
// FALLOC_FL_NO_HIDE_STALE, is gone since Linux 6.12. What a device returns for
// discarded sectors is the device's word, as with Linux's xen-blkback.
func (f *imageFile) discard(off, n int64) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	err := f.writable()
	switch {
	case err != nil || n <= 0:
	case f.block:
		err = retry(func() error { return f.sys.discard(f.fd, off, n) })
	default:
		err = f.fallocate(punchHole, off, n)
	}
	if err != nil && !unsupported(err) {
		return fmt.Errorf("discard %s: %w", f.path, err)
	}
	return nil
}

// NextData returns the first run of bytes at or after off that may be other
// than zero, as lseek(2) knows them by SEEK_DATA and SEEK_HOLE; start is the
// length of the file when there is none. Where the store cannot tell, as a
// block device, and where its answers do not go forward, all may be data.
//
// lseek moves the file's position, which nothing else here looks at.
func (f *imageFile) NextData(off int64) (start, end int64, err error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	size, err := f.size()
	if err != nil {
		return 0, 0, fmt.Errorf("map %s: %w", f.path, err)
	}
	if off >= size {
		return size, size, nil
	}
	start, err = f.seek(off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return size, size, nil
	}
	if err == nil {
		end, err = f.seek(start, unix.SEEK_HOLE)
	}
	switch {
	case unsupported(err) || err == unix.ENXIO: // cut off meanwhile
		return off, size, nil
	case err != nil:
		return 0, 0, fmt.Errorf("map %s at byte %d: %w", f.path, off, err)
	case start < off || end <= start:
		return off, size, nil
	}
	return start, end, nil
}

func (f *imageFile) seek(off int64, whence int) (pos int64, err error) {
	err = retry(func() (err error) {
		pos, err = f.sys.seek(f.fd, off, whence)
		return err
	})
	return pos, err
}

// grain is what a store gives back at once.
type grain struct {
	sizeBytes int64 // 0: nothing
	firstByte int64 // where in the disk the first one begins
}

// inside returns the whole grains within n bytes at off; none is n of 0.
func (g grain) inside(off, n int64) (int64, int64) {
	if g.sizeBytes == 0 {
		return off, 0
	}
	end := off + n
	end -= mod(end-g.firstByte, g.sizeBytes)
	off += mod(g.firstByte-off, g.sizeBytes)
	return off, max(end-off, 0)
}

// mod is the remainder that is never negative.
func mod(a, b int64) int64 { return (a%b + b) % b }

// sysfsDevice is where sysfs describes a block device, whatever its node's
// name.
func sysfsDevice(rdev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// deviceGrain reads what a block device can discard from its directory in
// sysfs (Documentation/ABI/stable/sysfs-block). A partition has its own
// alignment and its disk's queue. A device of which sysfs says nothing is not
// known to discard.
func deviceGrain(dir string) grain {
	queue := filepath.Join(dir, "queue")
	if _, err := os.Stat(queue); errors.Is(err, fs.ErrNotExist) {
		queue = dir + "/../queue" // dir is a link: Join would cut it
	}
	size := max(sysfsNumber(queue+"/discard_granularity"), 0)
	if size%sectorBytes != 0 || sysfsNumber(queue+"/discard_max_bytes") <= 0 {
		return grain{}
	}
	first := sysfsNumber(dir + "/discard_alignment") // -1: no grain is aligned
	if first < 0 || first >= size || first%sectorBytes != 0 {
		first = 0
	}
	return grain{sizeBytes: size, firstByte: first}
}

// sysfsNumber returns -1 where there is no number.
func sysfsNumber(path string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}
