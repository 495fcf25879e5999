package xs_test

import (
	"testing"

	"xen-disk/xs"
)

func TestParseState(t *testing.T) {
	names := []string{"Unknown", "Initialising", "InitWait", "Initialised", "Connected",
		"Closing", "Closed", "Reconfiguring", "Reconfigured"}
	for n := 1; n <= 8; n++ {
		s := xs.State(n)
		got, err := xs.ParseState(s.Value())
		if err != nil || got != s || got.String() != names[n] {
			t.Errorf("%d: got %v, %v, want %s", n, got, err, names[n])
		}
	}
	for _, lie := range []string{"", "0", "9", "-1", "+4", "04", " 4", "4 ", "4\n", "4\x00",
		"10", "Connected", "٤"} {
		if got, err := xs.ParseState(lie); err == nil || got != xs.StateUnknown {
			t.Errorf("%q: got %v, %v", lie, got, err)
		}
	}
	if got := xs.StateUnknown.String(); got != "Unknown" {
		t.Errorf("got %q", got)
	}
	if got := xs.State(9).String(); got != "State(9)" {
		t.Errorf("got %q", got)
	}
}

func TestParsePerm(t *testing.T) {
	for text, want := range map[string]xs.Perm{
		"n0":     {},
		"r5":     {Domid: 5, Access: xs.AccessRead},
		"w17":    {Domid: 17, Access: xs.AccessWrite},
		"b65535": {Domid: 65535, Access: xs.AccessBoth},
	} {
		got, err := xs.ParsePerm(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	for _, lie := range []string{"", "r", "5", "x5", "R5", "r-1", "r+1", "r 1", "r1 ", "r1\x00",
		"r65536", "r99999999999999999999", "rr1"} {
		if got, err := xs.ParsePerm(lie); err == nil {
			t.Errorf("%q: got %v", lie, got)
		}
	}
	if got := xs.Access(4).String(); got != "Access(4)" {
		t.Errorf("got %q", got)
	}
}
