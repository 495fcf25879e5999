package disk

import (
	"fmt"
	"io"
)

// raw is the bytes of a file or block device by pread(2) and pwrite(2), through
// the page cache. An I/O error is an error of that request and no more.
//
// When someone truncates the file, reads past its new end fail with
// io.ErrUnexpectedEOF; a write there makes the file grow again.
type raw struct {
	*flat
}

func openRaw(path string, o Options) (Disk, error) {
	d, err := openFlat(path, Raw, o.access())
	if err != nil {
		return nil, err
	}
	return &raw{flat: d}, nil
}

func (d *raw) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(int64(len(p)), off); err != nil {
		return 0, fmt.Errorf("read %s: %w", d.info.Path, err)
	}
	n, err := d.file.ReadAt(p, off)
	if err == io.EOF {
		err = fmt.Errorf("read %s at byte %d: %w", d.info.Path, off+int64(n), io.ErrUnexpectedEOF)
	}
	return n, err
}

func (d *raw) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(int64(len(p)), off); err != nil {
		return 0, fmt.Errorf("write %s: %w", d.info.Path, err)
	}
	return d.file.WriteAt(p, off)
}

// Flush is fdatasync(2).
func (d *raw) Flush() error { return d.file.Sync() }

func (d *raw) Close() error {
	return d.file.finish(func() error { return d.file.flush(d.file.fdatasync) })
}
