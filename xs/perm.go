package xs

import (
	"fmt"
	"strconv"
)

// Access is what a [Perm] grants to a domain.
type Access uint8

// The accesses, with their letters on the wire.
const (
	AccessNone  Access = iota // n
	AccessRead                // r
	AccessWrite               // w
	AccessBoth                // b
)

// accessLetters is indexed by Access.
const accessLetters = "nrwb"

// String is the letter of a on the wire: n, r, w or b.
func (a Access) String() string {
	if int(a) >= len(accessLetters) {
		return "Access(" + strconv.Itoa(int(a)) + ")"
	}
	return accessLetters[a : a+1]
}

// Perm is one entry of a node's permissions. The first entry of a list is
// special: its domain owns the node and may do everything, and its access is
// the one of all domains that are not listed.
type Perm struct {
	Domid  uint32
	Access Access
}

// String is p as it is on the wire: "n0", "r5".
func (p Perm) String() string {
	return p.Access.String() + strconv.FormatUint(uint64(p.Domid), 10)
}

// ParsePerm takes an entry as it is on the wire: a letter and a domid from 0 to
// 65535.
func ParsePerm(s string) (Perm, error) {
	for i := range len(accessLetters) {
		if len(s) < 2 || s[0] != accessLetters[i] {
			continue
		}
		domid, err := strconv.ParseUint(s[1:], 10, 16)
		if err != nil {
			break
		}
		return Perm{Domid: uint32(domid), Access: Access(i)}, nil
	}
	return Perm{}, fmt.Errorf("parse xenstore permission %.16q: not a letter of %s and a domid",
		s, accessLetters)
}
