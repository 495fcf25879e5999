package vhd

import "io"

const thinPageBytes = 4096

// thinFile is a file in memory that takes space for what is written to it
// only: those of real file systems end at 16 TiB.
type thinFile struct {
	sizeBytes int64
	pages     map[int64]*[thinPageBytes]byte
	identity  Identity
}

// newThinFile makes a file of some length. Each part begins at its offset.
func newThinFile(sizeBytes int64, parts map[int64][]byte) *thinFile {
	f := &thinFile{sizeBytes: sizeBytes, pages: map[int64]*[thinPageBytes]byte{}, identity: Identity{Inode: 1}}
	for at, b := range parts {
		f.put(b, at)
	}
	return f
}

// withThin opens a thin file whatever the path is, a new one each time.
func withThin(sizeBytes int64, parts map[int64][]byte) Options {
	return Options{OpenFile: func(string, bool) (File, error) { return newThinFile(sizeBytes, parts), nil }}
}

func (f *thinFile) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= f.sizeBytes {
		return 0, io.EOF
	}
	if int64(len(p)) > f.sizeBytes-off {
		p, err = p[:f.sizeBytes-off], io.EOF
	}
	for n < len(p) {
		at := off + int64(n)
		rest := p[n:min(len(p), n+int(thinPageBytes-at%thinPageBytes))]
		if page := f.pages[at/thinPageBytes]; page != nil {
			n += copy(rest, page[at%thinPageBytes:])
		} else {
			clear(rest)
			n += len(rest)
		}
	}
	return n, err
}

func (f *thinFile) WriteAt(p []byte, off int64) (int, error) {
	f.put(p, off)
	f.sizeBytes = max(f.sizeBytes, off+int64(len(p)))
	return len(p), nil
}

func (f *thinFile) put(p []byte, off int64) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		page := f.pages[at/thinPageBytes]
		if page == nil {
			page = new([thinPageBytes]byte)
			f.pages[at/thinPageBytes] = page
		}
		n += copy(page[at%thinPageBytes:], p[n:])
	}
}

func (f *thinFile) Truncate(sizeBytes int64) error {
	if sizeBytes < f.sizeBytes {
		tail := make([]byte, min(f.sizeBytes-sizeBytes, thinPageBytes-sizeBytes%thinPageBytes))
		f.put(tail, sizeBytes)
		for page := range f.pages {
			if page*thinPageBytes >= sizeBytes {
				delete(f.pages, page)
			}
		}
	}
	f.sizeBytes = sizeBytes
	return nil
}

func (f *thinFile) PunchHole(off, n int64) error {
	f.put(make([]byte, n), off)
	return nil
}

func (f *thinFile) NextData(off int64) (start, end int64, err error) {
	return min(off, f.sizeBytes), f.sizeBytes, nil
}

func (f *thinFile) Size() (int64, error) { return f.sizeBytes, nil }
func (f *thinFile) Sync() error          { return nil }
func (f *thinFile) Identity() Identity   { return f.identity }
func (f *thinFile) Close() error         { return nil }
