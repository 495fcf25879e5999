package xs_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"xen-disk/xs"
)

// begin answers a TRANSACTION_START.
func begin(p *peer, id uint32) {
	r := p.expect(transactionStart)
	wantEqual(p.t, "payload of start", r.payload, "\x00")
	if r.tx != 0 {
		p.t.Errorf("start within transaction %d", r.tx)
	}
	p.reply(r, fmt.Sprintf("%d\x00", id))
}

func TestTransactionIsTriedAgain(t *testing.T) {
	const conflicts = 3
	c := start(t, func(p *peer) {
		for i := uint32(1); ; i++ {
			begin(p, i)
			w := p.expect(write)
			p.reply(w, "OK\x00")
			end := p.expect(transactionEnd)
			if w.tx != i || end.tx != i || end.payload != "T\x00" {
				t.Errorf("write in %d, end of %d with %q, want %d and T", w.tx, end.tx, end.payload, i)
			}
			if i > conflicts {
				p.reply(end, "OK\x00")
				break
			}
			p.fail(end, "EAGAIN")
		}
		p.drain()
	})
	tries := 0
	check(t, c.Transaction(func(tx *xs.Tx) error {
		tries++
		return tx.Write("/a", "v")
	}))
	wantEqual(t, "tries", tries, conflicts+1)
}

func TestTransactionGivesUp(t *testing.T) {
	var starts atomic.Int32
	c := start(t, func(p *peer) {
		for {
			r, ok := p.receive()
			switch {
			case !ok:
				return
			case r.typ == transactionStart:
				starts.Add(1)
				p.reply(r, "7\x00")
			default:
				p.fail(r, "EAGAIN")
			}
		}
	})
	err := c.Transaction(func(*xs.Tx) error { return nil })
	wantError(t, "transaction", err, unix.EAGAIN)
	wantEqual(t, "text", err.Error(), fmt.Sprintf("transaction in xenstore: others' changes got in "+
		"the way %d times: transaction-end in xenstore: resource temporarily unavailable",
		xs.TransactionTries))
	wantEqual(t, "starts", starts.Load(), int32(xs.TransactionTries))
}

func TestTransactionRefusedWithinIsTriedAgain(t *testing.T) {
	c := start(t, func(p *peer) {
		begin(p, 1)
		p.fail(p.expect(write), "EAGAIN")
		wantEqual(t, "end", p.expect(transactionEnd).payload, "F\x00")
	})
	// The peer ends here: what matters is that F was sent.
	err := c.Transaction(func(tx *xs.Tx) error { return tx.Write("/a", "v") })
	wantError(t, "transaction", err, xs.ErrLost)
}

func TestTransactionDropped(t *testing.T) {
	errMine := errors.New("mine")
	for _, tc := range []struct {
		name string
		f    func(*xs.Tx) error
		want error
	}{
		{"by an error", func(*xs.Tx) error { return errMine }, errMine},
		{"by a panic", func(*xs.Tx) error { panic(errMine) }, errMine},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ended := make(chan string, 1)
			c := start(t, func(p *peer) {
				begin(p, 9)
				end := p.expect(transactionEnd)
				ended <- fmt.Sprintf("%d %q", end.tx, end.payload)
				p.reply(end, "OK\x00")
				begin(p, 10)
				p.reply(p.expect(transactionEnd), "OK\x00")
				p.drain()
			})
			err := func() (err error) {
				defer func() {
					if r := recover(); r != nil {
						err = r.(error)
					}
				}()
				return c.Transaction(tc.f)
			}()
			if err != tc.want {
				t.Errorf("got %v, want %v itself", err, tc.want)
			}
			wantEqual(t, "end", await(t, "end", ended), `9 "F\x00"`)
			check(t, c.Transaction(func(*xs.Tx) error { return nil })) // it left nothing locked
		})
	}
}

func TestTransactionUsedAfterItsEnd(t *testing.T) {
	c := start(t, func(p *peer) {
		begin(p, 9)
		p.reply(p.expect(transactionEnd), "OK\x00")
		p.drain()
	})
	var kept *xs.Tx
	check(t, c.Transaction(func(tx *xs.Tx) error { kept = tx; return nil }))
	_, err := kept.Read("/a")
	wantError(t, "read", err, unix.EINVAL)
}

func TestTransactionIDs(t *testing.T) {
	for _, lie := range []string{"", "\x00", "0\x00", "-1\x00", "4294967296\x00", "x\x00"} {
		t.Run(fmt.Sprintf("%q", lie), func(t *testing.T) {
			c := start(t, func(p *peer) {
				p.reply(p.expect(transactionStart), lie)
				p.drain()
			})
			wantError(t, "transaction", c.Transaction(func(*xs.Tx) error { return nil }), unix.EIO)
		})
	}
}

func TestTransactionsOfAConnectionTakeTurns(t *testing.T) {
	c := start(t, func(p *peer) {
		for i := uint32(1); i <= 20; i++ {
			begin(p, i) // fails the test if another begins before this one ends
			p.reply(p.expect(transactionEnd), "OK\x00")
		}
		p.drain()
	})
	var errs []<-chan error
	for range 20 {
		errs = append(errs, spawn(func() error {
			return c.Transaction(func(*xs.Tx) error { return nil })
		}))
	}
	for _, err := range errs {
		check(t, await(t, "transaction", err))
	}
}

func TestCloseEndsATransactionsPause(t *testing.T) {
	conflict := make(chan struct{}, xs.TransactionTries)
	c := start(t, func(p *peer) {
		for {
			r, ok := p.receive()
			switch {
			case !ok:
				return
			case r.typ == transactionStart:
				p.reply(r, "7\x00")
			default:
				p.fail(r, "EAGAIN")
				conflict <- struct{}{}
			}
		}
	})
	end := spawn(func() error { return c.Transaction(func(*xs.Tx) error { return nil }) })
	await(t, "conflict", conflict)
	check(t, c.Close())
	wantError(t, "transaction", await(t, "transaction", end), xs.ErrClosed)
}
