package vhd

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// What programs look at the creator for (QEMU before 10 computes the size from
// the geometry unless the creator is one that it knows; blktap wants a batmap
// from "tap" 1.2 on): see the README of this repository.
var (
	// CreatorWindows is what every program reads as we mean it.
	CreatorWindows = Creator{App: [4]byte{'w', 'i', 'n', ' '}, Version: 0x000A0000, OS: [4]byte{'W', 'i', '2', 'k'}}
	// CreatorXenServer is blktap's, and comes with a batmap.
	CreatorXenServer = Creator{App: [4]byte{'t', 'a', 'p', 0}, Version: 0x00010003}
)

// MaxSizeBytes is the largest disk of the specification, and of Windows, Azure
// and QEMU: 2040 GiB.
const MaxSizeBytes = 2040 << 30

// CreateOptions say what Create makes. The zero value but for SizeBytes is a
// dynamic image with blocks of 2 MiB.
type CreateOptions struct {
	SizeBytes  int64 // virtual; a multiple of 512
	Type       Type  // TypeFixed or TypeDynamic; 0 is TypeDynamic
	BlockBytes int64 // a power of two; 0 is DefaultBlockBytes
	Creator    Creator
	UUID       UUID // all zero: a random one
	// AllowLarge permits more than MaxSizeBytes, which blktap reads and others
	// refuse. A dynamic image holds 2 TiB of data whatever its size is.
	AllowLarge bool
}

// pageBytes is what the data of a block are aligned to, and what a write below
// rewrites where a sector is 4 KiB: BAT and footer copy do not share one.
const pageBytes = 4096

// Create makes an image, and makes it durable. The file must not exist, and on
// error it does not. An invalid option is an error that is fs.ErrInvalid.
func Create(path string, o CreateOptions) error {
	if o.Type == 0 {
		o.Type = TypeDynamic
	}
	n := newImage(o.SizeBytes, o.BlockBytes, o.Creator, o.UUID)
	n.footer.Type = o.Type
	err := n.check(o.AllowLarge)
	if o.Type != TypeFixed && o.Type != TypeDynamic {
		err = invalid("type is %v, want fixed or dynamic", o.Type)
	}
	if err == nil {
		err = createFile(path, n.write)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// blueprint is an image that is to be made.
type blueprint struct {
	footer   Footer
	header   Header
	locators []locatorText
}

// newImage fills in what was not chosen.
func newImage(sizeBytes, blockBytes int64, creator Creator, uuid UUID) *blueprint {
	if blockBytes == 0 {
		blockBytes = DefaultBlockBytes
	}
	if creator == (Creator{}) {
		creator = CreatorWindows
	}
	if uuid == (UUID{}) {
		uuid = randomUUID()
	}
	return &blueprint{
		footer: Footer{
			Features: featureReserved, Version: version1, DataOffset: footerBytes,
			Timestamp: stamp(time.Now()), Creator: creator,
			OriginalSize: uint64(sizeBytes), CurrentSize: uint64(sizeBytes),
			Geometry: geometryOf(uint64(sizeBytes)), UUID: uuid,
		},
		header: Header{
			DataOffset: noOffset, TableOffset: pageBytes, Version: version1,
			BlockBytes: uint32(max(0, min(blockBytes, 1<<32-1))),
		},
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fs.ErrInvalid, fmt.Sprintf(format, args...))
}

// check refuses what cannot be made, or what others would read wrongly.
func (n *blueprint) check(large bool) error {
	size, block := int64(n.footer.CurrentSize), int64(n.header.BlockBytes)
	switch {
	case size <= 0 || size%SectorBytes != 0:
		return invalid("size is %d bytes, want a multiple of 512", size)
	case size > MaxSizeBytes && !large:
		return invalid("size is %d bytes, want at most %d (2040 GiB)", size, int64(MaxSizeBytes))
	case size > maxFileBytes-footerBytes:
		return invalid("size is %d bytes, want at most %d", size, int64(maxFileBytes-footerBytes))
	}
	if n.footer.Type == TypeFixed {
		return nil
	}
	switch {
	case block < minBlockBytes || block > maxBlockBytes || block&(block-1) != 0:
		return invalid("block size is %d, want a power of two from 512 to %d", block, maxBlockBytes)
	case (size-1)/block >= maxBlocks:
		return invalid("block size is %d, which makes %d blocks, want at most %d", block, (size-1)/block+1, maxBlocks)
	case n.footer.hasBatmap() && block != DefaultBlockBytes:
		// blktap counts blocks of 2 MiB, and reads other data without a word.
		return invalid("block size is %d, want %d for XenServer", block, DefaultBlockBytes)
	case n.footer.hasBatmap() && overruns(size):
		return invalid("size is %d, which XenServer cannot have: up to 16 MiB more than a multiple of 8 GiB", size)
	}
	return nil
}

// write lays the image out in an empty file:
//
//	| footer | header | - | locators | room for as many | BAT | batmap | - | footer |
//	0        512          4096                            4096 or 4096n
//
// The footer at the end begins a page, so that the first block can follow with
// its bitmap in the last sector of that page and its data in the next.
func (n *blueprint) write(file File) error {
	f, h := &n.footer, &n.header
	if f.Type == TypeFixed {
		f.DataOffset = noOffset
		_, err := file.WriteAt(f.bytes(), int64(f.CurrentSize))
		return err
	}
	if err := n.writeLocators(file); err != nil {
		return err
	}
	h.MaxTableEntries = uint32((int64(f.CurrentSize)-1)/int64(h.BlockBytes) + 1)
	at := int64(h.TableOffset)
	end := at + h.tableBytes()
	if err := writeUnallocated(file, at, end); err != nil {
		return err
	}
	if f.hasBatmap() {
		b := make([]byte, SectorBytes*(1+batmapSectors(int64(f.CurrentSize))))
		putBatmapHeader(b, end, b[batmapHeaderBytes:])
		if _, err := file.WriteAt(b, end); err != nil {
			return err
		}
		end += int64(len(b))
	}
	if _, err := file.WriteAt(h.bytes(), footerBytes); err != nil {
		return err
	}
	if _, err := file.WriteAt(f.bytes(), 0); err != nil {
		return err
	}
	_, err := file.WriteAt(f.bytes(), roundUp(end, pageBytes))
	return err
}

// writeUnallocated writes a BAT of empty entries.
func writeUnallocated(file File, at, end int64) error {
	b := bytes.Repeat([]byte{0xFF}, int(min(end-at, 1<<20)))
	for ; at < end; at += int64(len(b)) {
		if _, err := file.WriteAt(b[:min(int64(len(b)), end-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// createFile makes a file that must not exist, has it written, and makes it
// and its name durable. On error it is removed.
func createFile(path string, write func(File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	file, err := newOSFile(f)
	if err == nil {
		if err = write(file); err == nil {
			err = file.Sync()
		}
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// syncDir makes the names in a directory durable, where its file system can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// randomUUID is a version 4 UUID (RFC 9562, 5.4).
func randomUUID() (u UUID) {
	rand.Read(u[:]) // never fails since Go 1.24
	u[6] = u[6]&0x0F | 0x40
	u[8] = u[8]&0x3F | 0x80
	return u
}
