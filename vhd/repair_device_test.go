package vhd

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"syscall"
	"testing"
)

// onDevice opens a block device in memory.
func onDevice(b []byte) (*memFile, Options) {
	f := &memFile{data: slices.Clone(b), identity: Identity{Device: 1, Block: true}}
	return f, Options{OpenFile: func(string, bool) (File, error) { f.closed = false; return f, nil }}
}

// TestRepairDevice: the footer of an image on a device is at the device's end,
// and what lies before it is no leak (libvhd.c, vhd_write_footer).
func TestRepairDevice(t *testing.T) {
	image := aDynamic().bytes()
	spare := make([]byte, 1<<20)
	fillPattern(spare, 9)
	f, o := onDevice(append(image[:len(image)-512:len(image)-512], spare...))
	want := handRead(t, f.data)
	for _, mended := range [][]string{{"footer-missing"}, nil} {
		r, err := Repair(context.Background(), "x.vhd", RepairOptions{Open: o})
		if err != nil || !r.Clean() || !slices.Equal(codesOf(r.Mended), mended) {
			t.Errorf("got %+v, %v, want %q mended", r, err, mended)
		}
	}
	if last := f.data[len(f.data)-512:]; !slices.Equal(last, aDynamic().footer()) || !slices.Equal(handRead(t, f.data), want) {
		t.Error("no footer at the end, or the disk reads otherwise")
	}
	full, o := onDevice(image[:len(image)-512])
	before := slices.Clone(full.data)
	if _, err := Repair(context.Background(), "x.vhd", RepairOptions{Open: o}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no room: got %v, want ErrCorrupt", err)
	}
	if !slices.Equal(full.data, before) {
		t.Error("no room, and was written")
	}
}

// TestCheckUnreadable: bitmaps that cannot be read are damage, and the rest is
// looked at all the same.
func TestCheckUnreadable(t *testing.T) {
	h := aDynamic()
	f := &memFile{data: h.bytes()}
	o := Options{OpenFile: func(string, bool) (File, error) {
		return &tapFile{File: f, before: func(o op) error {
			if o.off == int64(h.blockAt(1)) {
				return syscall.EIO
			}
			return nil
		}}, nil
	}}
	r, err := Check(context.Background(), "x.vhd", CheckOptions{Open: o})
	if err != nil || !slices.Equal(codesOf(r.Problems), []string{"bitmap-unreadable"}) || !r.Corrupt() || r.Images[0].Complete != 2 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestBatmapKeepsLength: libvhd makes a batmap of one sector more than it reads
// for some sizes, and its check wants that.
func TestBatmapKeepsLength(t *testing.T) {
	h := handmade{kind: 3, size: 8194 << 20, block: 2 << 20, uuid: 0xB1, creator: "tap\x00", version: 0x00010003,
		blocks: []int{7}, batmap: true}
	b := edited(h, func(b []byte) {
		put32(b, h.batmapAt()+16, 2)
		put32(b, h.batmapAt()+24, 1) // a wrong sum: to be written again
	})
	after, r, _ := repairIn(t, b, false)
	if !slices.Equal(codesOf(r.Mended), []string{"batmap"}) || !r.Clean() {
		t.Errorf("got %+v", r)
	}
	if got := after[h.batmapAt()+16:][:4]; !slices.Equal(got, []byte{0, 0, 0, 2}) {
		t.Errorf("got a length of %v sectors, want 2", got)
	}
}

// TestLost: parts in order are joined, and the list has an end.
func TestLost(t *testing.T) {
	var r Report
	r.lose(0, 10)
	r.lose(10, 10)
	r.lose(10, 30)
	for i := range int64(2 * maxListed) {
		r.lose(100*i+50, 100*i+60)
	}
	if len(r.Lost) != maxListed || r.Lost[0] != (Range{0, 30}) || r.LostBytes != 30+2*maxListed*10 {
		t.Errorf("got %v, %d bytes", r.Lost, r.LostBytes)
	}
}

// TestCheckErrors: what is no report is an error.
func TestCheckErrors(t *testing.T) {
	for _, c := range []struct {
		name  string
		image []byte
		want  error
	}{
		{"no VHD", make([]byte, 4096), ErrNotVHD},
		{"unsupported", withFooter(aDynamic(), func(f []byte) { f[63] = 6 }), ErrUnsupported},
	} {
		if r, err := checkIn(c.image); !errors.Is(err, c.want) {
			t.Errorf("%s: got %+v, %v, want %v", c.name, r, err, c.want)
		}
	}
	if _, err := Check(context.Background(), t.TempDir()+"/none", CheckOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	if r, err := checkIn(withHeader(aDynamic(), func(h []byte) { h[0] = 0 })); err != nil || !r.Corrupt() || r.Problems[0].Code != "header-cookie" {
		t.Errorf("header: got %+v, %v", r, err)
	}
}
