package blkback

// EventKind says what happened to a vbd.
type EventKind uint8

const (
	EventWaiting   EventKind = iota // for what, says Text
	EventConnected                  // the guest has the disk
	EventRefused                    // the frontend cannot be served, says Err
	EventDetaching                  // the guest was asked to let go
	EventClosing                    // the guest is letting go
	EventDetached                   // the end: in order
	EventGone                       // the end: the domain or the device vanished
	EventForced                     // the end: without the guest
	EventLost                       // xenstore is lost, says Err
)

// Event is something that a person who attached a disk would like to know.
type Event struct {
	Kind     EventKind
	Text     string
	Err      error
	Protocol string // of EventConnected: the frontend's ABI
	Slots    int    // of EventConnected: of its ring
}
