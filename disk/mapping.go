package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"xen-disk/vhd"
)

// mapping is the bytes of a file in memory, by mmap(2) and shared.
//
// What can go wrong comes as SIGBUS in the middle of a memcpy: the file was
// truncated, the device failed to read a page, a hole found no space. It is
// turned into ErrFault for that copy alone. Nothing is remembered: when the
// file has grown again the same mapping works again.
type mapping []byte

// mapFile maps the first sizeBytes of f.
func mapFile(f *imageFile, sizeBytes int64) (mapping, error) {
	if int64(int(sizeBytes)) != sizeBytes {
		return nil, fmt.Errorf("map %s: %d bytes exceed the address space", f.path, sizeBytes)
	}
	prot := unix.PROT_READ
	if !f.readOnly {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(f.fd, 0, int(sizeBytes), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.path, err)
	}
	return mem, nil
}

// copy is copy(dst, src) that survives a fault in the mapping. How far it came
// is not known: memmove need not go from front to back.
func (m mapping) copy(dst, src []byte) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = m.fault(r)
		}
	}()
	copy(dst, src)
	return nil
}

// fault turns the panic of a fault inside this mapping into an error. All
// other panics go on: a fault in the caller's buffer is not this file's.
func (m mapping) fault(r any) error {
	if e, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	}); ok {
		if off, ok := offsetIn(m, e.Addr()); ok {
			return fmt.Errorf("%w at byte %d", ErrFault, off)
		}
	}
	panic(r)
}

// mappedFile is an imageFile that is read through a mapping. It is for files
// that do not change while they are open, such as the parents of a leaf: what
// a file gains after the open is not seen.
type mappedFile struct {
	*imageFile
	mem mapping // nil once closed
}

var (
	_ vhd.File = (*imageFile)(nil)
	_ vhd.File = (*mappedFile)(nil)
)

// openMapped opens, locks and maps the file at path for reading.
func openMapped(path string) (*mappedFile, error) {
	f, err := openFile(path, forReading)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	mem, err := mapFile(f, size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &mappedFile{imageFile: f, mem: mem}, nil
}

// ReadAt copies from the mapping. At its end it returns io.EOF, bare.
func (f *mappedFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, fmt.Errorf("read %s: %w", f.path, fs.ErrClosed)
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: %w: byte %d", f.path, ErrRange, off)
	}
	src := f.mem[min(off, int64(len(f.mem))):]
	n := min(len(p), len(src))
	if err := f.mem.copy(p[:n], src); err != nil {
		return 0, fmt.Errorf("read %s: %w", f.path, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close releases mapping, lock and fd.
func (f *mappedFile) Close() error {
	return f.finish(func() error { return f.mem.unmap(f.path) })
}

// unmap is called once, when nobody uses the mapping any more.
func (m mapping) unmap(path string) error {
	if err := unix.Munmap(m); err != nil {
		return fmt.Errorf("unmap %s: %w", path, err)
	}
	return nil
}
