package fakexen

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// le32 and le64 spell bytes as in blkif.h's structs; p is padding.
const p = filler

func TestGoldenSlots(t *testing.T) {
	read := RawReq{Op: OpRead, Flag: 2, Handle: 0xca00, ID: 0x1122334455667788, Sector: 0x0102030405060708,
		Segs: []Seg{{0x0a0b0c0d, 1, 7}, {9, 0, 3}}}
	discard := RawReq{Op: OpDiscard, Flag: 1, Handle: 0xca00, ID: 0x1122334455667788, Sector: 3, NrSectors: 0xff00}
	indirect := RawReq{Op: OpIndirect, Flag: OpWrite, Handle: 0xca00, ID: 5, Sector: 6, NrSegs: 0x0203, Refs: []uint32{0x0a0b0c0d, 8}}
	id, sec := []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11}, []byte{8, 7, 6, 5, 4, 3, 2, 1}
	segs := []byte{0x0d, 0x0c, 0x0b, 0x0a, 1, 7, p, p, 9, 0, 0, 0, 0, 3, p, p}
	pad := []byte{p, p, p, p}
	for _, c := range []struct {
		name string
		lay  layout
		req  RawReq
		want [][]byte
		size int
	}{
		{"read 64", layout64, read, [][]byte{{0, 2, 0, 0xca}, pad, id, sec, segs}, 112},
		{"read 32", layout32, read, [][]byte{{0, 2, 0, 0xca}, id, sec, segs}, 108},
		{"discard 64", layout64, discard, [][]byte{{5, 1, 0, 0xca}, pad, id, {3, 0, 0, 0, 0, 0, 0, 0}, {0, 0xff, 0, 0, 0, 0, 0, 0}}, 112},
		{"discard 32", layout32, discard, [][]byte{{5, 1, 0, 0xca}, id, {3, 0, 0, 0, 0, 0, 0, 0}, {0, 0xff, 0, 0, 0, 0, 0, 0}}, 108},
		{"indirect 64", layout64, indirect, [][]byte{{6, 1, 3, 2}, pad, {5, 0, 0, 0, 0, 0, 0, 0}, {6, 0, 0, 0, 0, 0, 0, 0}, {0, 0xca, p, p}, {0x0d, 0x0c, 0x0b, 0x0a, 8, 0, 0, 0}}, 112},
		{"indirect 32", layout32, indirect, [][]byte{{6, 1, 3, 2}, {5, 0, 0, 0, 0, 0, 0, 0}, {6, 0, 0, 0, 0, 0, 0, 0}, {0, 0xca, p, p}, {0x0d, 0x0c, 0x0b, 0x0a, 8, 0, 0, 0}}, 108},
	} {
		want := bytes.Join(c.want, nil)
		got := c.lay.encode(c.req)
		if len(got) != c.size || !bytes.Equal(got[:len(want)], want) || bytes.Count(got[len(want):], []byte{p}) != c.size-len(want) {
			t.Errorf("%s: % x\nwant % x and filler to %d", c.name, got, want, c.size)
		}
	}
	r := decodeResponse([]byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 3, p, 0xfe, 0xff})
	if r != (Response{0x1122334455667788, 3, -2}) {
		t.Errorf("response %+v", r)
	}
	for pages, want := range map[int]uint32{1: 32, 2: 64, 4: 128, 8: 256, 16: 512} {
		if a, b := layout64.entries(pages), layout32.entries(pages); a != want || b != want {
			t.Errorf("%d pages: %d and %d slots, want %d", pages, a, b, want)
		}
	}
}

type vbd struct {
	m     *Machine
	x     *Xenstored
	a     Attach
	back  *miniback
	front *Blkfront
}

func attach(t *testing.T, opts Options, bug string, feats map[string]string) *vbd {
	t.Helper()
	v := &vbd{m: newMachine(t), a: Attach{DomID: 5, DevID: 51712, Vdev: "xvda"}}
	v.x = newStore(t, v.m)
	if _, err := v.m.Boot(5, "guest", "u5"); err != nil {
		t.Fatal(err)
	}
	if err := v.m.AttachVBD(v.a); err != nil {
		t.Fatal(err)
	}
	var err error
	if v.front, err = NewBlkfront(v.m, 5, 51712, opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.front.Stop() })
	v.back = startBack(t, v.m, v.a, bug, feats)
	if err := v.front.WaitConnected(deadline(t)); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vbd) check(t *testing.T) {
	t.Helper()
	if err := v.front.Violations(); err != nil {
		t.Error(err)
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

var allFeatures = map[string]string{"max-ring-page-order": "4", "multi-queue-max-queues": "4",
	"feature-persistent": "1", "feature-max-indirect-segments": "256"}

func TestFrontends(t *testing.T) {
	for _, c := range []struct {
		name   string
		opts   Options
		queues int
		size   uint32
	}{
		{"default", Options{}, 1, 32},
		{"x86_64", Options{ABI: "x86_64-abi"}, 1, 32},
		{"x86_32", Options{ABI: "x86_32-abi"}, 1, 32},
		{"16 pages, 4 queues, 32 bit", Options{ABI: "x86_32-abi", RingOrder: 4, Queues: 4}, 4, 512},
		{"more than the backend has", Options{RingOrder: 9, Queues: 9}, 4, 512},
		{"order 0 spelled out", Options{WriteOrder: true, WriteQueues: true}, 1, 32},
		{"persistent", Options{Persistent: true}, 1, 32},
		{"indirect", Options{Indirect: 32}, 1, 32},
		{"indirect, persistent", Options{Indirect: 256, Persistent: true}, 1, 32},
		{"sub-page", Options{FirstSect: 3}, 1, 32},
		{"polled", Options{Polled: true, Indirect: 32}, 1, 32},
		{"wide ids", Options{WideIDs: true, RingOrder: 1}, 1, 64},
		{"MiniOS", Options{StateReady: 4}, 1, 32},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := attach(t, c.opts, "", allFeatures)
			ctx := deadline(t)
			data := pattern(300*512 + 7*512)
			if err := v.front.Write(ctx, 9, data); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(v.back.disk[9*512:9*512+len(data)], data) {
				t.Error("the disk has other bytes")
			}
			got, err := v.front.Read(ctx, 9, len(data)/512)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read other bytes, %v", err)
			}
			if s, err := v.front.Flush(ctx); s != 0 || err != nil {
				t.Errorf("flush %d, %v", s, err)
			}
			if s, err := v.front.Discard(ctx, 11, 5); s != 0 || err != nil {
				t.Errorf("discard %d, %v", s, err)
			}
			clear(data[2*512 : 7*512])
			if !bytes.Equal(v.back.disk[9*512:9*512+len(data)], data) {
				t.Error("the discard was of other sectors")
			}
			if s, err := v.front.Do(ctx, Req{Op: 200}); s != StatusNotSupported || err != nil {
				t.Errorf("op 200: %d, %v", s, err)
			}
			if qs := v.front.allQueues(); len(qs) != c.queues || qs[0].size != c.size {
				t.Errorf("%d queues of %d, want %d of %d", len(qs), qs[0].size, c.queues, c.size)
			}
			for i := range c.queues {
				if s, err := v.front.Do(ctx, Req{Op: OpFlush, Queue: i}); s != 0 || err != nil {
					t.Errorf("queue %d: %d, %v", i, s, err)
				}
			}
			v.check(t)
			free := v.front.dom.FreePages()
			if err := v.front.Close(ctx); err != nil {
				t.Fatal(err)
			}
			if v.front.dom.FreePages() <= free || v.front.dom.Grants() != 0 {
				t.Errorf("%d grants are left", v.front.dom.Grants())
			}
			v.check(t)
		})
	}
}

func TestDiscardNodes(t *testing.T) {
	for _, c := range []struct {
		name  string
		feats map[string]string
		want  Info
	}{
		{"all", map[string]string{"feature-discard": "1", "discard-granularity": "2097152", "discard-alignment": "512", "discard-secure": "1"},
			Info{Discard: true, DiscardGranularity: 2 << 20, DiscardAlignment: 512, DiscardSecure: true}},
		{"only that there is one", map[string]string{"feature-discard": "1"}, Info{Discard: true}},
		{"none", map[string]string{"feature-discard": "0", "discard-secure": "0"}, Info{}},
		{"nothing", nil, Info{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := attach(t, Options{}, "", c.feats).front.Info()
			c.want.Sectors, c.want.SectorSize = 2048, 512
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestDepth(t *testing.T) {
	v := attach(t, Options{RingOrder: 2}, "", allFeatures)
	ctx := deadline(t)
	data := pattern(128 * 512)
	var reqs []Req
	for i := range 128 {
		reqs = append(reqs, Req{Op: OpWrite, Sector: uint64(i), Data: data[i*512 : (i+1)*512]})
	}
	for range 10 {
		ps, err := v.front.Submit(reqs...)
		if err != nil || len(ps) != 128 {
			t.Fatalf("%d put, %v", len(ps), err)
		}
		for _, p := range ps {
			if s, err := p.Wait(ctx); s != 0 || err != nil {
				t.Fatalf("%d, %v", s, err)
			}
		}
	}
	if !bytes.Equal(v.back.disk[:len(data)], data) {
		t.Error("the disk has other bytes")
	}
	if n := v.m.Stats().ToBackend; n > 128 {
		t.Errorf("%d notifications for 10 pushes", n)
	}
	over, err := v.front.Submit(append(reqs, Req{Op: OpFlush})...)
	if len(over) < 128 || err != nil && !errors.Is(err, ErrRingFull) {
		t.Errorf("%d put, %v", len(over), err)
	}
	if err := v.front.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	v.check(t)
}

func TestBadBackendIsNoticed(t *testing.T) {
	for _, c := range []struct {
		bug, want string
	}{
		{"wrong id", "not in flight"},
		{"wrong op", "response to operation 0 says 1"},
		{"rsp_prod too far", "is past req_prod"},
		{"leaks padding", "byte 9 is 0x41"},
		{"leaks tail", "byte 16 is 0x41"},
		{"keeps mapped", "response before unmap"},
		{"writes outside", "outside the segment"},
	} {
		t.Run(c.bug, func(t *testing.T) {
			v := attach(t, Options{}, c.bug, nil)
			_, err := v.front.Do(deadline(t), Req{Op: OpRead, Data: make([]byte, 512), FirstSect: 2})
			if v := v.front.Violations(); v == nil || !strings.Contains(v.Error(), c.want) {
				t.Errorf("violations %v, want %q", v, c.want)
			}
			if err == nil && !strings.HasPrefix(c.bug, "leaks") {
				t.Error("the request succeeds")
			}
		})
	}
	v := attach(t, Options{}, "keeps ring", nil)
	if err := v.front.Close(deadline(t)); err == nil || !strings.Contains(err.Error(), "backend still uses grant") {
		t.Errorf("close: %v", err)
	}
}

func TestLies(t *testing.T) {
	v := attach(t, Options{}, "", nil)
	ctx := deadline(t)
	nine, op := uint64(1<<63+9), uint8(77)
	if s, err := v.front.Do(ctx, Req{Op: OpRead, Segs: []Seg{{4711, 0, 7}}}); s != StatusError || err != nil {
		t.Errorf("bad ref: %d, %v", s, err)
	}
	if s, err := v.front.Do(ctx, Req{Op: OpFlush, ID: &nine}); s != 0 || err != nil {
		t.Errorf("id: %d, %v", s, err)
	}
	if s, err := v.front.Do(ctx, Req{Op: OpRead, Data: make([]byte, 512), Indirect: true, IndirectOp: &op}); s != StatusNotSupported || err != nil {
		t.Errorf("indirect op: %d, %v", s, err)
	}
	v.check(t)
	r, err := v.front.Raw(0)
	if err != nil {
		t.Fatal(err)
	}
	r.Push(RawReq{Op: OpFlush, ID: 1 << 60}, RawReq{Op: 9, ID: 2})
	rs, err := r.Responses(ctx, 2)
	if err != nil || rs[0] != (Response{1 << 60, OpFlush, 0}) || rs[1] != (Response{2, 9, StatusNotSupported}) {
		t.Errorf("%+v, %v", rs, err)
	}
	page, ref := r.Page(true)
	if r.RevokePage(page, ref) {
		t.Error("an unused page is in use")
	}
	r.RevokeRing()
	if v.front.dom.Grants() != 1 {
		t.Errorf("%d grants: the mapped ring stays until it is unmapped", v.front.dom.Grants())
	}
}

func TestLifeOfAFrontend(t *testing.T) {
	v := attach(t, Options{}, "", nil)
	ctx := deadline(t)
	io := func(what string) {
		t.Helper()
		if err := v.front.Write(ctx, 0, pattern(8192)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	io("first")
	if err := v.front.Reopen(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.front.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	io("after Reopen")
	if err := v.front.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := v.front.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	io("after Reset")
	if n := v.front.Connects(); n != 3 {
		t.Errorf("connected %d times, want 3", n)
	}
	s := v.x.Store(0)
	if err := s.Tx(func(tx *Store) error {
		return errors.Join(tx.Write(v.a.BackendPath()+"/sectors", "4096"), tx.Write(v.a.BackendPath()+"/state", "4"))
	}); err != nil {
		t.Fatal(err)
	}
	if err := v.front.WaitSectors(ctx, 4096); err != nil {
		t.Fatal(err)
	}
	// The toolstack detaches: 5, and the frontend answers 5, 6.
	if err := s.Write(v.a.BackendPath()+"/state", "5"); err != nil {
		t.Fatal(err)
	}
	if err := v.front.WaitClosed(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := v.front.Do(ctx, Req{Op: OpFlush}); !errors.Is(err, ErrClosed) {
		t.Errorf("request of a closed frontend: %v", err)
	}
	v.check(t)
	if err := v.front.Stop(); err != nil {
		t.Error(err)
	}
	if err := v.front.Stop(); err != nil {
		t.Error(err)
	}
}

func TestRefuseClose(t *testing.T) {
	v := attach(t, Options{RefuseClose: true}, "", nil)
	ctx, s := deadline(t), v.x.Store(0)
	if err := s.Write(v.a.BackendPath()+"/state", "5"); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitValue(ctx, v.a.FrontendPath()+"/state", "5"); err != nil {
		t.Fatal(err)
	}
	if err := v.front.Write(ctx, 0, pattern(512)); err != nil {
		t.Errorf("I/O while in use: %v", err)
	}
	if err := v.front.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestGoroutinesEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("life", func(t *testing.T) {
		v := attach(t, Options{Queues: 4}, "", allFeatures)
		if err := v.front.Write(deadline(t), 0, pattern(512)); err != nil {
			t.Fatal(err)
		}
		dialWire(t, v.x, 0).call(2, 0, "name\x00")
	})
	for ctx := deadline(t); runtime.NumGoroutine() > before; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatalf("%d goroutines, were %d", runtime.NumGoroutine(), before)
		}
	}
}
