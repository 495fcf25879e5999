// Package ring reads and writes the bytes of a blkif ring: the page or pages
// that a block frontend shares with its backend (xen/include/public/io/ring.h
// and blkif.h). It is the backend's half only.
//
// The caller maps the pages and gives them to New; from then on
//
//	Pending   how many requests wait          (one load of req_prod)
//	Pull      copies one of them out          (one copy of the slot)
//	Check     is it one that may be served?   (looks at the copy only)
//	Put       writes a response into its slot
//	Publish   shows all responses put so far, says whether to notify
//	Rearm     asks for an event, says whether more came meanwhile
//
// The ring is shared with a guest that may write anything to it at any time.
// So a slot is copied once and nothing is ever looked at twice; the producer
// index that the guest writes is bounded before it is used; the indices that
// are ours are private and only ever stored.
//
//	byte  0  req_prod    the guest's   requests made
//	      4  req_event   ours          notify us when req_prod passes this
//	      8  rsp_prod    ours          responses made
//	     12  rsp_event   the guest's   notify it when rsp_prod passes this
//	     64  slot 0, slot 1, ...       a request, later some response
//
// Package ring does no I/O, reads no clock, allocates nothing after New and
// writes no log. blkback calls it. It imports the standard library only.
package ring
