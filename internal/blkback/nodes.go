package blkback

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"xen-disk/ring"
	"xen-disk/xs"
)

// maxRingOrder is the largest ring-page-order that is offered (log2 pages).
// Rings of one page are what every frontend can do.
const maxRingOrder = 0

// paths are the places of one vbd in xenstore.
type paths struct {
	back  string // /local/domain/<B>/backend/<kind>/<D>/<devid>
	front string // /local/domain/<D>/device/vbd/<devid>
	err   string // /local/domain/<B>/error/backend/<kind>/<D>/<devid>

	frontErr string // /local/domain/<D>/error/device/vbd/<devid>: what the guest complains of
}

func pathsOf(own uint32, kind string, domid, devid uint32) paths {
	tail := fmt.Sprintf("backend/%s/%d/%d", kind, domid, devid)
	return paths{
		back:     fmt.Sprintf("/local/domain/%d/%s", own, tail),
		front:    fmt.Sprintf("/local/domain/%d/device/vbd/%d", domid, devid),
		err:      fmt.Sprintf("/local/domain/%d/error/%s", own, tail),
		frontErr: fmt.Sprintf("/local/domain/%d/error/device/vbd/%d", domid, devid),
	}
}

// frontNodes are what a frontend says of its rings, bounded and parsed.
type frontNodes struct {
	abi    ring.ABI
	queues []queueNodes
}

type queueNodes struct {
	refs []uint32 // grant references of the ring's pages, in order
	port uint32   // the frontend's event channel port
}

// equal reports whether two frontends' nodes name the same rings.
func (n *frontNodes) equal(o *frontNodes) bool {
	if n.abi != o.abi || len(n.queues) != len(o.queues) {
		return false
	}
	for i := range n.queues {
		a, b := &n.queues[i], &o.queues[i]
		if a.port != b.port || len(a.refs) != len(b.refs) {
			return false
		}
		for j := range a.refs {
			if a.refs[j] != b.refs[j] {
				return false
			}
		}
	}
	return true
}

// reader is what both a connection and a transaction can do.
type reader interface {
	Read(path string) (string, error)
}

// readFront reads what the frontend published. Its directory belongs to the
// guest, so anything may be in there.
func readFront(r reader, front string) (*frontNodes, error) {
	protocol, err := readOptional(r, front+"/protocol", "")
	if err != nil {
		return nil, err
	}
	n := &frontNodes{}
	if n.abi, err = ring.ParseABI(protocol); err != nil {
		return nil, fmt.Errorf("%s/protocol: %w", front, err)
	}
	count, err := readUint(r, front+"/multi-queue-num-queues", 1, maxQueues, 1)
	if err != nil {
		return nil, err
	}
	for i := range count {
		dir := front
		if count > 1 {
			dir = fmt.Sprintf("%s/queue-%d", front, i)
		}
		q, err := readQueue(r, front, dir)
		if err != nil {
			return nil, err
		}
		n.queues = append(n.queues, *q)
	}
	return n, nil
}

func readQueue(r reader, front, dir string) (*queueNodes, error) {
	// Where ring-page-order is present, even 0, the references are numbered
	// (linux xen-blkback, read_per_ring_refs).
	names := []string{"ring-ref"}
	_, err := r.Read(front + "/ring-page-order")
	if err == nil {
		order, err := readUint(r, front+"/ring-page-order", 0, maxRingOrder, 0)
		if err != nil {
			return nil, err
		}
		names = names[:0]
		for i := range 1 << order {
			names = append(names, fmt.Sprintf("ring-ref%d", i))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	q := &queueNodes{}
	for _, name := range names {
		ref, err := readUint(r, dir+"/"+name, 0, 1<<32-1, required)
		if err != nil {
			return nil, err
		}
		q.refs = append(q.refs, uint32(ref))
	}
	port, err := readUint(r, dir+"/event-channel", 0, 1<<32-1, required)
	if err != nil {
		return nil, err
	}
	q.port = uint32(port)
	return q, nil
}

// required marks a node without a default.
const required = 1<<64 - 1

// readUint reads a decimal node between low and high. A node that is missing
// has the value def.
func readUint(r reader, path string, low, high, def uint64) (uint64, error) {
	text, err := r.Read(path)
	if errors.Is(err, fs.ErrNotExist) && def != required {
		return def, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimRight(text, "\x00"), 10, 64)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%s: %.32q is not a number from %d to %d", path, text, low, high)
	}
	return n, nil
}

func readOptional(r reader, path, def string) (string, error) {
	text, err := r.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return def, nil
	}
	return text, err
}

// readState reads a state node. exists is false when the node, or all above
// it, is gone. A state that is no state is Unknown.
func readState(r reader, dir string) (s xs.State, exists bool, err error) {
	text, err := r.Read(dir + "/state")
	// A guest that takes our right to read its directory (in a driver
	// domain it can) is as good as gone.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return xs.StateUnknown, false, nil
	}
	if err != nil {
		return xs.StateUnknown, false, err
	}
	s, err = xs.ParseState(strings.TrimRight(text, "\x00"))
	if err != nil {
		s = xs.StateUnknown // whatever a guest wrote there
	}
	return s, true, nil
}
