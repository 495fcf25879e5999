package xs_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"xen-disk/xs"
)

var update = flag.Bool("update", false, "write testdata/requests.golden")

// TestRequestBytes holds every request, as it is on the wire, against
// testdata/requests.golden: the type's number, then the payload in hex (the
// header's other fields vary, and are checked by the tests of replies).
func TestRequestBytes(t *testing.T) {
	var got strings.Builder // the peer's until done
	done := make(chan struct{})
	c := start(t, func(p *peer) {
		defer close(done)
		answers := map[uint32]string{
			transactionStart: "5\x00", isIntroduced: "T\x00", getPerms: "n0\x00",
		}
		for {
			r, ok := p.receive()
			if !ok {
				return
			}
			fmt.Fprintf(&got, "%-2d tx=%d %s %q\n", r.typ, r.tx, hex.EncodeToString([]byte(r.payload)), r.payload)
			if r.typ == directory && r.tx == 0 {
				p.fail(r, "E2BIG")
			} else if r.typ == directoryPart {
				p.reply(r, "1\x00a\x00\x00")
			} else {
				p.reply(r, answers[r.typ])
			}
		}
	})
	must[string](t)(c.Read("/a/b"))
	check(t, c.Write("/a/b", "v\x00w"))
	check(t, c.Write("/a/b", ""))
	check(t, c.Mkdir("/a/c"))
	check(t, c.Rm("/a"))
	must[[]string](t)(c.Directory("/a"))
	must[[]xs.Perm](t)(c.GetPerms("/a"))
	check(t, c.SetPerms("/a", xs.Perm{}, xs.Perm{Domid: 5, Access: xs.AccessBoth}))
	must[string](t)(c.GetDomainPath(7))
	must[bool](t)(c.IsDomainIntroduced(7))
	w := must[*xs.Watch](t)(c.Watch("backend/vbd", func(string) {}))
	check(t, w.Close())
	check(t, c.Transaction(func(tx *xs.Tx) error {
		must[string](t)(tx.Read("/a"))
		check(t, tx.Write("/a", "1"))
		check(t, tx.Mkdir("/a/b"))
		check(t, tx.Rm("/a/b"))
		must[[]string](t)(tx.Directory("/a"))
		must[[]xs.Perm](t)(tx.GetPerms("/a"))
		check(t, tx.SetPerms("/a", xs.Perm{Domid: 1}))
		return nil
	}))
	check(t, c.Close())
	await(t, "peer", done)
	const file = "testdata/requests.golden"
	if *update {
		check(t, os.WriteFile(file, []byte(got.String()), 0o644))
	}
	want, err := os.ReadFile(file)
	check(t, err)
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}
