package xs_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/xs"
)

// TestAnswers is about what requests make of odd replies.
func TestAnswers(t *testing.T) {
	readPerms := func(c *xs.Conn) (any, error) { return c.GetPerms("/a") }
	list := func(c *xs.Conn) (any, error) { return c.Directory("/a") }
	introduced := func(c *xs.Conn) (any, error) { return c.IsDomainIntroduced(5) }
	for _, tc := range []struct {
		name, reply string
		do          func(c *xs.Conn) (any, error)
		want        any
		err         error
	}{
		{"value of any bytes", "a\x00\xff\n\x00", func(c *xs.Conn) (any, error) { return c.Read("/a") },
			"a\x00\xff\n\x00", nil},
		{"no value", "", func(c *xs.Conn) (any, error) { return c.Read("/a") }, "", nil},
		{"no children", "", list, []string{}, nil},
		{"children", "b\x00c\x00", list, []string{"b", "c"}, nil},
		{"children without the last NUL", "b\x00c", list, nil, unix.EIO},
		{"list longer than a message, of oxenstored", strings.Repeat("12345\x00", 1000), list,
			strings.Fields(strings.Repeat("12345 ", 1000)), nil},
		{"permissions", "n0\x00r5\x00", readPerms,
			[]xs.Perm{{}, {Domid: 5, Access: xs.AccessRead}}, nil},
		{"permission of no kind", "n0\x00x5\x00", readPerms, nil, nil},
		{"introduced", "T\x00", introduced, true, nil},
		{"introduced, without NUL", "T", introduced, true, nil},
		{"not introduced", "F\x00", introduced, false, nil},
		{"perhaps introduced", "yes\x00", introduced, nil, unix.EIO},
		{"domain path", "/local/domain/5\x00", func(c *xs.Conn) (any, error) { return c.GetDomainPath(5) },
			"/local/domain/5", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, func(p *peer) {
				if r, ok := p.receive(); ok {
					p.reply(r, tc.reply)
				}
				p.drain()
			})
			got, err := tc.do(c)
			if tc.want == nil {
				if err == nil || tc.err != nil {
					wantError(t, "error", err, tc.err)
				}
				return
			}
			check(t, err)
			wantEqual(t, "answer", got, tc.want)
		})
	}
}

func TestRmOfNothing(t *testing.T) {
	c := start(t, func(p *peer) {
		p.fail(p.expect(rm), "ENOENT")
		p.fail(p.expect(rm), "EACCES")
		p.drain()
	})
	check(t, c.Rm("/no/such/parent"))
	wantError(t, "rm", c.Rm("/a"), unix.EACCES)
}

// part is the answer to one DIRECTORY_PART.
type part struct {
	offset string
	reply  string // or an errno, if it begins with E
}

func TestDirectoryInParts(t *testing.T) {
	for _, tc := range []struct {
		name  string
		parts []part
		want  []string
		err   error
	}{
		{"two parts", []part{{"0", "5\x00a\x00b\x00"}, {"4", "5\x00c\x00\x00"}},
			[]string{"a", "b", "c"}, nil},
		{"end on its own", []part{{"0", "5\x00a\x00"}, {"2", "5\x00\x00"}}, []string{"a"}, nil},
		{"emptied meanwhile", []part{{"0", "6\x00\x00"}}, nil, nil},
		{"changed meanwhile", []part{{"0", "5\x00a\x00b\x00"}, {"4", "6\x00x\x00\x00"},
			{"0", "6\x00d\x00"}, {"2", "7\x00"}}, nil, unix.EIO},
		{"changed meanwhile twice", []part{{"0", "5\x00a\x00b\x00"}, {"4", "6\x00x\x00\x00"},
			{"0", "6\x00d\x00"}, {"2", "7\x00y\x00\x00"}, {"0", "7\x00e\x00"}, {"2", "7\x00f\x00\x00"}},
			[]string{"e", "f"}, nil},
		{"removed meanwhile", []part{{"0", "5\x00a\x00"}, {"2", "ENOENT"}}, nil, unix.ENOENT},
		{"unknown to this xenstored", []part{{"0", "ENOSYS"}}, nil, unix.E2BIG},
		{"part without progress", []part{{"0", "5\x00"}}, nil, unix.EIO},
		{"part without generation", []part{{"0", "5"}}, nil, unix.EIO},
		{"part cut in a name", []part{{"0", "5\x00a\x00b"}}, nil, unix.EIO},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, func(p *peer) {
				p.fail(p.expect(directory), "E2BIG")
				for _, part := range tc.parts {
					r := p.expect(directoryPart)
					wantEqual(t, "request", r.payload, "/a\x00"+part.offset+"\x00")
					if strings.HasPrefix(part.reply, "E") {
						p.fail(r, part.reply)
					} else {
						p.reply(r, part.reply)
					}
				}
				p.drain()
			})
			got, err := c.Directory("/a")
			if tc.err != nil {
				wantError(t, "directory", err, tc.err)
				return
			}
			check(t, err)
			wantEqual(t, "list", strings.Join(got, " "), strings.Join(tc.want, " "))
		})
	}
}

func TestDirectoryThatNeverRests(t *testing.T) {
	var parts atomic.Int32
	c := start(t, func(p *peer) {
		p.fail(p.expect(directory), "E2BIG")
		for {
			r, ok := p.receive()
			if !ok {
				return
			}
			p.reply(r, fmt.Sprintf("%d\x00a\x00", parts.Add(1)))
		}
	})
	_, err := c.Directory("/a")
	wantError(t, "directory", err, unix.EAGAIN)
	// Each restart is seen by the second of two parts.
	wantEqual(t, "parts", parts.Load(), int32(2*(xs.DirectoryRestarts+1)))
}

func TestDirectoryThatNeverEnds(t *testing.T) {
	names := strings.Repeat("name\x00", 800)
	c := start(t, func(p *peer) {
		p.fail(p.expect(directory), "E2BIG")
		for {
			r, ok := p.receive()
			if !ok {
				return
			}
			p.reply(r, "5\x00"+names)
		}
	})
	_, err := c.Directory("/a")
	wantError(t, "directory", err, unix.E2BIG)
}
