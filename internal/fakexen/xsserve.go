package fakexen

import (
	"net"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	floodStep  = 256  // events of Flood before it looks at the queues
	queueShort = 4096 // Flood waits until no more than this are unsent
)

var kindNames = map[uint32]string{
	xsControl: "CONTROL", xsDirectory: "DIRECTORY", xsRead: "READ",
	xsGetPerms: "GET_PERMS", xsWatch: "WATCH", xsUnwatch: "UNWATCH",
	xsTxStart: "TRANSACTION_START", xsTxEnd: "TRANSACTION_END",
	xsIntroduce: "INTRODUCE", xsRelease: "RELEASE",
	xsGetDomainPath: "GET_DOMAIN_PATH", xsWrite: "WRITE", xsMkdir: "MKDIR",
	xsRm: "RM", xsSetPerms: "SET_PERMS",
	xsDomainIntroduced: "IS_DOMAIN_INTRODUCED",
	xsResetWatches:     "RESET_WATCHES", xsDirectoryPart: "DIRECTORY_PART",
}

// A client is one connection: a goroutine that reads and serves, and one that
// writes what is queued. Both end with the connection.
type client struct {
	conn   *net.UnixConn
	s      *session
	mu     sync.Mutex
	change *sync.Cond // of queue or closed
	queue  []message
	closed bool
}

func (x *Xenstored) serve(conn *net.UnixConn, domid uint32) {
	c := &client{conn: conn}
	c.change = sync.NewCond(&c.mu)
	c.s = &session{domid: domid, client: c}
	c.s.event = func(path, token string) {
		if p := nulStrings(path, token); len(p) <= maxPayload {
			c.send(message{kind: xsWatchEvent, payload: p})
		}
	}
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		_ = conn.Close()
		return
	}
	x.addSession(c.s)
	x.serving.Add(2)
	x.mu.Unlock()
	go func() {
		defer x.serving.Done()
		c.write()
	}()
	go func() {
		defer x.serving.Done()
		c.read(x)
	}()
}

func (c *client) read(x *Xenstored) {
	for {
		q, err := readMessage(c.conn)
		if err != nil {
			break
		}
		x.handle(c.s, q, c.send)
	}
	c.close()
	x.mu.Lock()
	x.removeSession(c.s)
	x.mu.Unlock()
}

func (c *client) write() {
	var batch []message
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.closed {
			c.change.Wait()
		}
		if c.closed {
			c.mu.Unlock()
			return
		}
		batch, c.queue = c.queue, batch[:0]
		c.change.Broadcast()
		c.mu.Unlock()
		var out []byte
		for _, m := range batch {
			out = append(out, m.encode()...)
		}
		if _, err := c.conn.Write(out); err != nil {
			c.close()
			return
		}
	}
}

func (c *client) send(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.queue = append(c.queue, m)
		c.change.Broadcast()
	}
}

func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		_ = c.conn.Close()
		c.change.Broadcast()
	}
}

func (c *client) waitShort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > queueShort && !c.closed {
		c.change.Wait()
	}
}

// dispatch serves all but WATCH. The caller holds x.mu.
func (x *Xenstored) dispatch(s *session, q message) ([]byte, error) {
	switch q.kind {
	case xsUnwatch:
		if ss := manyStrings(q.payload); len(ss) == 2 {
			return nulStrings("OK"), s.unwatch(ss[0], ss[1])
		}
		return nil, unix.EINVAL
	case xsResetWatches:
		s.watches = nil
		clear(s.txs)
		return nulStrings("OK"), nil
	case xsIntroduce, xsRelease, xsControl:
		if s.domid != 0 {
			return nil, unix.EACCES
		}
		return nil, unix.ENOSYS // tests call Introduce and Release
	case xsGetDomainPath, xsDomainIntroduced:
		return x.aboutDomain(s, q)
	}
	v, err := s.view(q.tx)
	if err != nil {
		return nil, err
	}
	switch q.kind {
	case xsTxStart:
		if q.tx != 0 {
			return nil, unix.EBUSY
		}
		id, err := s.txStart()
		return nulStrings(strconv.FormatUint(uint64(id), 10)), err
	case xsTxEnd:
		arg, err := oneString(q.payload)
		if err != nil || arg != "T" && arg != "F" {
			return nil, unix.EINVAL
		}
		return nulStrings("OK"), s.txEnd(q.tx, arg == "T")
	case xsDirectory, xsRead, xsGetPerms, xsDirectoryPart:
		return s.queries(v, q)
	case xsWrite, xsMkdir, xsRm, xsSetPerms:
		return nulStrings("OK"), s.changes(v, q)
	}
	return nil, unix.ENOSYS
}

func (x *Xenstored) aboutDomain(s *session, q message) ([]byte, error) {
	arg, err := oneString(q.payload)
	if err != nil {
		return nil, err
	}
	domid, _ := strconv.ParseUint(arg, 10, 32) // as atoi: no number is 0
	if q.kind == xsGetDomainPath {
		return nulStrings(domainPath(uint32(domid))), nil
	}
	if s.domid != 0 {
		return nil, unix.EACCES
	}
	if x.introduced[uint32(domid)] {
		return nulStrings("T"), nil
	}
	return nulStrings("F"), nil
}

func (s *session) queries(v view, q message) ([]byte, error) {
	if q.kind == xsDirectoryPart {
		ss := manyStrings(q.payload)
		if len(ss) != 2 {
			return nil, unix.EINVAL
		}
		children, gen, err := s.directory(v, ss[0])
		off, _ := strconv.Atoi(ss[1])
		return directoryPart(children, gen, off), err
	}
	path, err := oneString(q.payload)
	if err != nil {
		return nil, err
	}
	switch q.kind {
	case xsDirectory:
		children, _, err := s.directory(v, path)
		return nulStrings(children...), err
	case xsGetPerms:
		ps, err := s.getPerms(v, path)
		return nulStrings(formatPerms(ps)...), err
	}
	return s.read(v, path)
}

func (s *session) changes(v view, q message) error {
	switch q.kind {
	case xsWrite: // path, NUL, and the value without a NUL
		for i, c := range q.payload {
			if c == 0 {
				return s.write(v, string(q.payload[:i]), q.payload[i+1:])
			}
		}
		return unix.EINVAL
	case xsSetPerms:
		ss := manyStrings(q.payload)
		if len(ss) < 2 {
			return unix.EINVAL
		}
		ps, err := parsePerms(ss[1:])
		if err != nil {
			return err
		}
		return s.setPerms(v, ss[0], ps)
	}
	path, err := oneString(q.payload)
	if err != nil {
		return err
	}
	if q.kind == xsMkdir {
		return s.mkdir(v, path)
	}
	return s.rm(v, path)
}
