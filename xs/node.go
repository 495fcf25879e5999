package xs

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// directoryRestarts bounds how often a list that is read in parts is begun
	// anew because the node has changed meanwhile.
	directoryRestarts = 16
	// directoryPartsMax bounds a list that is read in parts: 65536 domids of
	// five digits each fit well.
	directoryPartsMax = 1 << 20
)

// Read returns the value of a node, byte for byte. A node without a value has
// the empty one. A node that does not exist is fs.ErrNotExist.
func (c *Conn) Read(path string) (string, error) { return c.read(nil, path) }

// Write sets the value of a node and makes the node and its parents where they
// do not exist. Path and value together are at most 4095 bytes, and 16 less
// through the device; unix.E2BIG otherwise.
func (c *Conn) Write(path, value string) error { return c.write(nil, path, value) }

// Mkdir makes a node and its parents, with empty values, where they do not
// exist. It changes nothing that exists.
func (c *Conn) Mkdir(path string) error { return c.mkdir(nil, path) }

// Rm removes a node and all below it. That it does not exist is no error, nor
// that its parent does not (where xenstored would say ENOENT): what was asked
// for holds.
func (c *Conn) Rm(path string) error { return c.rm(nil, path) }

// Directory lists the names of a node's children, in no particular order. A
// list that is longer than a message is read in parts, and from the start
// again when the node has changed between two of them; if it never stops
// changing the error is unix.EAGAIN. An old xenstored that cannot send parts
// gives unix.E2BIG.
func (c *Conn) Directory(path string) ([]string, error) { return c.directory(nil, path) }

// GetPerms returns a node's permissions, its owner's first.
func (c *Conn) GetPerms(path string) ([]Perm, error) { return c.getPerms(nil, path) }

// SetPerms replaces a node's permissions. The first entry names the owner.
func (c *Conn) SetPerms(path string, perms ...Perm) error { return c.setPerms(nil, path, perms) }

// GetDomainPath returns where a domain's nodes are: /local/domain/<domid>. It
// does not say that the domain exists.
func (c *Conn) GetDomainPath(domid uint32) (string, error) {
	payload, err := c.request("get-domain-path", "", opGetDomainPath, nil, domidString(domid))
	return string(trimNUL(payload)), err
}

// IsDomainIntroduced reports whether xenstored talks with a domain: whether
// the toolstack has introduced it and it has not been destroyed.
func (c *Conn) IsDomainIntroduced(domid uint32) (bool, error) {
	const op = "is-domain-introduced"
	payload, err := c.request(op, "", opIsDomainIntroduced, nil, domidString(domid))
	if err != nil {
		return false, err
	}
	switch answer := string(trimNUL(payload)); answer {
	case "T":
		return true, nil
	case "F":
		return false, nil
	default:
		return false, &Error{Op: op, Err: fmt.Errorf("answer %.16q is not T or F: %w", answer, unix.EIO)}
	}
}

func domidString(domid uint32) string {
	return strconv.FormatUint(uint64(domid), 10) + "\x00"
}

// nodeRequest is request for an operation on a node.
func (c *Conn) nodeRequest(op, path string, typ uint32, tx *Tx, parts ...string) ([]byte, error) {
	if err := checkNode(path); err != nil {
		return nil, &Error{Op: op, Path: path, Err: err}
	}
	return c.request(op, path, typ, tx, append([]string{path, "\x00"}, parts...)...)
}

func (c *Conn) read(tx *Tx, path string) (string, error) {
	payload, err := c.nodeRequest("read", path, opRead, tx)
	return string(payload), err
}

func (c *Conn) write(tx *Tx, path, value string) error {
	_, err := c.nodeRequest("write", path, opWrite, tx, value)
	return err
}

func (c *Conn) mkdir(tx *Tx, path string) error {
	_, err := c.nodeRequest("mkdir", path, opMkdir, tx)
	return err
}

func (c *Conn) rm(tx *Tx, path string) error {
	_, err := c.nodeRequest("rm", path, opRm, tx)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (c *Conn) getPerms(tx *Tx, path string) ([]Perm, error) {
	const op = "get-perms"
	payload, err := c.nodeRequest(op, path, opGetPerms, tx)
	if err != nil {
		return nil, err
	}
	list, err := splitStrings(payload)
	perms := make([]Perm, len(list))
	for i := 0; i < len(list) && err == nil; i++ {
		perms[i], err = ParsePerm(list[i])
	}
	if err != nil {
		return nil, &Error{Op: op, Path: path, Err: err}
	}
	return perms, nil
}

func (c *Conn) setPerms(tx *Tx, path string, perms []Perm) error {
	const op = "set-perms"
	parts := make([]string, 0, len(perms))
	for _, p := range perms {
		if p.Access > AccessBoth {
			return &Error{Op: op, Path: path, Err: fmt.Errorf("%v: %w", p, unix.EINVAL)}
		}
		parts = append(parts, p.String()+"\x00")
	}
	if len(parts) == 0 {
		return &Error{Op: op, Path: path, Err: fmt.Errorf("no owner: %w", unix.EINVAL)}
	}
	_, err := c.nodeRequest(op, path, opSetPerms, tx, parts...)
	return err
}

func (c *Conn) directory(tx *Tx, path string) ([]string, error) {
	const op = "directory"
	payload, err := c.nodeRequest(op, path, opDirectory, tx)
	if errors.Is(err, unix.E2BIG) {
		payload, err = c.directoryParts(tx, path)
	}
	if err != nil {
		return nil, err
	}
	list, err := splitStrings(payload)
	if err != nil {
		return nil, &Error{Op: op, Path: path, Err: err}
	}
	return list, nil
}

// directoryParts reads a list of children that one message cannot hold. Each
// part begins with the node's generation; the last ends in an empty name.
func (c *Conn) directoryParts(tx *Tx, path string) ([]byte, error) {
	const op = "directory"
	refuse := func(format string, args ...any) error {
		return &Error{Op: op, Path: path, Err: fmt.Errorf(format, args...)}
	}
	var list, generation []byte
	for restarts := 0; ; {
		payload, err := c.nodeRequest(op, path, opDirectoryPart, tx, strconv.Itoa(len(list))+"\x00")
		if errors.Is(err, unix.ENOSYS) {
			return nil, refuse("this xenstored cannot send the list in parts: %w", unix.E2BIG)
		}
		if err != nil {
			return nil, err
		}
		g, part, ok := bytes.Cut(payload, []byte{0})
		if !ok || len(part) == 0 || part[len(part)-1] != 0 {
			return nil, refuse("malformed part of the list: %w", unix.EIO)
		}
		if len(list) > 0 && !bytes.Equal(g, generation) {
			restarts++
			if restarts > directoryRestarts {
				return nil, refuse("node changed %d times while it was read: %w", restarts, unix.EAGAIN)
			}
			list = list[:0]
			continue
		}
		generation = g
		list = append(list, part...)
		if len(list) > directoryPartsMax {
			return nil, refuse("list of more than %d bytes: %w", directoryPartsMax, unix.E2BIG)
		}
		if len(list) == 1 || bytes.HasSuffix(list, []byte{0, 0}) {
			return list[:len(list)-1], nil
		}
	}
}
