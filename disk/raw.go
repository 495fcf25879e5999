package disk

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// raw is the bytes of a file or block device by pread(2) and pwrite(2), through
// the page cache. An I/O error is an error of that request and no more.
//
// When someone truncates the file, reads past its new end fail with
// io.ErrUnexpectedEOF; a write there makes the file grow again.
type raw struct {
	file *file
}

func openRaw(path string, o Options) (Disk, error) {
	f, err := openFile(path, Raw, o)
	if err != nil {
		return nil, err
	}
	return &raw{file: f}, nil
}

func (d *raw) Info() Info { return d.file.Info() }

func (d *raw) ReadAt(p []byte, off int64) (int, error) {
	f := d.file
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.check(len(p), off); err != nil {
		return 0, fmt.Errorf("read %s: %w", f.info.Path, err)
	}
	for n := 0; n < len(p); {
		k, err := f.sys.pread(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && k <= 0:
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return n, fmt.Errorf("read %s at byte %d: %w", f.info.Path, off+int64(n), err)
		}
		n += k
	}
	return len(p), nil
}

func (d *raw) WriteAt(p []byte, off int64) (int, error) {
	f := d.file
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.info.ReadOnly {
		return 0, fmt.Errorf("write %s: %w", f.info.Path, ErrReadOnly)
	}
	if err := f.check(len(p), off); err != nil {
		return 0, fmt.Errorf("write %s: %w", f.info.Path, err)
	}
	for n := 0; n < len(p); {
		k, err := f.sys.pwrite(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && k <= 0:
			err = io.ErrShortWrite
		}
		if err != nil {
			return n, fmt.Errorf("write %s at byte %d: %w", f.info.Path, off+int64(n), err)
		}
		n += k
	}
	return len(p), nil
}

// Flush is fdatasync(2): data, and what metadata it takes to read them back,
// through the device's write cache.
func (d *raw) Flush() error {
	d.file.mu.RLock()
	defer d.file.mu.RUnlock()
	return d.flush()
}

// flush is Flush with mu held.
func (d *raw) flush() error {
	f := d.file
	return f.flush(func() error { return f.sys.fdatasync(f.fd) })
}

func (d *raw) Close() error {
	f := d.file
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	err := d.flush()
	return errors.Join(err, f.release())
}
