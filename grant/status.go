package grant

import "strconv"

// StatusText returns a short name for the Status of a CopySegment, after
// GNTST_* of xen/include/public/grant_table.h. Known ones do not allocate.
func StatusText(status int16) string {
	switch status {
	case StatusOKAY:
		return "okay"
	case StatusGeneralError:
		return "general error"
	case StatusBadDomain:
		return "bad domain"
	case StatusBadGref:
		return "bad grant reference"
	case -4:
		return "bad handle"
	case -5:
		return "bad virtual address"
	case -6:
		return "bad device address"
	case -7:
		return "no device space"
	case StatusPermission:
		return "permission denied"
	case -9:
		return "bad page"
	case StatusBadCopyArg:
		return "bad copy argument"
	case -11:
		return "address too big"
	case StatusEagain:
		return "try again"
	case StatusNoSpace:
		return "no space"
	}
	return "unknown status " + strconv.Itoa(int(status))
}
