package cli

import (
	"bytes"
	"encoding/json"
	"io"
)

// imageCmd makes, looks at and mends images; none of its commands needs Xen.
type imageCmd struct {
	Create imageCreateCmd `cmd:"" help:"Make an empty VHD."`

	JSON bool `name:"json" help:"Print one JSON object; docs/json.md describes it."`
}

// Help is what 'xen-disk image --help' says besides the commands.
func (c *imageCmd) Help() string {
	return `The images are VHD files: fixed, dynamic and differencing ones. Each command
locks what it opens, so none can spoil an image that a guest uses.

Examples:
  xen-disk image create disk.vhd --size 10GiB`
}

// result is what a command found out or did. Its fields and their tags are
// the object that --json prints, which docs/json.md promises not to change.
type result interface {
	// text is the same for people.
	text() string
}

// version1 is the first field of every object. It changes when a program that
// reads the object must.
type version1 struct{}

// MarshalJSON makes the zero value right, so that no command can forget it.
func (version1) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

// show prints a result in the way that the flags ask for.
func (c *imageCmd) show(env *environment, r result) error {
	text := r.text()
	if c.JSON {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r); err != nil {
			panic(err) // a result that is no data
		}
		text = b.String()
	}
	// Who reads the answer must not take half of it for all.
	if _, err := io.WriteString(env.stdout, text); err != nil {
		return &userError{What: "cannot print the answer", Why: cause(err), Code: exitFailed}
	}
	return nil
}
