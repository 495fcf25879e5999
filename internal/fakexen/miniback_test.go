package fakexen

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"xen-disk/grant"
)

// A miniback is the least backend that can serve a Blkfront, to test the
// frontend with; bug names what it does wrong.
type miniback struct {
	t     *testing.T
	x     *Xenstored
	m     *Machine
	s     *Store
	a     Attach
	disk  []byte
	page  []byte
	bug   string
	feats map[string]string
	stop  chan struct{}
	wg    sync.WaitGroup

	door  *Door
	rings []*miniring
	stopF int
	ended chan struct{}
	conns int
}

type miniring struct {
	mem     []byte
	port    uint32
	lay     layout
	size    uint32
	cons    uint32
	rsp     uint32
	mapped  [][]byte
	persist bool
}

func startBack(t *testing.T, m *Machine, a Attach, bug string, feats map[string]string) *miniback {
	t.Helper()
	x := m.Store()
	b := &miniback{t: t, x: x, m: m, s: x.Store(0), a: a, disk: arena(t, 1<<20), page: arena(t, PageSize), bug: bug,
		feats: feats, stop: make(chan struct{})}
	if err := b.s.Watch(a.FrontendPath(), "f"); err != nil {
		t.Fatal(err)
	}
	if err := b.s.Watch(a.BackendPath(), "b"); err != nil {
		t.Fatal(err)
	}
	b.wg.Add(1)
	go b.control()
	t.Cleanup(func() { close(b.stop); b.wg.Wait() })
	return b
}

func (b *miniback) setState(s string) {
	if v, _ := b.s.Read(b.a.BackendPath() + "/state"); v != s {
		_ = b.s.Write(b.a.BackendPath()+"/state", s)
	}
}

func (b *miniback) control() {
	defer b.wg.Done()
	defer b.disconnect()
	ring := ""
	for {
		select {
		case <-b.stop:
			return
		case <-b.s.Changed():
		}
		b.s.Events()
		front, err := b.s.Read(b.a.FrontendPath() + "/state")
		if err != nil {
			b.disconnect()
			continue
		}
		switch front {
		case "1":
			if v, _ := b.s.Read(b.a.BackendPath() + "/state"); v == "1" || v == "6" {
				for k, v := range b.feats {
					_ = b.s.Write(b.a.BackendPath()+"/"+k, v)
				}
				b.setState("2")
			}
		case "3", "4":
			now, _ := b.s.Read(b.a.FrontendPath() + "/event-channel")
			now2, _ := b.s.Read(b.a.FrontendPath() + "/queue-0/event-channel")
			if now+now2 == ring && b.door != nil {
				continue
			}
			b.disconnect()
			ring = now + now2
			if err := b.connect(); err != nil {
				b.t.Errorf("connect: %v", err)
				return
			}
		case "5":
			b.setState("5")
		case "6":
			if b.bug != "keeps ring" {
				b.disconnect()
			}
			b.setState("6")
		}
	}
}

func (b *miniback) connect() (err error) {
	b.conns++
	if b.door, err = b.m.OpenDoor(0); err != nil {
		return err
	}
	front := b.a.FrontendPath()
	num := func(name string, def uint64) uint64 {
		v, err := b.s.ReadUint(front + "/" + name)
		if err != nil {
			return def
		}
		return v
	}
	n := num("multi-queue-num-queues", 1)
	for i := range n {
		prefix := ""
		if n > 1 {
			prefix = fmt.Sprintf("queue-%d/", i)
		}
		r := &miniring{lay: layout64, persist: num("feature-persistent", 0) == 1 && b.feats["feature-persistent"] == "1"}
		if p, _ := b.s.Read(front + "/protocol"); p == "x86_32-abi" {
			r.lay = layout32
		}
		var refs []uint32
		if order := num("ring-page-order", 99); order == 99 {
			refs = append(refs, uint32(num(prefix+"ring-ref", 0)))
		} else {
			for j := range 1 << order {
				refs = append(refs, uint32(num(prefix+"ring-ref"+strconv.Itoa(j), 0)))
			}
		}
		if r.mem, err = b.door.Map(5, refs, true); err != nil {
			return err
		}
		r.size = r.lay.entries(len(refs))
		if r.port, err = b.door.Bind(5, uint32(num(prefix+"event-channel", 0))); err != nil {
			return err
		}
		b.rings = append(b.rings, r)
	}
	if b.stopF, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return err
	}
	b.ended = make(chan struct{})
	go b.serve(b.door, b.rings, b.stopF, b.ended)
	for _, kv := range [][2]string{{"sectors", "2048"}, {"info", "0"}, {"sector-size", "512"}} {
		_ = b.s.Write(b.a.BackendPath()+"/"+kv[0], kv[1])
	}
	return b.s.Write(b.a.BackendPath()+"/state", "4")
}

func (b *miniback) disconnect() {
	if b.door != nil {
		addEventFD(b.stopF)
		<-b.ended
		b.door, b.rings = nil, nil
	}
}

func (b *miniback) serve(door *Door, rings []*miniring, stop int, ended chan struct{}) {
	defer close(ended)
	defer unix.Close(stop)
	defer door.Close()
	for {
		fds := []unix.PollFd{{Fd: int32(door.EventFD()), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := pollIn(fds, -1); err != nil || fds[1].Revents != 0 {
			return
		}
		var ports [8]uint32
		n, _ := door.Pending(ports[:])
		for _, p := range ports[:n] {
			for _, r := range rings {
				if r.port == p {
					b.pull(door, r)
				}
			}
		}
		_ = door.Unmask(ports[:n])
	}
}

func (b *miniback) pull(door *Door, r *miniring) {
	for {
		rp := index(r.mem, offReqProd).Load()
		if rp-r.cons > r.size {
			return
		}
		for ; r.cons != rp; r.cons++ {
			at := offSlots + int(r.cons&(r.size-1))*r.lay.slot
			req := append([]byte(nil), r.mem[at:at+r.lay.slot]...)
			b.answer(door, r, req)
		}
		index(r.mem, offReqEvent).Store(r.cons + 1)
		if index(r.mem, offReqProd).Load() == r.cons {
			return
		}
	}
}

func (b *miniback) answer(door *Door, r *miniring, req []byte) {
	le := binary.LittleEndian
	op, nr := req[0], int(req[1])
	status := int16(StatusOkay)
	segs := req[r.lay.segs:]
	if op == OpIndirect {
		op, nr = req[1], int(le.Uint16(req[2:]))
		segs = nil
		for i := 0; i*segsPerIndirect < nr; i++ {
			page := b.page // mapped: the stack may move under a Copy
			c := []grant.CopySegment{{Source: packed(le.Uint32(req[r.lay.grefs+4*i:]), 0, 5), Dest: uint64(addressOf(page)), Len: PageSize, Flags: 1}}
			if err := door.Copy(c); err != nil || c[0].Status != 0 {
				status = StatusError
			}
			segs = append(segs, page...)
		}
	}
	switch op {
	case OpRead, OpWrite:
		off := le.Uint64(req[r.lay.sector:]) * sectorSize
		for i := range nr {
			s := segs[8*i:]
			if r.persist {
				mem, err := door.Map(5, []uint32{le.Uint32(s)}, true)
				if err != nil {
					status = StatusError
				}
				r.mapped = append(r.mapped, mem)
			} else if b.bug == "keeps mapped" {
				_, _ = door.Map(5, []uint32{le.Uint32(s)}, false)
			}
			first, n := uint16(s[4]), uint64(s[5]-s[4]+1)*sectorSize
			c := []grant.CopySegment{{Len: uint16(n), Flags: 2 - uint16(op)}}
			guest, local := packed(le.Uint32(s), first*sectorSize, 5), uint64(addressOf(b.disk))+off
			if op == OpRead {
				c[0].Source, c[0].Dest = local, guest
			} else {
				c[0].Source, c[0].Dest = guest, local
			}
			if b.bug == "writes outside" && first > 0 {
				c[0].Dest, c[0].Len = packed(le.Uint32(s), 0, 5), 600
			}
			if err := door.Copy(c); err != nil || c[0].Status != 0 {
				status = StatusError
			}
			off += n
		}
	case OpFlush:
	case OpDiscard:
		at, n := le.Uint64(req[r.lay.sector:])*sectorSize, le.Uint64(req[r.lay.nr:])*sectorSize
		clear(b.disk[at : at+n])
	default:
		status = StatusNotSupported
	}
	b.respond(door, r, op, le.Uint64(req[r.lay.id:]), status)
}

func (b *miniback) respond(door *Door, r *miniring, op byte, id uint64, status int16) {
	at := offSlots + int(r.rsp&(r.size-1))*r.lay.slot
	slot := r.mem[at : at+r.lay.slot]
	switch b.bug {
	case "wrong id":
		id++
	case "wrong op":
		op++
	case "leaks padding":
		slot[9] = 0x41
	case "leaks tail":
		slot[r.lay.response] = 0x41
	}
	binary.LittleEndian.PutUint64(slot, id)
	slot[8] = op
	binary.LittleEndian.PutUint16(slot[10:], uint16(status))
	old := r.rsp
	r.rsp++
	if b.bug == "rsp_prod too far" {
		r.rsp += 5
	}
	index(r.mem, offRspProd).Store(r.rsp)
	if r.rsp-index(r.mem, offRspEvent).Load() < r.rsp-old {
		_ = door.Notify(r.port)
	}
}
