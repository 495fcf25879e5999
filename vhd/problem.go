package vhd

import (
	"errors"
	"fmt"
)

// Severity says what a problem keeps one from doing.
type Severity uint8

const (
	// Note: unusual, and harmless.
	Note Severity = iota
	// Leak: space that no block uses.
	Leak
	// Damage: the image can be read, and must be repaired before it is
	// written.
	Damage
	// Unreadable: the image cannot be opened.
	Unreadable
)

// String returns the word that reports use.
func (s Severity) String() string {
	return [...]string{"note", "leak", "damage", "unreadable"}[s]
}

// MarshalText is String, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Problem is something that is not as it should be in an image.
type Problem struct {
	// Path is the file, of the images in a chain.
	Path string `json:"path"`
	// Code is stable and meant for programs: "mirror-differs", "bat-overlap".
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Offset is where in the file, in bytes; -1 for no one place.
	Offset int64 `json:"offset"`
	// Text is for people: one line that names the field and its value.
	Text string `json:"text"`
}

var (
	// ErrNotVHD: there is no footer, or not one that can be believed.
	ErrNotVHD = errors.New("not a VHD")
	// ErrCorrupt: the image contradicts itself.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrUnsupported: a part of the format that is not supported here.
	ErrUnsupported = errors.New("not supported")
	// ErrDamaged: the image can be read; [Repair] makes it fit to be written.
	ErrDamaged = errors.New("image must be repaired before it is written")
	// ErrEncrypted: the data are encrypted with a key that is not here
	// (blktap's keyhash).
	ErrEncrypted = errors.New("image is encrypted")
)

// ImageError is a problem that an image cannot be opened with. It is one of
// [ErrNotVHD], [ErrCorrupt], [ErrUnsupported], [ErrDamaged], [ErrEncrypted].
type ImageError struct {
	Problem
	kind error
}

// Error names the field and where it lies.
func (e *ImageError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%v: %s", e.kind, e.Text)
	}
	return fmt.Sprintf("%v: %s, at byte %d", e.kind, e.Text, e.Offset)
}

// Unwrap returns the kind.
func (e *ImageError) Unwrap() error { return e.kind }

// fail makes an ImageError; readImage fills in the path.
func fail(kind error, code string, off int64, format string, args ...any) error {
	return &ImageError{Problem{"", code, Unreadable, off, fmt.Sprintf(format, args...)}, kind}
}

func (m *image) note(code string, s Severity, off int64, format string, args ...any) {
	m.problems = append(m.problems, Problem{m.path, code, s, off, fmt.Sprintf(format, args...)})
}

// mendedByOpening says that recoverFooter takes care of a problem.
func (p *Problem) mendedByOpening() bool {
	switch p.Code {
	case codeFooterMissing, codeFooterOld, codeFooterSum, codeMirrorBad, codeMirrorDiffers, codeBatmapStale:
		return true
	}
	return false
}

// readable says why the data of an image that could be read cannot be.
func (m *image) readable() error {
	if m.encrypted {
		return &ImageError{Problem{m.path, "encrypted", Unreadable, m.batmapHeaderAt() + keyhashAt, "batmap has the hash of a key"}, ErrEncrypted}
	}
	return nil
}

// writable says why an image must not be written before it is repaired.
func (m *image) writable() error {
	for _, p := range m.problems {
		if p.Severity == Damage && !p.mendedByOpening() {
			return &ImageError{p, ErrDamaged}
		}
	}
	return nil
}
