package xs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// transactionTries bounds how often a transaction is tried that others'
	// changes get in the way of. With the pauses below that is about two
	// seconds of never being let through.
	transactionTries = 40
	// The pause before another try doubles from the first to the second of
	// these, give or take half, so that two who collide do not stay in step.
	transactionPauseMin = time.Millisecond
	transactionPauseMax = 64 * time.Millisecond
)

// Tx is a transaction: what is done through it is seen by others at once, or
// not at all. It is valid while the function that got it runs.
type Tx struct {
	c    *Conn
	id   uint32
	over atomic.Bool
}

// Transaction calls f, and then makes what f did through tx visible, all at
// once. If somebody else has meanwhile changed what it touched, xenstored
// refuses (EAGAIN) and f is called again, on a fresh transaction, after a short
// growing pause; so f must be repeatable. After a bounded number of tries the
// error says so and is unix.EAGAIN.
//
// An error of f drops what f did and is returned as it is, except that one
// that is unix.EAGAIN counts as a refusal. A panic of f drops it too.
//
// Of one connection's transactions one runs at a time, others wait for it:
// concurrent ones would only make each other fail (on oxenstored, for ever). f
// must therefore not call Transaction; other requests it may make, outside of
// tx.
func (c *Conn) Transaction(f func(tx *Tx) error) error {
	const op = "transaction"
	select {
	case c.txSlot <- struct{}{}:
	case <-c.done:
		return &Error{Op: op, Err: c.Err()}
	}
	defer func() { <-c.txSlot }()
	pause := transactionPauseMin
	for try := 1; ; try++ {
		err := c.transactOnce(f)
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		if try == transactionTries {
			return &Error{Op: op, Err: fmt.Errorf("others' changes got in the way %d times: %w", try, err)}
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-c.done:
			timer.Stop()
			return &Error{Op: op, Err: c.Err()}
		}
		pause = min(2*pause, transactionPauseMax)
	}
}

func (c *Conn) transactOnce(f func(tx *Tx) error) error {
	const op = "transaction-start"
	payload, err := c.request(op, "", opTransactionStart, nil, "\x00")
	if err != nil {
		return err
	}
	id, err := strconv.ParseUint(string(trimNUL(payload)), 10, 32)
	if err != nil || id == 0 {
		return &Error{Op: op, Err: fmt.Errorf("no transaction id: %.16q: %w", payload, unix.EIO)}
	}
	tx := &Tx{c: c, id: uint32(id)}
	commit := false
	defer func() {
		if !commit { // f failed, or panicked
			_ = tx.end(false) // xenstored drops it at the latest with the connection
		}
	}()
	if err := f(tx); err != nil {
		return err
	}
	commit = true
	return tx.end(true)
}

// end ends the transaction. It is over whatever the answer is.
func (tx *Tx) end(commit bool) error {
	how := "F\x00"
	if commit {
		how = "T\x00"
	}
	last := &Tx{c: tx.c, id: tx.id} // for this one request, while tx is over
	tx.over.Store(true)
	_, err := tx.c.request("transaction-end", "", opTransactionEnd, last, how)
	return err
}

// Read is [Conn.Read] within the transaction.
func (tx *Tx) Read(path string) (string, error) { return tx.c.read(tx, path) }

// Write is [Conn.Write] within the transaction.
func (tx *Tx) Write(path, value string) error { return tx.c.write(tx, path, value) }

// Mkdir is [Conn.Mkdir] within the transaction.
func (tx *Tx) Mkdir(path string) error { return tx.c.mkdir(tx, path) }

// Rm is [Conn.Rm] within the transaction.
func (tx *Tx) Rm(path string) error { return tx.c.rm(tx, path) }

// Directory is [Conn.Directory] within the transaction.
func (tx *Tx) Directory(path string) ([]string, error) { return tx.c.directory(tx, path) }

// GetPerms is [Conn.GetPerms] within the transaction.
func (tx *Tx) GetPerms(path string) ([]Perm, error) { return tx.c.getPerms(tx, path) }

// SetPerms is [Conn.SetPerms] within the transaction.
func (tx *Tx) SetPerms(path string, perms ...Perm) error { return tx.c.setPerms(tx, path, perms) }
