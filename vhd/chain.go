package vhd

import (
	"errors"
	"fmt"
	"time"
)

// Options say how Open opens. The zero value opens for reading and writing.
type Options struct {
	ReadOnly bool
	// RawParent permits a parent that is no VHD but the bytes of a disk, which
	// is what an image whose parent UUID is all zeros asks for (blktap's
	// "snapshot -m"). Its guest can have written anything to it.
	RawParent bool
	// SearchPath lists directories where a parent that its locators do not
	// find is looked for by name.
	SearchPath []string
	// AnyParent accepts a parent whose UUID is not the one that the child
	// names: the data may be those of another disk.
	AnyParent bool
	// MaxDepth bounds the number of images in a chain; 0 is DefaultMaxDepth.
	MaxDepth int
	// OpenFile opens the files of the chain; nil is [OpenFile].
	OpenFile OpenFunc
	// CommitInterval is how long metadata of completed writes may stay in
	// memory without a flush; 0 is one second, less than 0 is for ever.
	CommitInterval time.Duration
}

// DefaultMaxDepth bounds chains: XenServer's storage manager stops at 30.
const DefaultMaxDepth = 64

// openChain opens an image and all that it stands on, the leaf first. The last
// one has no parent. On error nothing stays open.
func openChain(path string, o *Options) (chain []*image, err error) {
	open := o.OpenFile
	if open == nil {
		open = OpenFile
	}
	file, err := open(path, !o.ReadOnly)
	if err != nil {
		return nil, err
	}
	m, err := readImage(path, file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), file.Close())
	}
	return []*image{m}, nil
}
