package cli

import (
	"fmt"
	"path/filepath"
	"strings"
)

// imageFormat is how the bytes of an image file are laid out, as --from and
// --to name it.
type imageFormat string

const (
	formatNone imageFormat = "" // nobody said
	formatRaw  imageFormat = "raw"
	formatVHD  imageFormat = "vhd"
)

// UnmarshalText reads a flag.
func (f *imageFormat) UnmarshalText(text []byte) error {
	switch imageFormat(text) {
	case formatRaw, formatVHD:
		*f = imageFormat(text)
		return nil
	}
	return fmt.Errorf("%q: formats are raw and vhd", text)
}

// suffixFormat goes by the name. It never looks inside: the first sector of a
// raw image is its guest's, who can put a VHD there that has any file of the
// host as its parent (CVE-2008-2004 is the same with qcow2).
func suffixFormat(path string) imageFormat {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".vhd":
		return formatVHD
	case ".raw", ".img":
		return formatRaw
	}
	return formatNone
}

// settle takes what a flag says, or else what the name says.
func (f imageFormat) settle(path, flag string) (imageFormat, error) {
	if f == formatNone {
		f = suffixFormat(path)
	}
	if f == formatNone {
		return f, &userError{
			What: fmt.Sprintf("%s does not say by its name what format it has", path),
			Why:  "names that do: .vhd, .raw, .img; the contents can lie: a guest wrote them",
			Hint: fmt.Sprintf("%s raw, or %s vhd", flag, flag), Code: exitUsage,
		}
	}
	return f, nil
}

// isRaw says whether an image is raw: by the flag, or else by its name. One that
// neither tells is a VHD, as all that commands about VHDs are given.
func (f imageFormat) isRaw(path string) bool {
	if f == formatNone {
		f = suffixFormat(path)
	}
	return f == formatRaw
}
