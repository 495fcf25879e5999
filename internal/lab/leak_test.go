package lab

import (
	"reflect"
	"testing"
)

const snapshotBefore = `/tool = ""   (n0)
/local/domain/0/name = "Domain-0"   (n0)
=== domains
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0  1400     1     r-----       6.9
=== events
   1: VCPU 0: Virtual IRQ 0
   2: VCPU 0: IPI
   3: VCPU 0: IPI
=== grants
(XEN) gnttab_usage_print_all [ key 'g' pressed
(XEN)       -------- active --------       -------- shared --------
(XEN) [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) grant-table for remote d0 (v1)
(XEN)   1 frames (64 max), 0 maptrack frames (1024 max)
(XEN) no active grant table entries
(XEN) gnttab_usage_print_all ] done
`

const snapshotAfter = `/tool = ""   (n0)
/local/domain/0/name = "Domain-0"   (n0)
/local/domain/0/memory/target = "1"   (n0)
/local/domain/0/backend/vbd/1/51712/state = "6"   (n0,r1)
=== domains
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0  1400     1     r-----      16.9
(null)                                       1     0     1     --ps-d       0.1
=== events
   1: VCPU 0: Virtual IRQ 0
   2: VCPU 0: IPI
   4: VCPU 0: IPI
  31: VCPU 0: Interdomain (Connected) - Remote Domain 1, Port 8
=== grants
(XEN) gnttab_usage_print_all [ key 'g' pressed
(XEN) grant-table for remote d0 (v1)
(XEN) no active grant table entries
(XEN) grant-table for remote d1 (v1)
(XEN) [0x008]      0 0xa2fab 0x00000001          0 0x0a2fab 0x19
(XEN) gnttab_usage_print_all ] done
`

func TestLeaks(t *testing.T) {
	before, err := parseSnapshot(snapshotBefore)
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseSnapshot(snapshotAfter)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`xenstore: /local/domain/0/backend/vbd/1/51712/state = "6" (n0,r1)`,
		"domain: 1 (null) dying",
		"event channel: VCPU 0: Interdomain (Connected) - Remote Domain 1, Port 8",
		"grant: d1 [0x008] 0 0xa2fab 0x00000001 0 0x0a2fab 0x19",
	}
	if got := Leaks(before, after); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := Leaks(after, before); len(got) != 0 {
		t.Errorf("what is gone is no leak: got %q", got)
	}
	if _, err := parseSnapshot("half"); err == nil {
		t.Error("parsed half a snapshot")
	}
}

func TestAddedCounts(t *testing.T) {
	got := added("x", []string{"a", "a"}, []string{"a", "a", "a"})
	if want := []string{"x: a"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
