package disk

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// mmap is the bytes of a file or block device mapped into memory: a request is
// one memcpy, or none when a grant copy works on the mapping itself.
//
// What can go wrong comes as SIGBUS in the middle of the memcpy: the file was
// truncated, the device failed to read a page, a hole found no space. It is
// turned into ErrFault for that request alone. Nothing is remembered: when the
// file has grown again the same mapping works again.
//
// Two costs are known. A page fault is not a system call to the Go scheduler,
// so a fault that waits for the device holds its P, and a garbage collection
// that starts meanwhile waits too. And a write past the end of a truncated
// file, but inside its last page, is lost without a fault; Flush looks at
// the size for that reason.
type mmap struct {
	file *file
	mem  []byte // the whole sectors of the image, nil once closed
}

func openMmap(path string, o Options) (Disk, error) {
	f, err := openFile(path, Mmap, o)
	if err != nil {
		return nil, err
	}
	size := f.info.SizeBytes
	if int64(int(size)) != size {
		return nil, errors.Join(fmt.Errorf("map %s: %d bytes exceed the address space", path, size), f.release())
	}
	prot := unix.PROT_READ
	if !o.ReadOnly {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(f.fd, 0, int(size), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %s: %w", path, err), f.release())
	}
	return &mmap{file: f, mem: mem}, nil
}

func (d *mmap) Info() Info { return d.file.Info() }

// Bytes makes mmap a Memory.
func (d *mmap) Bytes(off int64, n int) []byte {
	d.file.mu.RLock()
	defer d.file.mu.RUnlock()
	if n < 0 || d.file.check(n, off) != nil {
		return nil
	}
	return d.mem[off : off+int64(n) : off+int64(n)]
}

func (d *mmap) ReadAt(p []byte, off int64) (int, error) {
	f := d.file
	f.mu.RLock()
	defer f.mu.RUnlock()
	err := f.check(len(p), off)
	if err == nil {
		err = d.copy(p, d.mem[off:])
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.info.Path, err)
	}
	return len(p), nil
}

func (d *mmap) WriteAt(p []byte, off int64) (int, error) {
	f := d.file
	f.mu.RLock()
	defer f.mu.RUnlock()
	err := f.check(len(p), off)
	if f.info.ReadOnly {
		err = ErrReadOnly
	}
	if err == nil {
		err = d.copy(d.mem[off:], p)
	}
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", f.info.Path, err)
	}
	return len(p), nil
}

// copy is copy(dst, src) that survives a fault in the mapping. How far it came
// is not known: memmove need not go from front to back.
func (d *mmap) copy(dst, src []byte) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = d.fault(r)
		}
	}()
	copy(dst, src)
	return nil
}

// fault turns the panic of a fault inside this mapping into an error. All
// other panics go on: a fault in the caller's buffer is not this disk's.
func (d *mmap) fault(r any) error {
	if e, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	}); ok {
		if off, ok := offsetIn(d.mem, e.Addr()); ok {
			return fmt.Errorf("%w at byte %d", ErrFault, off)
		}
	}
	panic(r)
}

// Flush is msync(2) with MS_SYNC over the whole mapping, and no fdatasync.
//
// For a shared mapping of a file Linux does the same for both, namely
// vfs_fsync_range with datasync set, on the very same open file, hence with
// the same error report (mm/msync.c, fs/sync.c). The page cache knows which
// mapped pages are dirty since the first store into a clean page faults. So
// one of them is enough, and msync is the one whose contract speaks of
// mappings. Both together cost a second cache flush of the device: 200 rounds
// of 16 dirty pages made 200 flushes with msync, 200 with fdatasync, 400 with
// both (/sys/block/loop0/stat; ext4 and bare loop device, Linux 6.18, x86-64
// VM, 2026-11; the first rounds into holes of an ext4 file make 400, 600).
//
// When the file has become shorter than the disk, Flush fails with ErrFault
// until it has grown again, for writes may have gone nowhere.
func (d *mmap) Flush() error {
	d.file.mu.RLock()
	defer d.file.mu.RUnlock()
	return d.flush()
}

// flush is Flush with mu held.
func (d *mmap) flush() error {
	f := d.file
	err := f.flush(func() error { return f.sys.msync(d.mem, unix.MS_SYNC) })
	if err != nil || f.info.ReadOnly {
		return err
	}
	size, err := imageSize(f.fd, f.block)
	if err != nil {
		return fmt.Errorf("flush %s: %w", f.info.Path, err)
	}
	if size < f.info.SizeBytes {
		return fmt.Errorf("flush %s: %w: truncated to %d bytes", f.info.Path, ErrFault, size)
	}
	return nil
}

func (d *mmap) Close() error {
	f := d.file
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	err := d.flush()
	if unmapErr := unix.Munmap(d.mem); unmapErr != nil {
		err = errors.Join(err, fmt.Errorf("unmap %s: %w", f.info.Path, unmapErr))
	}
	d.mem = nil
	return errors.Join(err, f.release())
}
