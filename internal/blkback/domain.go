package blkback

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"

	"xen-disk/xs"
)

// Domain is a running virtual machine.
type Domain struct {
	ID   uint32
	Name string
	UUID string
}

// ErrNoDomain reports that no domain has such an id, UUID or name.
var ErrNoDomain = errors.New("no such domain")

// AmbiguousError reports a name that several domains have.
type AmbiguousError struct {
	Name   string
	Domids []uint32
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%d domains are named %q", len(e.Domids), e.Name)
}

// FindDomain finds a running domain by its id, else its UUID, else its name.
func FindDomain(conn *xs.Conn, vm string) (Domain, error) {
	all, err := Domains(conn)
	if err != nil {
		return Domain{}, err
	}
	if id, ok := parseDomid(vm); ok {
		for _, d := range all {
			if d.ID == id {
				return d, nil
			}
		}
	}
	var named []Domain
	for _, d := range all {
		if d.UUID != "" && strings.EqualFold(d.UUID, vm) {
			return d, nil
		}
		if d.Name == vm && vm != "" {
			named = append(named, d)
		}
	}
	switch len(named) {
	case 0:
		return Domain{}, ErrNoDomain
	case 1:
		return named[0], nil
	}
	e := &AmbiguousError{Name: vm}
	for _, d := range named {
		e.Domids = append(e.Domids, d.ID)
	}
	return Domain{}, e
}

// Domains lists the domains that xenstore knows, by id.
func Domains(conn *xs.Conn) ([]Domain, error) {
	names, err := conn.Directory("/local/domain")
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	var all []Domain
	for _, text := range names {
		id, ok := parseDomid(text)
		if !ok {
			continue
		}
		d := Domain{ID: id}
		dir := "/local/domain/" + text
		// Both may be missing: of dom0 before xen-init-dom0, and of a
		// domain that goes away while we look.
		if d.Name, err = readOptional(conn, dir+"/name", ""); err != nil {
			return nil, err
		}
		vm, err := readOptional(conn, dir+"/vm", "")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if vm != "" {
			d.UUID = path.Base(vm)
		}
		all = append(all, d)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all, nil
}

// isAlive asks xenstored whether a domain is there. Only dom0 may ask; in a
// driver domain the frontend's directory has to tell.
func isAlive(conn *xs.Conn, domid uint32) (bool, error) {
	alive, err := conn.IsDomainIntroduced(domid)
	if errors.Is(err, fs.ErrPermission) {
		return true, nil
	}
	return alive, err
}
