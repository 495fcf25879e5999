package vhd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// Info is what one looks at an image for. Sizes are in bytes.
type Info struct {
	Path  string `json:"path"`
	Found string `json:"found"` // see Attempt.Found; "leaf" for the image itself
	Type  Type   `json:"type"`
	Raw   bool   `json:"raw"` // the parent of an image, and no VHD

	SizeBytes       int64 `json:"virtual_size"`
	BlockBytes      int64 `json:"block_size"` // 0 without blocks
	Blocks          int64 `json:"blocks"`
	AllocatedBlocks int64 `json:"blocks_allocated"`
	FileBytes       int64 `json:"file_size"`
	// UsedBytes is what the file takes on its file system; -1 is not known.
	UsedBytes int64 `json:"disk_usage"`

	UUID       UUID      `json:"uuid"`
	ParentUUID *UUID     `json:"parent_uuid,omitempty"` // of a differencing image
	Creator    Creator   `json:"creator"`
	Created    time.Time `json:"created"`
	Geometry   Geometry  `json:"geometry"`
	// Hidden is blktap's mark of an image that other images stand on.
	Hidden     bool `json:"hidden"`
	SavedState bool `json:"saved_state"`
	Encrypted  bool `json:"encrypted"`

	Problems []Problem `json:"problems"`
	// Parents are what the image stands on, the nearest first, as far as they
	// are found: where they are not, Problems says so. A parent's own Parents
	// are empty.
	Parents []Info `json:"parents,omitempty"`
}

// Inspect reads what can be known of an image without its data. It opens
// nothing for writing, and it says of an image that cannot be opened as much
// as there is: its Problems have the reason.
func Inspect(path string, o Options) (info *Info, err error) {
	o.ReadOnly = true
	file, err := o.open(path, false)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	m, err := readImage(path, file)
	m.found = foundAsLeaf
	chain := []*image{m}
	defer func() { err = errors.Join(err, closeChain(chain)) }()
	var bad *ImageError
	switch {
	case err == nil:
		chain, err = extendChain(chain, &o)
		if err != nil {
			noteParent(chain, err)
		}
	case errors.As(err, &bad) && m.footer.Type != 0:
		m.problems = append(m.problems, bad.Problem)
	default:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	info = chain[0].info()
	for _, p := range chain[1:] {
		info.Parents = append(info.Parents, *p.info())
	}
	return info, nil
}

func (m *image) info() *Info {
	f := &m.footer
	i := &Info{
		Path: m.path, Found: m.found, Type: f.Type, Raw: m.raw,
		SizeBytes: m.sizeBytes, BlockBytes: m.blockBytes(), Blocks: m.blocks(),
		FileBytes: m.fileBytes, UsedBytes: usedBytes(m.path),
		UUID: f.UUID, Creator: f.Creator, Created: f.Created(), Geometry: f.Geometry,
		Hidden: f.Hidden != 0, SavedState: f.SavedState != 0, Encrypted: m.encrypted,
		Problems: m.problems,
	}
	for b := range m.bat {
		if m.bat[b].Load() != unallocated {
			i.AllocatedBlocks++
		}
	}
	if f.Type == TypeDifferencing {
		i.ParentUUID = &m.header.ParentUUID
	}
	if i.Problems == nil {
		i.Problems = []Problem{}
	}
	return i
}

// usedBytes is what a regular file takes, -1 where that is not known.
func usedBytes(path string) int64 {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return -1
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return sys.Blocks * 512 // stat(2): whatever the file system's unit is
}

// MarshalText is String, for JSON.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalText is String, for JSON.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// String is the program's four letters as far as they are printable, and its
// version: "win 10.0".
func (c Creator) String() string {
	app := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(c.App[:]))
	return fmt.Sprintf("%s %d.%d", strings.TrimSpace(app), c.Version>>16, c.Version&0xFFFF)
}

// MarshalText is String, for JSON.
func (c Creator) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
