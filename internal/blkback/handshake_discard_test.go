package blkback

import (
	"bytes"
	"testing"

	"xen-disk/disk"
	"xen-disk/internal/fakexen"
)

// TestDiscardIsOfferedWhereItIsServed: the nodes, what a frontend makes of
// them, and what it is answered if it discards nevertheless.
func TestDiscardIsOfferedWhereItIsServed(t *testing.T) {
	const size = 4 << 20
	plain := func(readOnly bool) *testDisk {
		d := newDisk(size)
		d.info.ReadOnly = readOnly
		return d
	}
	type nodes struct{ feature, granularity, alignment, secure string }
	none := nodes{"0", "-", "-", "-"}
	for _, c := range []struct {
		name   string
		disk   disk.Disk
		want   nodes
		status int16
	}{
		{"a disk that cannot", plain(false), none, fakexen.StatusNotSupported},
		{"a disk that can", &trimDisk{plain(false)}, nodes{"1", "2097152", "512", "0"}, fakexen.StatusOkay},
		{"a read-only disk that could", &trimDisk{plain(true)}, none, fakexen.StatusNotSupported},
		{"a disk that could, to no effect", &keepDisk{trimDisk{plain(false)}}, none, fakexen.StatusNotSupported},
		{"a disk that keeps nothing", &sinkDisk{plain(false)}, nodes{"1", "512", "0", "0"}, fakexen.StatusOkay},
		{"a read-only disk that keeps nothing", &sinkDisk{plain(true)}, none, fakexen.StatusNotSupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			d := r.attach(Spec{Disk: c.disk})
			f := d.connect(fakexen.Options{})
			back := d.BackendPath()
			expect(t, "nodes", nodes{
				r.read(back + "/feature-discard"), r.read(back + "/discard-granularity"),
				r.read(back + "/discard-alignment"), r.read(back + "/discard-secure"),
			}, c.want)
			info := f.Info()
			expect(t, "discards that the guest sees", info.Discard, c.want.feature == "1")
			expect(t, "secure ones", info.DiscardSecure, false)
			status, err := f.Discard(r.ctx(), 8, 16)
			r.ok(err)
			expect(t, "status", status, c.status)
			d.stop()
		})
	}
}

// TestDiscardFromGuestToDisk is fstrim and blkdiscard, and what is read later.
func TestDiscardFromGuestToDisk(t *testing.T) {
	const size = 1 << 20
	for _, abi := range []string{"x86_64-abi", "x86_32-abi", "arm-abi"} {
		t.Run(abi, func(t *testing.T) {
			r := newRig(t)
			d := r.attach(Spec{Disk: &trimDisk{newDisk(size)}})
			f := d.connect(fakexen.Options{ABI: abi})
			data := bytes.Repeat([]byte("xen-disk"), size/8)
			r.ok(f.Write(r.ctx(), 0, data))
			discard := func(sector, sectors uint64) {
				t.Helper()
				status, err := f.Discard(r.ctx(), sector, sectors)
				r.ok(err)
				expect(t, "status", status, fakexen.StatusOkay)
				clear(data[sector*512 : (sector+sectors)*512])
				got, err := f.Read(r.ctx(), 0, size/512)
				r.ok(err)
				if !bytes.Equal(got, data) {
					t.Errorf("discard of %d sectors at %d: others are gone too, or not all", sectors, sector)
				}
			}
			discard(9, 1)
			discard(16, 100)
			discard(0, size/512)
			r.ok(f.Write(r.ctx(), 40, data[:512]))
			stats := d.Stats()
			expect(t, "discards", []uint64{stats.Discards, stats.DiscardedBytes}, []uint64{3, 101*512 + size})
			d.stop()
		})
	}
}
