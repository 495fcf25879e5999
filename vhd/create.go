package vhd

import (
	"crypto/rand"
	"fmt"
	"os"
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

// CreateOptions say what Create makes. The zero value but for SizeBytes is a
// dynamic image with blocks of 2 MiB.
type CreateOptions struct {
	SizeBytes  int64 // virtual; a multiple of 512
	Type       Type  // TypeFixed or TypeDynamic; 0 is TypeDynamic
	BlockBytes int64 // a power of two; 0 is DefaultBlockBytes
	Creator    Creator
	UUID       UUID // all zero: a random one
}

const (
	headerAt   = footerBytes
	locatorsAt = headerAt + headerBytes
	// tableAt leaves the page of footer copy and header out of the data path:
	// where a sector is 4 KiB, writing a BAT entry must not rewrite them.
	tableAt = 8192
)

// Create makes an image. The file must not exist.
func Create(path string, o CreateOptions) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	file, err := newOSFile(f)
	if err == nil {
		if err = writeNew(file, &o, time.Now()); err == nil {
			err = file.Sync()
		}
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// writeNew lays an image out in an empty file.
func writeNew(file File, o *CreateOptions, now time.Time) error {
	if o.Type == 0 {
		o.Type = TypeDynamic
	}
	if o.BlockBytes == 0 {
		o.BlockBytes = DefaultBlockBytes
	}
	if o.Creator == (Creator{}) {
		o.Creator = CreatorWindows
	}
	if o.UUID == (UUID{}) {
		o.UUID = randomUUID()
	}
	f := &Footer{
		Features: featureReserved, Version: version1, DataOffset: noOffset,
		Timestamp: stamp(now), Creator: o.Creator,
		OriginalSize: uint64(o.SizeBytes), CurrentSize: uint64(o.SizeBytes),
		Geometry: geometryOf(uint64(o.SizeBytes)), Type: o.Type, UUID: o.UUID,
	}
	if o.Type == TypeFixed {
		_, err := file.WriteAt(f.bytes(), o.SizeBytes)
		return err
	}
	f.DataOffset = headerAt
	blocks := (o.SizeBytes + o.BlockBytes - 1) / o.BlockBytes
	h := &Header{
		DataOffset: noOffset, TableOffset: tableAt, Version: version1,
		MaxTableEntries: uint32(blocks), BlockBytes: uint32(o.BlockBytes),
	}
	bat := make([]byte, roundUp(4*blocks, 4096))
	for i := range bat {
		bat[i] = 0xFF
	}
	if _, err := file.WriteAt(bat, tableAt); err != nil {
		return err
	}
	if _, err := file.WriteAt(h.bytes(), headerAt); err != nil {
		return err
	}
	if _, err := file.WriteAt(f.bytes(), 0); err != nil {
		return err
	}
	_, err := file.WriteAt(f.bytes(), tableAt+int64(len(bat)))
	return err
}

// randomUUID is a version 4 UUID (RFC 9562, 5.4).
func randomUUID() (u UUID) {
	rand.Read(u[:]) // never fails since Go 1.24
	u[6] = u[6]&0x0F | 0x40
	u[8] = u[8]&0x3F | 0x80
	return u
}
