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
	// OpenFile opens the files of the chain; nil is [OpenFile]. Where a child
	// may not name any file of the host as its parent, this is what refuses.
	OpenFile OpenFunc
	// CommitInterval is how long metadata of completed writes may stay in
	// memory without a flush; 0 is one second, less than 0 is for ever.
	CommitInterval time.Duration
}

// DefaultMaxDepth bounds chains: XenServer's storage manager stops at 30.
const DefaultMaxDepth = 64

func (o *Options) open(path string, write bool) (File, error) {
	if o.OpenFile == nil {
		return OpenFile(path, write)
	}
	return o.OpenFile(path, write)
}

func (o *Options) depth() int {
	if o.MaxDepth == 0 {
		return DefaultMaxDepth
	}
	return o.MaxDepth
}

// openChain opens an image and all that it stands on, the leaf first; parents
// for reading only. The last one has no parent. On error nothing stays open.
func openChain(path string, o *Options) (chain []*image, err error) {
	leaf, err := openImage(path, !o.ReadOnly, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	chain = []*image{leaf}
	if err = leaf.readable(); err == nil && !o.ReadOnly {
		err = leaf.writable()
	}
	if err != nil {
		err = fmt.Errorf("open %s: %w", path, err)
	} else {
		chain, err = extendChain(chain, o)
	}
	if err != nil {
		return nil, errors.Join(err, closeChain(chain))
	}
	return chain, nil
}

// extendChain opens parents until an image has none. It returns as much of the
// chain as there is, even on error.
func extendChain(chain []*image, o *Options) ([]*image, error) {
	most := o.depth()
	for chain[len(chain)-1].footer.Type == TypeDifferencing {
		if len(chain) >= most {
			return chain, fmt.Errorf("open the parent of %s: %w: %d images", chain[len(chain)-1].path, ErrTooDeep, most)
		}
		parent, err := openParent(chain, o)
		if err != nil {
			return chain, err
		}
		chain = append(chain, parent)
	}
	return chain, nil
}

// noteParent records why a chain ends before its base. A raw parent that is not
// permitted says nothing against the image.
func noteParent(chain []*image, err error) {
	last := chain[len(chain)-1]
	if errors.Is(err, ErrRawParent) {
		last.note("raw-parent", Note, -1, "parent is a raw disk, and was not looked at")
		return
	}
	last.note("parent", Unreadable, -1, "%v", err)
}

// closeChain closes the files of a chain.
func closeChain(chain []*image) error {
	var errs []error
	for _, m := range chain {
		errs = append(errs, m.file.Close())
	}
	return errors.Join(errs...)
}

// openImage opens and reads one file.
func openImage(path string, write bool, o *Options) (*image, error) {
	file, err := o.open(path, write)
	if err != nil {
		return nil, err
	}
	m, err := readImage(path, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	m.found = foundAsLeaf
	return m, nil
}
