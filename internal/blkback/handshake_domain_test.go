package blkback

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"xen-disk/internal/fakexen"
)

func TestFindDomain(t *testing.T) {
	r := newRig(t) // guest5, uuid-5
	for domid, name := range map[uint32]string{6: "twin", 7: "twin", 8: "5", 9: "07"} {
		r.boot(domid)
		r.ok(r.dom0.Write(fmt.Sprintf("/local/domain/%d/name", domid), name))
	}
	r.boot(10)
	r.ok(r.dom0.Rm("/local/domain/10/name"))
	r.ok(r.dom0.Rm("/local/domain/10/vm"))
	r.ok(r.dom0.Write("/local/domain/junk/name", "junk"))
	r.before = r.store.Dump()
	for _, c := range []struct {
		what, vm string
		want     uint32
		err      error
	}{
		{"by id", "5", 5, nil}, // not the one that is named so
		{"by name", "guest5", 5, nil},
		{"by uuid", "uuid-5", 5, nil},
		{"by uuid in capitals", "UUID-5", 5, nil},
		{"by a name that looks like a number", "07", 9, nil},
		{"dom0 by id", "0", 0, nil},
		{"dom0 by name", "Domain-0", 0, nil},
		{"a domain without a name by id", "10", 10, nil},
		{"missing", "nobody", 0, ErrNoDomain},
		{"missing id", "4711", 0, ErrNoDomain},
		{"empty", "", 0, ErrNoDomain},
		{"what is no domid", "junk", 0, ErrNoDomain},
		{"a reserved domid", "32752", 0, ErrNoDomain},
		{"a path", "5/name", 0, ErrNoDomain},
	} {
		got, err := FindDomain(r.conn, c.vm)
		if got.ID != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v", c.what, got, err)
		}
	}
	_, err := FindDomain(r.conn, "twin")
	var twins *AmbiguousError
	if !errors.As(err, &twins) || fmt.Sprint(twins.Domids) != "[6 7]" {
		t.Errorf("twins: %v", err)
	}
}

func TestDomainThatVanishesWhileDomainsAreListed(t *testing.T) {
	r := newRig(t)
	r.boot(6)
	r.store.OnRequest(func(kind, path string) {
		if kind == "READ" && strings.HasPrefix(path, "/local/domain/6") {
			_ = r.m.DestroyDomain(6)
		}
	})
	d, err := FindDomain(r.conn, "guest5")
	if err != nil || d.ID != guest {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := FindDomain(r.conn, "guest6"); !errors.Is(err, ErrNoDomain) {
		t.Errorf("the one that vanished: %v", err)
	}
	r.forget(6)
}

func TestDom0AsItsOwnFrontend(t *testing.T) {
	r := newRig(t)
	r.m.AddDomain(0, 64)
	// As a toolstack's dom0 has it.
	r.ok(r.dom0.Mkdir("/local/domain/0/device"))
	r.before = r.store.Dump()
	v, err := r.back.Attach(Spec{Disk: newDisk(1 << 20)})
	r.ok(err)
	f, err := fakexen.NewBlkfront(r.m, 0, v.Devid(), fakexen.Options{ABI: "x86_64-abi"})
	r.ok(err)
	r.ok(f.WaitConnected(r.ctx()))
	r.works(f)
	v.Detach()
	<-v.Done()
	r.ok(v.Err())
	r.ok(errors.Join(f.Stop(), f.Violations()))
}
