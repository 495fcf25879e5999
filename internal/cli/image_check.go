package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"xen-disk/vhd"
)

// imageCheckCmd looks for what is wrong with an image.
type imageCheckCmd struct {
	File string `arg:"" help:"The image; what it stands on is checked too."`
	chainFlags
}

// Help is what 'xen-disk image check --help' says besides the flags.
func (c *imageCheckCmd) Help() string {
	return `It looks at all metadata and changes nothing. The exit code is 0 when nothing
is wrong, 3 when a parent is missing, 6 when an image must be repaired or cannot
be, and 7 when nothing is wrong but that there is unused space.

Examples:
  xen-disk image check disk.vhd`
}

// Run checks.
func (c *imageCheckCmd) Run(env *environment, image *imageCmd) error {
	var report *vhd.Report
	err := env.work("Checking", inBlocks, func(ctx context.Context, show progress) (err error) {
		report, err = vhd.Check(ctx, c.File, vhd.CheckOptions{Open: c.chainFlags.vhd(true), Progress: show})
		return err
	})
	if err != nil {
		return explainWork("check", c.File, "nothing was changed", err)
	}
	r := &imageChecked{Path: c.File, Verdict: verdictOf(report), Images: list(report.Images), Problems: list(report.Problems)}
	if err := image.show(env, r); err != nil {
		return err
	}
	return r.Verdict.exit()
}

// imageRepairCmd mends an image.
type imageRepairCmd struct {
	File  string `arg:"" help:"The image; what it stands on is not touched."`
	Force bool   `help:"Mend also what changes the data: see above."`
}

// Help is what 'xen-disk image repair --help' says besides the flags.
func (c *imageRepairCmd) Help() string {
	return `It brings back missing footers, drops BAT entries that point nowhere, cuts
unused space off the end, and checks again; the exit code is that of check.
The disk reads as before. With --force it may not: of blocks that overlap the
first is kept, one that was cut off is filled with zeros, and a footer with a
wrong checksum is believed where there is no other.

Examples:
  xen-disk image repair disk.vhd`
}

// Run repairs.
func (c *imageRepairCmd) Run(env *environment, image *imageCmd) error {
	var report *vhd.Report
	err := env.work("Repairing", inBlocks, func(ctx context.Context, show progress) (err error) {
		report, err = vhd.Repair(ctx, c.File, vhd.RepairOptions{Open: new(chainFlags).vhd(false), Force: c.Force, Progress: show})
		return err
	})
	if err != nil {
		return explainWork("repair", c.File, c.File+" is no worse than before; run the command again to go on", err)
	}
	r := &imageRepaired{
		imageChecked: imageChecked{Path: c.File, Verdict: verdictOf(report), Images: list(report.Images), Problems: list(report.Problems)},
		Mended:       list(report.Mended), Lost: list(report.Lost), LostBytes: report.LostBytes,
	}
	if err := image.show(env, r); err != nil {
		return err
	}
	return r.Verdict.exit()
}

// verdict is what check comes to.
type verdict string

const (
	verdictClean   verdict = "clean"
	verdictLeaks   verdict = "leaks"
	verdictCorrupt verdict = "corrupt"
	verdictOrphan  verdict = "orphan" // nothing is wrong but that a parent is missing
)

// codeParent is the code of the problem that a parent is not found.
const codeParent = "parent"

func verdictOf(r *vhd.Report) verdict {
	damaged := func(p vhd.Problem) bool { return p.Severity >= vhd.Damage && p.Code != codeParent }
	switch {
	case slices.ContainsFunc(r.Problems, damaged):
		return verdictCorrupt
	case r.Corrupt():
		return verdictOrphan
	case r.Leaks():
		return verdictLeaks
	}
	return verdictClean
}

// exit is the end of a command that has printed the verdict.
func (v verdict) exit() error {
	switch v {
	case verdictCorrupt:
		return exitCode(exitCorrupt)
	case verdictLeaks:
		return exitCode(exitLeaks)
	case verdictOrphan:
		return exitCode(exitMissing)
	}
	return nil
}

// list is a list for JSON, where none is [] and not null.
func list[T any](l []T) []T {
	if l == nil {
		l = []T{}
	}
	return l
}

// imageChecked is what check found.
type imageChecked struct {
	Version  version1          `json:"version"`
	Path     string            `json:"path"`
	Verdict  verdict           `json:"verdict"`
	Images   []vhd.ImageReport `json:"images"`
	Problems []vhd.Problem     `json:"problems"`
}

func (r *imageChecked) text() string {
	var out strings.Builder
	for _, i := range r.Images {
		if i.Blocks != 0 {
			out.WriteString(lines(fmt.Sprintf("%s: %d of %d blocks allocated, %d of them complete.",
				printable(i.Path), i.Allocated, i.Blocks, i.Complete)))
		}
	}
	for _, p := range r.Problems {
		out.WriteString(lines(printable(problemText(p, r.Path))))
	}
	path := printable(r.Path)
	switch r.Verdict {
	case verdictClean:
		out.WriteString(lines("No damage was found in " + path + "."))
	case verdictLeaks:
		out.WriteString(lines(path + " has space that nothing uses; 'image compact' frees it."))
	case verdictOrphan:
		out.WriteString(lines("A parent of " + path + " is missing: --search-path DIR, or 'image reparent'."))
	case verdictCorrupt:
		out.WriteString(lines(path + " is damaged; 'image repair' mends what can be mended."))
	}
	return out.String()
}

// imageRepaired is what repair did and left.
type imageRepaired struct {
	imageChecked
	Mended    []vhd.Problem `json:"mended"`
	Lost      []vhd.Range   `json:"lost"`
	LostBytes int64         `json:"lost_bytes"`
}

func (r *imageRepaired) text() string {
	var out strings.Builder
	for _, p := range r.Mended {
		out.WriteString(lines("Mended " + printable(problemText(p, r.Path))))
	}
	for _, l := range r.Lost {
		out.WriteString(lines(fmt.Sprintf("Lost %d bytes of the disk at byte %d.", l.Length, l.Offset)))
	}
	if listed := totalOf(r.Lost); listed < r.LostBytes {
		out.WriteString(lines(fmt.Sprintf("Lost %d bytes more in other places.", r.LostBytes-listed)))
	}
	if r.Verdict == verdictCorrupt {
		return out.String() + r.left()
	}
	return out.String() + r.imageChecked.text()
}

// left is what repair could not mend.
func (r *imageRepaired) left() string {
	var out strings.Builder
	for _, p := range r.Problems {
		out.WriteString(lines("Left " + printable(problemText(p, r.Path))))
	}
	return out.String() + lines(printable(r.Path)+" is still damaged; --force may mend more, and lose data.")
}

func totalOf(ranges []vhd.Range) (n int64) {
	for _, r := range ranges {
		n += r.Length
	}
	return n
}
