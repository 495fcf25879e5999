package fakexen

import (
	"errors"
	"fmt"
	"strconv"
)

// guestPages is the RAM of a domain that Boot makes: 16 MiB, enough for two
// 16-page rings of 512 requests each with 4 pages.
const guestPages = 4096

// Boot builds a domain as xl does: its nodes with libxl's permissions (the
// guest reads its directory, and owns what it is to write), RAM if AddDomain
// was not called for it, and @introduceDomain. It needs a Xenstored.
func (m *Machine) Boot(domid uint32, name, uuid string) (*Domain, error) {
	x := m.Store()
	if x == nil {
		return nil, errors.New("machine has no xenstored")
	}
	d := m.Domain(domid)
	if d == nil {
		d = m.AddDomain(domid, guestPages)
	}
	s := x.Store(0)
	defer s.Close()
	dom, vm := domainPath(domid), "/vm/"+uuid
	libxl := fmt.Sprintf("/libxl/%d", domid)
	none, ro := "n0", "r"+strconv.FormatUint(uint64(domid), 10)
	rw := "n" + strconv.FormatUint(uint64(domid), 10)
	err := s.Tx(func(t *Store) error {
		var errs []error
		dir := func(path string, perms ...string) {
			errs = append(errs, t.Rm(path), t.Mkdir(path), t.SetPerms(path, perms...))
		}
		write := func(path, value string) {
			errs = append(errs, t.Write(path, value))
		}
		errs = append(errs, t.Mkdir("/vm"), t.Mkdir("/libxl"), t.Mkdir("/local/domain"))
		dir(dom, none, ro)
		dir(vm, none, ro)
		dir(libxl, none)
		dir(libxl+"/device", none)
		write(libxl+"/type", "pvh")
		write(dom+"/vm", vm)
		write(dom+"/name", name)
		write(dom+"/domid", strconv.FormatUint(uint64(domid), 10))
		for _, sub := range []string{"cpu", "memory", "control"} {
			dir(dom+"/"+sub, none, ro)
		}
		for _, sub := range []string{"device", "control/shutdown",
			"control/feature-poweroff", "control/feature-reboot",
			"control/feature-suspend", "data", "drivers", "feature", "attr",
			"error"} {
			if sub == "device" {
				dir(dom+"/"+sub, none, ro)
				dir(dom+"/device/suspend", none, ro)
				dir(dom+"/device/suspend/event-channel", rw)
				continue
			}
			dir(dom+"/"+sub, rw)
		}
		write(vm+"/name", name)
		write(vm+"/uuid", uuid)
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("boot domain %d: %w", domid, err)
	}
	x.Introduce(domid)
	return d, nil
}

// Store returns the machine's xenstored, or nil.
func (m *Machine) Store() *Xenstored {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store
}

// DestroyDomain does what `xl destroy` does with devices of a kind that libxl
// does not know: it leaves the backend's directory alone, removes the
// domain's own nodes, kills it, and @releaseDomain fires.
func (m *Machine) DestroyDomain(domid uint32) error {
	x, d := m.Store(), m.Domain(domid)
	if x == nil || d == nil {
		return fmt.Errorf("no domain %d, or no xenstored", domid)
	}
	s := x.Store(0)
	defer s.Close()
	dom := domainPath(domid)
	vm, err := s.Read(dom + "/vm")
	var errs []error
	if err == nil {
		errs = append(errs, s.Rm(vm))
	}
	errs = append(errs, s.Rm(dom), s.Rm(fmt.Sprintf("/libxl/%d", domid)))
	d.Kill()
	x.Release(domid)
	return errors.Join(errs...)
}

// Crash lets a domain die by itself: its nodes stay until the toolstack comes,
// only @releaseDomain fires.
func (m *Machine) Crash(domid uint32) {
	if d := m.Domain(domid); d != nil {
		d.Kill()
	}
	if x := m.Store(); x != nil {
		x.FireRelease()
	}
}

// An Attach is a vbd as the toolstack makes it (libxl_disk.c).
type Attach struct {
	Kind       string // of the backend's path; "" is "vbd"
	BackendID  uint32
	DomID      uint32
	DevID      uint32
	Vdev       string            // such as xvdb
	ReadOnly   bool              // mode
	Params     string            // what the backend opens
	ExtraBack  map[string]string // more nodes of the backend
	ExtraFront map[string]string // more nodes of the frontend
}

// BackendPath is the directory of the vbd in the backend's domain.
func (a Attach) BackendPath() string {
	kind := a.Kind
	if kind == "" {
		kind = "vbd"
	}
	return fmt.Sprintf("/local/domain/%d/backend/%s/%d/%d", a.BackendID, kind, a.DomID, a.DevID)
}

// FrontendPath is its directory in the guest.
func (a Attach) FrontendPath() string {
	return fmt.Sprintf("/local/domain/%d/device/vbd/%d", a.DomID, a.DevID)
}

// AttachVBD writes both directories of a vbd in one transaction, with libxl's
// permissions and both states 1.
func (m *Machine) AttachVBD(a Attach) error {
	x := m.Store()
	if x == nil {
		return errors.New("machine has no xenstored")
	}
	s := x.Store(0)
	defer s.Close()
	front, back := a.FrontendPath(), a.BackendPath()
	mode := "w"
	if a.ReadOnly {
		mode = "r"
	}
	num := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	return s.Tx(func(t *Store) error {
		var errs []error
		fill := func(dir string, nodes map[string]string, perms ...string) {
			errs = append(errs, t.Mkdir(dir), t.SetPerms(dir, perms...))
			for k, v := range nodes {
				errs = append(errs, t.Write(dir+"/"+k, v))
			}
		}
		fill(front, map[string]string{
			"backend": back, "backend-id": num(a.BackendID), "state": "1",
			"virtual-device": num(a.DevID), "device-type": "disk", "trusted": "1",
		}, "n"+num(a.DomID), "r"+num(a.BackendID))
		fill(back, map[string]string{
			"frontend": front, "frontend-id": num(a.DomID), "online": "1",
			"removable": "0", "bootable": "1", "state": "1", "dev": a.Vdev,
			"type": "phy", "mode": mode, "device-type": "disk",
			"discard-enable": "1", "params": a.Params, "specification": "xen",
		}, "n"+num(a.BackendID), "r"+num(a.DomID))
		for k, v := range a.ExtraFront {
			errs = append(errs, t.Write(front+"/"+k, v))
		}
		for k, v := range a.ExtraBack {
			errs = append(errs, t.Write(back+"/"+k, v))
		}
		return errors.Join(errs...)
	})
}
