package blkback

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"xen-disk/internal/fakexen"
	"xen-disk/xs"
)

// firstDevid is what the rig's guests get first: xvda.
const firstDevid = 51712

// history records the values that a backend's state node takes. It sees each
// that we write, since we never write it twice without a request in between.
func (r *rig) history(domid, devid uint32) (values func() []string) {
	path := pathsOf(0, kind, domid, devid).back + "/state"
	var mu sync.Mutex
	var seen []string
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if v := r.read(path); len(seen) == 0 || seen[len(seen)-1] != v {
			seen = append(seen, v)
		}
	}
	r.store.OnRequest(func(string, string) { look() })
	return func() []string {
		look()
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestAttachServeDetach(t *testing.T) {
	r := newRig(t)
	states := r.history(guest, firstDevid)
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
	expect(t, "states", states(), "[- 1 2 4 5 6 -]")
}

func TestFeaturesAreThereBeforeConnected(t *testing.T) {
	r := newRig(t)
	back := pathsOf(0, kind, guest, firstDevid).back
	watcher := r.store.Store(guest)
	defer watcher.Close()
	r.ok(watcher.Watch(back, "back"))
	d := r.attach(Spec{Disk: &trimDisk{newDisk(1 << 20)}})
	d.connect(fakexen.Options{})
	var order []string
	for _, e := range watcher.Events() {
		order = append(order, strings.TrimPrefix(strings.TrimPrefix(e.Path, back), "/"))
	}
	// Of the state: as made, InitWait, Connected.
	var at []int
	for i, name := range order {
		if name == "state" {
			at = append(at, i)
		}
	}
	if len(at) != 3 {
		t.Fatalf("events %v", order)
	}
	want := []string{
		"feature-barrier", "feature-flush-cache", "feature-discard", "feature-persistent",
		"sectors", "info", "sector-size", "physical-sector-size", "hotplug-status",
		"discard-granularity", "discard-alignment", "discard-secure",
	}
	for _, name := range want {
		i := slices.Index(order, name)
		if i < at[1] || i > at[2] {
			t.Errorf("%s is number %d, not between InitWait %d and Connected %d", name, i, at[1], at[2])
		}
	}
	d.stop()
}

func TestFeaturesAreWrittenInOneTransaction(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	d.state("2")
	back := d.BackendPath()
	var mu sync.Mutex
	var halves []string
	// Whenever a request is served, all of the nodes are there or none.
	r.store.OnRequest(func(string, string) {
		first, last := r.read(back+"/feature-barrier"), r.read(back+"/hotplug-status")
		if (first == "-") != (last == "-") {
			mu.Lock()
			defer mu.Unlock()
			halves = append(halves, first+last)
		}
	})
	d.connect(fakexen.Options{})
	mu.Lock()
	expect(t, "times that half of the nodes were there", len(halves), 0)
	mu.Unlock()
	d.stop()
}

func TestNodesThatFrontendsAndToolstacksNeed(t *testing.T) {
	r := newRig(t)
	disk := newDisk(3 << 20)
	disk.info.PhysicalSectorBytes = 4096
	d := r.attach(Spec{Disk: disk, Devid: 51728})
	f := d.connect(fakexen.Options{})
	front := fmt.Sprintf("/local/domain/%d/device/vbd/51728", guest)
	for path, want := range map[string]string{
		"frontend": front, "frontend-id": "5", "online": "1", "state": "4", "removable": "1", "bootable": "1",
		"dev": "xvdb", "type": kind, "mode": "w", "device-type": "disk", "params": "raw:/images/test.raw",
		"specification": "xen", "hotplug-status": "connected",
		"sectors": "6144", "info": "0", "sector-size": "512", "physical-sector-size": "4096",
		"feature-flush-cache": "1", "feature-barrier": "0",
	} {
		expect(t, path, r.read(d.BackendPath()+"/"+path), want)
	}
	for path, want := range map[string]string{
		"backend": d.BackendPath(), "backend-id": "0", "virtual-device": "51728", "device-type": "disk",
		"state": "4", "trusted": "1",
	} {
		expect(t, path, r.read(front+"/"+path), want)
	}
	expect(t, "backend path", d.BackendPath(), "/local/domain/0/backend/xen-disk/5/51728")
	expect(t, "sectors that the guest sees", f.Info().Sectors, 6144)
	d.stop()
}

func TestPermissionsAreLibxls(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	d.connect(fakexen.Options{})
	for path, want := range map[string]string{
		d.paths.front: "[n5 r0]", d.paths.front + "/backend": "[n5 r0]", d.paths.front + "/state": "[n5 r0]",
		d.paths.back: "[n0 r5]", d.paths.back + "/state": "[n0 r5]", d.paths.back + "/sectors": "[n0 r5]",
	} {
		perms, err := r.dom0.GetPerms(path)
		r.ok(err)
		expect(t, path, perms, want)
	}
	evil := r.store.Store(guest)
	defer evil.Close()
	if evil.Write(d.paths.back+"/sectors", "1") == nil {
		t.Error("the guest may write the backend's nodes")
	}
	other := r.store.Store(6)
	defer other.Close()
	if other.Exists(d.paths.back + "/params") {
		t.Error("another guest may read the backend's nodes")
	}
	d.stop()
}

func TestReadOnlyDiskSaysSo(t *testing.T) {
	r := newRig(t)
	disk := newDisk(1 << 20)
	disk.info.ReadOnly = true
	d := r.attach(Spec{Disk: disk})
	f := d.connect(fakexen.Options{})
	expect(t, "mode", r.read(d.BackendPath()+"/mode"), "r")
	expect(t, "info", f.Info().Bits, 4)
	if err := f.Write(r.ctx(), 0, make([]byte, 512)); err != fakexen.StatusErr(fakexen.StatusError) {
		t.Errorf("write: %v", err)
	}
	d.stop()
}

func TestSizesAndPhysicalSectors(t *testing.T) {
	for _, c := range []struct {
		size             int64
		physical         int
		sectors, phySect uint64
	}{
		{512, 512, 1, 512},
		{512, 4096, 1, 512},
		{4096, 4096, 8, 4096},
		{5 * 1024, 4096, 10, 1024},
		{1 << 20, 0, 2048, 512},
	} {
		t.Run(fmt.Sprintf("%d of %d", c.size, c.physical), func(t *testing.T) {
			r := newRig(t)
			disk := newDisk(c.size)
			disk.info.PhysicalSectorBytes = c.physical
			d := r.attach(Spec{Disk: disk})
			f := d.connect(fakexen.Options{})
			expect(t, "sectors", f.Info().Sectors, c.sectors)
			expect(t, "sector-size", f.Info().SectorSize, 512)
			expect(t, "physical-sector-size", f.Info().PhysicalSectorSize, c.phySect)
			d.stop()
		})
	}
}

func TestNextFreeDeviceAndTakenOnes(t *testing.T) {
	r := newRig(t)
	// What libxl alone knows of is taken too.
	r.ok(r.dom0.Write("/libxl/5/device/vbd/51728/backend", "x"))
	defer func() { r.ok(r.dom0.Rm("/libxl/5/device/vbd")) }()
	c := r.attach(Spec{})
	expect(t, "next", c.Name(), "xvdc")
	e := r.attach(Spec{})
	expect(t, "next", e.Name(), "xvdd")
	disk := newDisk(512)
	_, err := r.tryAttach(Spec{Devid: c.Devid(), Disk: disk})
	if !errors.Is(err, ErrVdevTaken) || disk.closed() != 1 {
		t.Errorf("taken: %v, disk closed %d times", err, disk.closed())
	}
	expect(t, "state of the one that has it", r.read(c.BackendPath()+"/frontend-id"), "5")
	c.stop()
	again := r.attach(Spec{Devid: c.Devid()})
	again.stop()
	e.stop()
}

func TestManyAttachAtOnceGetDifferentDevices(t *testing.T) {
	r := newRig(t)
	// Another process does the same.
	conn := made(xs.Open(r.store.Path()))
	conn.Start()
	defer conn.Close()
	const each = 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	devids := map[uint32]int{}
	took := func(devid uint32, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			t.Error(err)
		}
		devids[devid]++
	}
	for range each {
		wg.Add(2)
		go func() {
			defer wg.Done()
			d, err := r.tryAttach(Spec{})
			if err == nil {
				took(d.Devid(), nil)
			} else {
				took(0, err)
			}
		}()
		go func() {
			defer wg.Done()
			devid, err := writeNodes(conn, 0, &Spec{Domid: guest, Disk: newDisk(512)})
			took(devid, err)
		}()
	}
	wg.Wait()
	if len(r.devices) != each {
		t.Fatalf("%d devices", len(r.devices))
	}
	for _, d := range r.devices {
		d.stop()
	}
	for devid, n := range devids {
		if n != 1 {
			t.Errorf("%s was given %d times", VdevName(devid), n)
		}
		p := pathsOf(0, kind, guest, devid)
		r.ok(removeNodes(conn, &p))
	}
}

func TestAttachToADomainThatIsNotThereLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.boot(6)
	for name, spec := range map[string]Spec{
		"never was":                     {Domid: 77},
		"nodes gone, not yet destroyed": {Domid: 6},
	} {
		if spec.Domid == 6 {
			r.ok(r.dom0.Rm("/local/domain/6"))
			r.ok(r.dom0.Rm("/vm/uuid-6"))
		}
		disk := newDisk(512)
		spec.Disk = disk
		if _, err := r.tryAttach(spec); !errors.Is(err, ErrNoDomain) || disk.closed() != 1 {
			t.Errorf("%s: %v, disk closed %d times", name, err, disk.closed())
		}
	}
	r.destroy(6)
}

func TestDomainThatVanishesWhileItIsAttachedTo(t *testing.T) {
	r := newRig(t)
	r.boot(6)
	once := sync.OnceFunc(func() { _ = r.m.DestroyDomain(6) })
	r.store.OnRequest(func(kind, path string) {
		if kind == "MKDIR" && strings.Contains(path, "/6/") {
			once()
		}
	})
	d, err := r.tryAttach(Spec{Domid: 6, Disk: newDisk(512)})
	r.store.OnRequest(nil)
	if err == nil {
		d.ends(EventGone)
	} else if !errors.Is(err, ErrNoDomain) && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	r.forget(6)
}

func TestTwoDisksOfOneDomainEndIndependently(t *testing.T) {
	r := newRig(t)
	a, b := r.attach(Spec{}), r.attach(Spec{})
	a.connect(fakexen.Options{})
	f := b.connect(fakexen.Options{})
	a.stop()
	r.ok(f.Write(r.ctx(), 0, make([]byte, 512)))
	b.stop()
}

func TestEightDomainsInOneBackend(t *testing.T) {
	r := newRig(t)
	const domains = 8
	for domid := uint32(guest + 1); domid < guest+domains; domid++ {
		r.boot(domid)
	}
	var ds []*device
	var fs []*fakexen.Blkfront
	for domid := uint32(guest); domid < guest+domains; domid++ {
		ds = append(ds, r.attach(Spec{Domid: domid}))
	}
	for _, d := range ds {
		fs = append(fs, d.connect(fakexen.Options{}))
	}
	// Each ends in its own way, and the others go on.
	for i, d := range ds {
		switch i % 4 {
		case 0:
			d.stop()
		case 1:
			r.destroy(d.spec.Domid)
			d.ends(EventGone)
		case 2:
			d.Force()
			d.ends(EventForced)
		case 3:
			r.ok(fs[i].Vanish())
			d.ends(EventGone)
		}
		for _, f := range fs[i+1:] {
			r.ok(f.Write(r.ctx(), 1, make([]byte, 512)))
		}
	}
}
