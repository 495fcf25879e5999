package blkback

import (
	"fmt"
	"strings"
	"testing"

	"xen-disk/internal/fakexen"
)

// honest makes a ring in the guest, and the nodes that tell of it.
func (r *rig) honest() map[string]string {
	dom := r.m.Domain(guest)
	page := dom.AllocPage()
	b := dom.Page(page)
	clear(b)
	b[4], b[12] = 1, 1 // req_event and rsp_event, as SHARED_RING_INIT
	return map[string]string{
		"ring-ref":      fmt.Sprint(dom.Grant(page, 0, false)),
		"event-channel": fmt.Sprint(dom.AllocUnbound(0)),
		"protocol":      "x86_64-abi",
	}
}

// lies are the ways to publish a ring that cannot be served.
func (r *rig) lies() map[string]func(n map[string]string) {
	dom, other := r.m.Domain(guest), r.boot(6)
	set := func(name, value string) func(map[string]string) {
		return func(n map[string]string) { n[name] = value }
	}
	drop := func(name string) func(map[string]string) {
		return func(n map[string]string) { delete(n, name) }
	}
	number := func(name string, f func() uint32) func(map[string]string) {
		return func(n map[string]string) { n[name] = fmt.Sprint(f()) }
	}
	foreign := func() (port uint32) {
		for range 100 { // past any port of the guest's own
			port = other.AllocUnbound(0)
		}
		return port
	}
	lies := map[string]func(map[string]string){
		"protocol unknown":              set("protocol", "mips-abi"),
		"protocol of 2000 bytes":        set("protocol", strings.Repeat("x", 2000)),
		"protocol with control bytes":   set("protocol", "\x1b[2J\x00\n"),
		"ring-ref missing":              drop("ring-ref"),
		"ring-ref empty":                set("ring-ref", ""),
		"ring-ref no number":            set("ring-ref", "eight"),
		"ring-ref negative":             set("ring-ref", "-1"),
		"ring-ref 0":                    set("ring-ref", "0"),
		"ring-ref of 33 bits":           set("ring-ref", "4294967304"),
		"ring-ref of 400 digits":        set("ring-ref", strings.Repeat("9", 400)),
		"ring-ref not granted":          set("ring-ref", "4000000000"),
		"ring-ref granted to another":   number("ring-ref", func() uint32 { return dom.Grant(dom.AllocPage(), 6, false) }),
		"ring-ref granted read-only":    number("ring-ref", func() uint32 { return dom.Grant(dom.AllocPage(), 0, true) }),
		"event-channel missing":         drop("event-channel"),
		"event-channel no number":       set("event-channel", "0x10"),
		"event-channel unknown":         set("event-channel", "70000"),
		"event-channel of 33 bits":      set("event-channel", "4294967297"),
		"event-channel of another":      number("event-channel", foreign),
		"event-channel for another":     number("event-channel", func() uint32 { return dom.AllocUnbound(6) }),
		"order 0 without ring-ref0":     set("ring-page-order", "0"),
		"nothing but the state":         func(n map[string]string) { clear(n) },
		"flat layout, but of two rings": set("multi-queue-num-queues", "2"),
	}
	for _, order := range []string{"1", "5", "31", "32", "64", "-1", "abc", "", "18446744073709551616"} {
		lies[fmt.Sprintf("ring-page-order %q", order)] = set("ring-page-order", order)
	}
	for _, n := range []string{"0", "65536", "-1", "x"} {
		lies["multi-queue-num-queues "+n] = set("multi-queue-num-queues", n)
	}
	return lies
}

func TestLyingFrontendIsRefusedOnceAndMayStartOver(t *testing.T) {
	r := newRig(t)
	lies := r.lies()
	bystander := r.attach(Spec{})
	witness := bystander.connect(fakexen.Options{})
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			lines := r.log.count("cannot serve the frontend")
			d := r.attach(Spec{})
			f := d.front(fakexen.Options{Manual: true})
			d.state("2")
			nodes := r.honest()
			lie(nodes)
			for n, v := range nodes {
				r.ok(f.Node(n, v))
			}
			r.ok(f.SetState("3"))
			refused := d.await(EventRefused, 1)
			d.state("5")
			if refused.Err == nil || r.read(d.paths.err+"/error") != refused.Err.Error() {
				t.Errorf("error node %q, event %v", r.read(d.paths.err+"/error"), refused.Err)
			}
			if len(refused.Err.Error()) > 400 || strings.ContainsAny(refused.Err.Error(), "\x00\x1b\n") {
				t.Errorf("the guest's bytes reach the error: %q", refused.Err)
			}
			r.works(witness)
			for n := range nodes {
				r.ok(f.Node(n))
			}
			r.ok(f.SetState("6"))
			d.state("6")
			r.ok(f.SetState("1"))
			d.state("2")
			f.Auto()
			r.ok(f.WaitConnected(r.ctx()))
			r.works(f)
			r.ok(f.Violations())
			expect(t, "refusals", d.count(EventRefused), 1)
			expect(t, "lines logged", r.log.count("cannot serve the frontend")-lines, 1)
			d.stop()
			r.gone(d.paths.err)
		})
	}
	r.works(witness)
	expect(t, "refusals of the bystander", bystander.count(EventRefused), 0)
	expect(t, "pages mapped", r.m.Mapped(), 1)
	bystander.stop()
}

func TestOneQueueSpelledOutIsFlat(t *testing.T) {
	r := newRig(t)
	for _, o := range []fakexen.Options{
		{WriteQueues: true}, {WriteOrder: true}, {WriteQueues: true, WriteOrder: true, ABI: "x86_32-abi"},
		{Native32: true}, // gnumach: no protocol at all
		{Extra: map[string]string{"feature-persistent": "1", "feature-large-sector-size": "1"}},
	} {
		d := r.attach(Spec{})
		f := d.connect(o)
		r.works(f)
		d.stop()
	}
}

func TestRefusedFrontendThatNeverMovesCanBeDetached(t *testing.T) {
	for _, how := range []string{"detach", "toolstack", "force"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			d := r.attach(Spec{})
			f := d.front(fakexen.Options{Manual: true})
			d.state("2")
			r.ok(f.SetState("3"))
			d.await(EventRefused, 1)
			switch how {
			case "detach":
				d.stop()
			case "toolstack":
				r.libxlDetach(d)
				d.ends(EventDetached)
			case "force":
				d.Force()
				d.ends(EventForced)
			}
		})
	}
}

func TestFrontendThatCannotBeServedForWantOfADoor(t *testing.T) {
	r := newRig(t)
	d := r.attach(Spec{})
	r.m.SetFault(func(op string, n int) error {
		if op == "map" && n == 0 {
			return fmt.Errorf("map: %s", strings.Repeat("no memory ", 1000))
		}
		return nil
	})
	f := d.front(fakexen.Options{})
	d.await(EventRefused, 1)
	r.eventually("the frontend closes", func() bool { return f.State() == "6" })
	if n := len(r.read(d.paths.err + "/error")); n < 100 || n > maxErrorBytes {
		t.Errorf("error node of %d bytes", n)
	}
	r.ok(f.Reopen(r.ctx()))
	r.ok(f.WaitConnected(r.ctx()))
	r.works(f)
	d.stop()
}

func TestRingThatIsBrokenFromTheStartIsReported(t *testing.T) {
	r := newRig(t)
	for range 20 {
		d := r.attach(Spec{})
		f := d.front(fakexen.Options{Manual: true})
		d.state("2")
		nodes := r.honest()
		var ref uint32
		_, err := fmt.Sscan(nodes["ring-ref"], &ref)
		r.ok(err)
		page := r.m.Domain(guest).AllocPage()
		ring := r.m.Domain(guest).Page(page)
		clear(ring)
		ring[3] = 0x80 // req_prod is far past the ring
		nodes["ring-ref"] = fmt.Sprint(r.m.Domain(guest).Grant(page, 0, false))
		for n, v := range nodes {
			r.ok(f.Node(n, v))
		}
		r.ok(f.SetState("3"))
		d.await(EventRefused, 1)
		d.state("5")
		r.ok(f.SetState("6"))
		d.state("6")
		d.stop()
	}
}
