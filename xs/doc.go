// Package xs is a client of xenstore, the small tree of nodes through which
// the parts of a Xen host find each other: it reads and writes nodes, watches
// them, changes several at once in a transaction, and names the xenbus states.
// It speaks the wire protocol of Xen's docs/misc/xenstore.txt itself, over the
// socket of xenstored or the kernel's /dev/xen/xenbus, without cgo. Linux only.
//
// # Who pumps
//
// A [Conn] starts no goroutine by itself. Something has to read replies and
// watch events off the descriptor, in one of two ways:
//
//   - [Conn.Start] gives it a goroutine of its own, until [Conn.Close];
//   - an event loop waits for [Conn.FD] to be readable (level-triggered) and
//     then calls [Conn.Pump].
//
// A request blocks its goroutine until its reply has been pumped, so the
// pumping goroutine (and with it every watch's function) must never make one:
// it would wait for itself.
//
// # The bytes
//
// A message is a header of four little-endian u32 and a payload:
//
//	 0        4        8        12       16
//	+--------+--------+--------+--------+-- len bytes ---
//	| type   | req_id | tx_id  | len    | payload
//	+--------+--------+--------+--------+----------------
//
// Strings end in NUL, values do not (they may hold any bytes). A reply repeats
// type, req_id and tx_id; an error is a message of type ERROR whose payload is
// an errno's name. Watch events come unasked.
//
// # What it never does
//
// It never trusts a length, never queues an event (memory does not grow with
// their number), never reconnects: a connection that was lost stays lost, since
// watches and transactions went with it.
package xs
