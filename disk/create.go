package disk

import (
	"errors"
	"fmt"
	"os"
)

// Create makes a raw image at path that reads as zeros and takes no space yet,
// and opens it for writing, locked. sizeBytes is a multiple of 512 and more
// than 0. The caller owns the disk, and removes the file if what it was made
// for fails.
//
// It refuses, with fs.ErrExist, a path where anything is, a dangling link and
// a device too: an image is never overwritten. The permissions are 0644 less
// the umask, as qemu-img's are.
func Create(path string, sizeBytes int64) (Disk, error) {
	if sizeBytes < sectorBytes || sizeBytes%sectorBytes != 0 {
		return nil, fmt.Errorf("create %s: %w: a size of %d bytes", path, ErrRange, sizeBytes)
	}
	file, err := openFile(path, forCreation)
	if err != nil {
		return nil, err
	}
	var d *flat
	if err = file.Truncate(sizeBytes); err == nil {
		d, err = newFlat(file, Raw)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(path))
	}
	return &raw{flat: d}, nil
}
