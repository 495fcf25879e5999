package xs_test

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/internal/fakexen"
	"xen-disk/xs"
)

// TestConformance holds the client and a whole xenstore against each other:
// the one at $XS_TEST_PATH (a socket or a device), or the pretend one. On a
// real dom0:
//
//	CGO_ENABLED=0 go test -c -o xs.test ./xs     # static
//	XS_TEST_PATH=/run/xenstored/socket ./xs.test -test.v -test.run Conformance
//	XS_TEST_PATH=/dev/xen/xenbus       ./xs.test -test.v -test.run Conformance
//
// It works below /local/domain/0/xs-test-<pid> and leaves nothing there.
// $XS_TEST_ROOT is another place, for a domain other than dom0.
func TestConformance(t *testing.T) {
	path := os.Getenv("XS_TEST_PATH")
	if path == "" {
		x, err := fakexen.NewXenstored(nil)
		check(t, err)
		t.Cleanup(func() { check(t, x.Close()) })
		path = x.Path()
	}
	testConn(t, opener(t, path))
}

// opener opens connections to path that are pumped and closed with the test.
func opener(t *testing.T, path string) func() *xs.Conn {
	return func() *xs.Conn {
		t.Helper()
		c, err := xs.Open(path)
		check(t, err)
		c.Start()
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
}

// testConn is the conformance suite. open returns a new connection to the
// same xenstore every time.
func testConn(t *testing.T, open func() *xs.Conn) {
	base := os.Getenv("XS_TEST_ROOT")
	if base == "" {
		base = "/local/domain/0"
	}
	base = fmt.Sprintf("%s/xs-test-%d", base, os.Getpid())
	c := open()
	t.Cleanup(func() {
		if err := c.Rm(base); err != nil {
			t.Errorf("clean up %s: %v", base, err)
		}
	})
	for _, tc := range []struct {
		name string
		f    func(s suite, t *testing.T)
	}{
		{"values", suite.values},
		{"limits", suite.limits},
		{"nodes", suite.nodes},
		{"directory", suite.directory},
		{"long directory", suite.longDirectory},
		{"permissions", suite.permissions},
		{"domains", suite.domains},
		{"watch", suite.watch},
		{"relative paths", suite.relative},
		{"watch of an event", suite.watchEvent},
		{"watches of others", suite.watchOthers},
		{"transaction", suite.transaction},
		{"transaction conflict", suite.conflict},
		{"counter", suite.counter},
		{"at the same time", suite.concurrent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := suite{c, open, base + "/" + strings.ReplaceAll(tc.name, " ", "-")}
			check(t, c.Mkdir(s.root))
			tc.f(s, t)
			check(t, c.Rm(s.root))
		})
	}
}

type suite struct {
	c    *xs.Conn
	open func() *xs.Conn
	root string // this test's own node
}

func (s suite) values(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for name, value := range map[string]string{
		"text": "Linux", "empty": "", "nul": "\x00", "nuls": "a\x00b\x00\x00", "every byte": string(all),
		"long": strings.Repeat("v", 2000),
	} {
		path := s.root + "/" + strings.ReplaceAll(name, " ", "-")
		check(t, s.c.Write(path, value))
		wantEqual(t, name, must[string](t)(s.c.Read(path)), value)
		check(t, s.c.Write(path, "again"))
		wantEqual(t, name, must[string](t)(s.c.Read(path)), "again")
	}
}

// limits uses the longest path and the longest message there are.
func (s suite) limits(t *testing.T) {
	path := s.root + "/long"
	value := strings.Repeat("v", 4080-len(path)-1) // what the device takes as well
	check(t, s.c.Write(path, value))
	wantEqual(t, "longest message", must[string](t)(s.c.Read(path)), value)
	wantError(t, "longer message", s.c.Write(path, strings.Repeat("v", 4096-len(path))), unix.E2BIG)
	// C xenstored's quota path-max is 2048 by default, for dom0 as well.
	path = s.root + "/" + strings.Repeat("p", 2048-len(s.root)-1)
	check(t, s.c.Write(path, "v"))
	wantEqual(t, "long path", must[string](t)(s.c.Read(path)), "v")
}

func (s suite) nodes(t *testing.T) {
	missing := s.root + "/missing"
	_, err := s.c.Read(missing)
	wantError(t, "read", err, fs.ErrNotExist)
	_, err = s.c.Directory(missing)
	wantError(t, "directory", err, fs.ErrNotExist)
	_, err = s.c.GetPerms(missing)
	wantError(t, "get-perms", err, fs.ErrNotExist)
	wantError(t, "set-perms", s.c.SetPerms(missing, xs.Perm{}), fs.ErrNotExist)
	check(t, s.c.Rm(missing))
	check(t, s.c.Rm(missing+"/below/it"))

	check(t, s.c.Write(s.root+"/a/b/c", "v"))
	wantEqual(t, "value of a parent", must[string](t)(s.c.Read(s.root+"/a/b")), "")
	check(t, s.c.Mkdir(s.root+"/a/b/c"))
	wantEqual(t, "value after mkdir", must[string](t)(s.c.Read(s.root+"/a/b/c")), "v")
	check(t, s.c.Mkdir(s.root+"/d/e"))
	wantEqual(t, "value of a new node", must[string](t)(s.c.Read(s.root+"/d/e")), "")
	check(t, s.c.Rm(s.root+"/a"))
	_, err = s.c.Read(s.root + "/a/b/c")
	wantError(t, "read below what is gone", err, fs.ErrNotExist)
}

func (s suite) directory(t *testing.T) {
	wantEqual(t, "no children", len(must[[]string](t)(s.c.Directory(s.root))), 0)
	for _, name := range []string{"51712", "51728", "a-b_c@D"} {
		check(t, s.c.Write(s.root+"/"+name+"/state", "1"))
	}
	got := must[[]string](t)(s.c.Directory(s.root))
	slices.Sort(got)
	wantEqual(t, "children", got, []string{"51712", "51728", "a-b_c@D"})
}

// longDirectory makes more children than one message can list.
func (s suite) longDirectory(t *testing.T) {
	var want []string
	for i := range 700 {
		want = append(want, fmt.Sprintf("child-%04d", i))
	}
	check(t, s.c.Transaction(func(tx *xs.Tx) error {
		for _, name := range want {
			if err := tx.Mkdir(s.root + "/" + name); err != nil {
				return err
			}
		}
		got, err := tx.Directory(s.root)
		slices.Sort(got)
		wantEqual(t, "children within the transaction", got, want)
		return err
	}))
	got := must[[]string](t)(s.c.Directory(s.root))
	slices.Sort(got)
	wantEqual(t, "children", got, want)
}

func (s suite) permissions(t *testing.T) {
	want := []xs.Perm{{Domid: 0}, {Domid: 5, Access: xs.AccessRead},
		{Domid: 6, Access: xs.AccessWrite}, {Domid: 7, Access: xs.AccessBoth}}
	check(t, s.c.SetPerms(s.root, want...))
	wantEqual(t, "permissions", must[[]xs.Perm](t)(s.c.GetPerms(s.root)), want)
	check(t, s.c.Write(s.root+"/below", ""))
	wantEqual(t, "inherited", must[[]xs.Perm](t)(s.c.GetPerms(s.root+"/below")), want)
	check(t, s.c.SetPerms(s.root, xs.Perm{Access: xs.AccessRead}))
	wantEqual(t, "replaced", must[[]xs.Perm](t)(s.c.GetPerms(s.root)), []xs.Perm{{Access: xs.AccessRead}})
}

func (s suite) domains(t *testing.T) {
	for _, domid := range []uint32{0, 1, 32000} {
		want := "/local/domain/" + strconv.Itoa(int(domid))
		wantEqual(t, "path", must[string](t)(s.c.GetDomainPath(domid)), want)
	}
	wantEqual(t, "dom0 is introduced", must[bool](t)(s.c.IsDomainIntroduced(0)), true)
	wantEqual(t, "32000 is introduced", must[bool](t)(s.c.IsDomainIntroduced(32000)), false)
}

// until receives events up to the one wanted. Others before it are allowed:
// watches may fire for no reason.
func until(t *testing.T, events <-chan string, want string) {
	t.Helper()
	for await(t, "event "+want, events) != want {
	}
}

func (s suite) watch(t *testing.T) {
	f, events := collect()
	dir := s.root + "/dir"
	w := must[*xs.Watch](t)(s.c.Watch(dir, f))
	until(t, events, dir) // at once, although it does not exist
	check(t, s.c.Write(dir+"/state", "1"))
	until(t, events, dir+"/state")
	check(t, s.c.Mkdir(dir+"/a/b"))
	until(t, events, dir+"/a/b")
	check(t, s.c.SetPerms(dir+"/state", xs.Perm{}))
	until(t, events, dir+"/state")
	check(t, s.c.Rm(dir+"/state"))
	until(t, events, dir+"/state")
	check(t, s.c.Rm(s.root)) // gone with a parent
	until(t, events, dir)
	check(t, s.c.Transaction(func(tx *xs.Tx) error { return tx.Write(dir+"/tx", "1") }))
	until(t, events, dir+"/tx")

	// A second watch of the same node has events of its own, and outlives it.
	f2, events2 := collect()
	w2 := must[*xs.Watch](t)(s.c.Watch(dir, f2))
	until(t, events2, dir)
	check(t, w.Close())
	drained := len(events)
	check(t, s.c.Write(dir+"/after", "1"))
	until(t, events2, dir+"/after")
	if len(events) != drained {
		t.Error("event after Close")
	}
	check(t, w2.Close())
}

// relative: paths without a slash in front begin at the domain's own, and so
// do those of events.
func (s suite) relative(t *testing.T) {
	rel := strings.TrimPrefix(s.root, "/local/domain/0/")
	f, events := collect()
	w := must[*xs.Watch](t)(s.c.Watch(rel, f))
	until(t, events, rel)
	check(t, s.c.Write(s.root+"/x", "1"))
	until(t, events, rel+"/x")
	wantEqual(t, "value", must[string](t)(s.c.Read(rel+"/x")), "1")
	check(t, w.Close())
}

func (s suite) watchEvent(t *testing.T) {
	for _, name := range []string{"@introduceDomain", "@releaseDomain"} {
		f, events := collect()
		w := must[*xs.Watch](t)(s.c.Watch(name, f))
		until(t, events, name)
		check(t, w.Close())
	}
}

func (s suite) watchOthers(t *testing.T) {
	f, events := collect()
	w := must[*xs.Watch](t)(s.c.Watch(s.root, f))
	until(t, events, s.root)
	other := s.open()
	check(t, other.Write(s.root+"/x", "1"))
	until(t, events, s.root+"/x")
	wantEqual(t, "value", must[string](t)(s.c.Read(s.root+"/x")), "1")
	check(t, other.Close())
	check(t, w.Close())
}

func (s suite) transaction(t *testing.T) {
	other := s.open()
	path := s.root + "/x"
	check(t, s.c.Transaction(func(tx *xs.Tx) error {
		check(t, tx.Write(path, "inside"))
		wantEqual(t, "inside", must[string](t)(tx.Read(path)), "inside")
		_, err := other.Read(path)
		wantError(t, "outside", err, fs.ErrNotExist)
		_, err = s.c.Read(path)
		wantError(t, "outside, same connection", err, fs.ErrNotExist)
		check(t, tx.SetPerms(path, xs.Perm{Access: xs.AccessRead}))
		wantEqual(t, "permissions", must[[]xs.Perm](t)(tx.GetPerms(path)), []xs.Perm{{Access: xs.AccessRead}})
		check(t, tx.Mkdir(s.root+"/y"))
		return tx.Rm(s.root + "/y")
	}))
	wantEqual(t, "committed", must[string](t)(other.Read(path)), "inside")
	err := s.c.Transaction(func(tx *xs.Tx) error {
		check(t, tx.Rm(path))
		return fs.ErrInvalid
	})
	wantError(t, "dropped", err, fs.ErrInvalid)
	wantEqual(t, "after a dropped one", must[string](t)(other.Read(path)), "inside")
	wantEqual(t, "children", must[[]string](t)(other.Directory(s.root)), []string{"x"})
	check(t, other.Close())
}

// conflict has another connection change what the transaction has read.
func (s suite) conflict(t *testing.T) {
	other := s.open()
	path := s.root + "/x"
	check(t, s.c.Write(path, "0"))
	tries := 0
	check(t, s.c.Transaction(func(tx *xs.Tx) error {
		tries++
		value := must[string](t)(tx.Read(path))
		if tries <= 2 {
			check(t, other.Write(path, fmt.Sprintf("other %d", tries)))
		}
		return tx.Write(path, "after "+value)
	}))
	wantEqual(t, "value", must[string](t)(s.c.Read(path)), "after other 2")
	wantEqual(t, "tries", tries, 3)
	check(t, other.Close())
}

// counter has several connections add to a number, which needs transactions
// that are tried again.
func (s suite) counter(t *testing.T) {
	const conns, each = 3, 10
	path := s.root + "/n"
	check(t, s.c.Write(path, "0"))
	var wg sync.WaitGroup
	for range conns {
		c := s.open()
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.Close()
			for range each {
				err := c.Transaction(func(tx *xs.Tx) error {
					text, err := tx.Read(path)
					if err != nil {
						return err
					}
					n, err := strconv.Atoi(text)
					if err != nil {
						return err
					}
					return tx.Write(path, strconv.Itoa(n+1))
				})
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	wantEqual(t, "sum", must[string](t)(s.c.Read(path)), strconv.Itoa(conns*each))
}

func (s suite) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			dir := fmt.Sprintf("%s/%d", s.root, i)
			fired := make(chan struct{}, 1)
			w, err := s.c.Watch(dir, func(string) {
				select {
				case fired <- struct{}{}:
				default:
				}
			})
			if err != nil {
				t.Error(err)
				return
			}
			<-fired
			for j := range 20 {
				value := strconv.Itoa(j)
				if err := s.c.Write(dir+"/v", value); err != nil {
					t.Error(err)
				}
				if got, err := s.c.Read(dir + "/v"); err != nil || got != value {
					t.Errorf("%s: got %q, %v, want %s", dir, got, err, value)
				}
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
}
