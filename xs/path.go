package xs

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// absolutePathMax and relativePathMax are XENSTORE_ABS_PATH_MAX and
	// XENSTORE_REL_PATH_MAX of public/io/xs_wire.h. A relative path is short
	// enough to be made absolute by the other side. xenstored may allow less:
	// the C one takes 2048 bytes, not counting /local/domain/<domid>/ (its quota
	// path-max), and says EINVAL.
	absolutePathMax = 3072
	relativePathMax = 2048
)

// checkPath refuses what xenstored would refuse, but with a reason; and a NUL,
// which would end the path early and turn the rest into another argument.
func checkPath(path string) error {
	limit := relativePathMax
	if strings.HasPrefix(path, "/") {
		limit = absolutePathMax
	}
	switch {
	case path == "":
		return fmt.Errorf("path is empty: %w", unix.EINVAL)
	case len(path) > limit:
		return fmt.Errorf("path of %d bytes, at most %d: %w", len(path), limit, unix.EINVAL)
	case strings.Contains(path, "//"):
		return fmt.Errorf("path has an empty name (//): %w", unix.EINVAL)
	case len(path) > 1 && strings.HasSuffix(path, "/"):
		return fmt.Errorf("path ends in /: %w", unix.EINVAL)
	}
	for i := range len(path) {
		if !pathByte(path[i]) {
			return fmt.Errorf("path has byte %q, not one of A-Z a-z 0-9 - _ @ /: %w",
				path[i], unix.EINVAL)
		}
	}
	return nil
}

// checkNode is checkPath for everything but a watch: names with @ in front
// (@releaseDomain) are events, not nodes.
func checkNode(path string) error {
	if strings.HasPrefix(path, "@") {
		return fmt.Errorf("path names an event, not a node: %w", unix.EINVAL)
	}
	return checkPath(path)
}

// pathByte reports whether b may be in a path (docs/misc/xenstore.txt).
func pathByte(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' ||
		b == '-' || b == '_' || b == '@' || b == '/'
}
