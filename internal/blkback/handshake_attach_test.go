package blkback

import (
	"bytes"
	"testing"

	"xen-disk/internal/fakexen"
)

func TestAttachServeDetach(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	d := r.attach(Spec{Disk: disk})
	f := d.connect(fakexen.Options{})
	want := bytes.Repeat([]byte("xen-disk"), 512)
	r.ok(f.Write(r.ctx(), 7, want))
	got, err := f.Read(r.ctx(), 7, len(want)/512)
	r.ok(err)
	if !bytes.Equal(got, want) {
		t.Error("read something else than was written")
	}
	d.stop()
	r.ok(f.WaitClosed(r.ctx()))
	if disk.closed() != 1 || disk.flushes == 0 {
		t.Errorf("disk closed %d times, flushed %d times", disk.closed(), disk.flushes)
	}
}
