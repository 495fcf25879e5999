package cli

import (
	"context"
	"fmt"

	"xen-disk/vhd"
)

// imageCompactCmd makes the file of an image smaller.
type imageCompactCmd struct {
	File       string `arg:"" help:"The image, dynamic or differencing."`
	LikeParent bool   `help:"Also drop blocks that say what the parent says."`
	chainFlags
}

// Help is what 'xen-disk image compact --help' says besides the flags.
func (c *imageCompactCmd) Help() string {
	return `Blocks that hold nothing are dropped, others move from the end of the file to
where there is room, and pages of zeros become holes. The disk that a guest
sees stays the same. After Ctrl-C or a crash the image is whole, and some of
the work is done.

Examples:
  xen-disk image compact disk.vhd`
}

// Run compacts.
func (c *imageCompactCmd) Run(env *environment, image *imageCmd) error {
	var stats vhd.CompactStats
	err := env.work("Compacting", inBlocks, func(ctx context.Context, show progress) (err error) {
		stats, err = vhd.Compact(ctx, c.File, vhd.CompactOptions{
			Open: c.chainFlags.vhd(false), LikeParent: c.LikeParent, Progress: show,
		})
		return err
	})
	if err != nil {
		return explainWork("compact", c.File, c.File+" is whole; run the command again to go on", err)
	}
	return image.show(env, &imageCompacted{
		Path: c.File, OldBytes: stats.BeforeBytes, FileBytes: stats.AfterBytes,
		Dropped: stats.Dropped, Moved: stats.Moved, PunchedBytes: stats.PunchedBytes,
	})
}

// imageCompacted says what became of the file.
type imageCompacted struct {
	Version      version1 `json:"version"`
	Path         string   `json:"path"`
	OldBytes     int64    `json:"old_file_size"`
	FileBytes    int64    `json:"file_size"`
	Dropped      int64    `json:"dropped_blocks"`
	Moved        int64    `json:"moved_blocks"`
	PunchedBytes int64    `json:"punched_bytes"`
}

func (r *imageCompacted) text() string {
	did := fmt.Sprintf("Dropped %d blocks, moved %d", r.Dropped, r.Moved)
	if r.PunchedBytes > 0 {
		did += fmt.Sprintf(", made holes of %s of zeros", sizeText(r.PunchedBytes))
	}
	return lines(fmt.Sprintf("Compacted %s from %s to %s.",
		printable(r.Path), sizeText(r.OldBytes), sizeText(r.FileBytes)), did+".")
}
