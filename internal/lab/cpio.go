package lab

import (
	"fmt"
	"io"
)

// cpioWriter writes a cpio archive in the "newc" layout, the one that Linux
// unpacks as an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
// Every entry belongs to root and has time zero, so equal input gives equal
// bytes. Directories must be added before what they contain.
type cpioWriter struct {
	w   io.Writer
	n   int64 // bytes written so far, for the padding
	ino int
	err error
}

// The file types of cpio's mode field are those of stat(2).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

func newCpioWriter(w io.Writer) *cpioWriter { return &cpioWriter{w: w} }

// dir adds a directory.
func (c *cpioWriter) dir(name string, perm int) { c.entry(name, modeDir|perm, nil) }

// file adds a regular file.
func (c *cpioWriter) file(name string, perm int, data []byte) { c.entry(name, modeFile|perm, data) }

// symlink adds a symbolic link.
func (c *cpioWriter) symlink(name, target string) { c.entry(name, modeLink|0o777, []byte(target)) }

// close writes the trailer and reports the first error of all calls. The
// archive's length becomes a multiple of 512, so that another can follow it.
func (c *cpioWriter) close() error {
	c.ino = -1 // the trailer has inode 0
	c.entry("TRAILER!!!", 0, nil)
	c.pad(512)
	return c.err
}

func (c *cpioWriter) entry(name string, mode int, data []byte) {
	c.ino++
	nlink := 1
	if mode&modeDir == modeDir {
		nlink = 2
	}
	fields := []int{c.ino, mode, 0, 0, nlink, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0}
	header := "070701"
	for _, f := range fields {
		header += fmt.Sprintf("%08X", f)
	}
	c.write([]byte(header + name + "\x00"))
	c.pad(4)
	c.write(data)
	c.pad(4)
}

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.err = err
}

func (c *cpioWriter) pad(align int64) {
	if rest := c.n % align; rest != 0 {
		c.write(make([]byte, align-rest))
	}
}
