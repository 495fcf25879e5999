package xs

import (
	"fmt"
	"strconv"
)

// State is a xenbus state, the decimal number in the "state" node of either
// end of a device (xen: public/io/xenbus.h, enum xenbus_state).
type State int

// The xenbus states. StateUnknown stands for a node that is gone or holds no
// state.
const (
	StateUnknown State = iota
	StateInitialising
	StateInitWait
	StateInitialised
	StateConnected
	StateClosing
	StateClosed
	StateReconfiguring
	StateReconfigured
)

// ParseState takes the content of a "state" node. It accepts the single digits
// 1 to 8 and nothing else, since a guest may write anything there: no spaces,
// no sign, no leading zero, no NUL, and not 0 either, which no end ever writes.
func ParseState(s string) (State, error) {
	if len(s) != 1 || s[0] < '1' || s[0] > '8' {
		return StateUnknown, fmt.Errorf("parse xenbus state %.16q: not 1 to 8", s)
	}
	return State(s[0] - '0'), nil
}

// Value is what a "state" node holds for s: its number in decimal.
func (s State) Value() string { return strconv.Itoa(int(s)) }

// String is the name of the state.
func (s State) String() string {
	switch s {
	case StateUnknown:
		return "Unknown"
	case StateInitialising:
		return "Initialising"
	case StateInitWait:
		return "InitWait"
	case StateInitialised:
		return "Initialised"
	case StateConnected:
		return "Connected"
	case StateClosing:
		return "Closing"
	case StateClosed:
		return "Closed"
	case StateReconfiguring:
		return "Reconfiguring"
	case StateReconfigured:
		return "Reconfigured"
	}
	return "State(" + strconv.Itoa(int(s)) + ")"
}
