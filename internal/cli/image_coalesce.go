package cli

import (
	"context"
	"fmt"

	"xen-disk/vhd"
)

// imageCoalesceCmd gives what a child has to its parent.
type imageCoalesceCmd struct {
	Child string `arg:"" help:"The differencing image whose data go into its parent; it stays as it is."`
	chainFlags
}

// Help is what 'xen-disk image coalesce --help' says besides the flags.
func (c *imageCoalesceCmd) Help() string {
	return `Afterwards the parent alone is what the child was. Then give the child's own
children the parent (reparent), and remove the child. The parent must have no
other child: what that one shows would change. After Ctrl-C or a crash the
child is still right; run the command again.

Examples:
  xen-disk image coalesce child.vhd`
}

// Run coalesces.
func (c *imageCoalesceCmd) Run(env *environment, image *imageCmd) error {
	var stats vhd.CoalesceStats
	err := env.work("Coalescing", inBytes, func(ctx context.Context, show progress) (err error) {
		stats, err = vhd.Coalesce(ctx, c.Child, vhd.CoalesceOptions{Open: c.chainFlags.vhd(false), Progress: show})
		return err
	})
	if err != nil {
		return explainWork("coalesce", c.Child, c.Child+" still shows the whole disk; run the command again to finish", err)
	}
	return image.show(env, &imageCoalesced{
		Child: c.Child, Parent: stats.Parent, CopiedBytes: stats.CopiedBytes, ZeroedBytes: stats.ZeroedBytes,
	})
}

// imageCoalesced says what went where.
type imageCoalesced struct {
	Version     version1 `json:"version"`
	Child       string   `json:"child"`
	Parent      string   `json:"parent"`
	CopiedBytes int64    `json:"copied_bytes"`
	ZeroedBytes int64    `json:"zeroed_bytes"`
}

func (r *imageCoalesced) text() string {
	child, parent := printable(r.Child), printable(r.Parent)
	return lines(
		fmt.Sprintf("Coalesced %s into %s: %s of data, %s of zeros.", child, parent, sizeText(r.CopiedBytes), sizeText(r.ZeroedBytes)),
		fmt.Sprintf("%s is not needed any more, unless it has children: reparent them to %s before you remove it.", child, parent))
}
