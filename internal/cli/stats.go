package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"

	"xen-disk/internal/blkback"
)

// printStats prints the totals and the two histograms that the original
// xen-disk printed at exit.
func printStats(w io.Writer, s *blkback.Stats) {
	out := &strings.Builder{}
	fmt.Fprintf(out, "\n%-14s %12s %12s\n", "", "requests", "data")
	fmt.Fprintf(out, "%-14s %12d %12s\n", "read", s.Reads, humanize.IBytes(s.ReadBytes))
	fmt.Fprintf(out, "%-14s %12d %12s\n", "write", s.Writes, humanize.IBytes(s.WrittenBytes))
	fmt.Fprintf(out, "%-14s %12d %12s\n", "discard", s.Discards, humanize.IBytes(s.DiscardedBytes))
	fmt.Fprintf(out, "%-14s %12d\n", "flush", s.Flushes)
	fmt.Fprintf(out, "%-14s %12d\n", "other", s.Other)
	fmt.Fprintf(out, "%-14s %12d\n", "answered ok", s.OK)
	fmt.Fprintf(out, "%-14s %12d\n", "error", s.Errors)
	fmt.Fprintf(out, "%-14s %12d\n", "unsupported", s.Unsupported)
	fmt.Fprintf(out, "%-14s %12d\n", "unanswered", s.Requests()-s.Answered())
	fmt.Fprintf(out, "%-14s %12d\n", "notifications", s.Notifications)
	histogram(out, "ring occupancy: slots in use when xen-disk looked", "slots", s.Occupancy[:])
	histogram(out, "segments a request", "segments", s.Segments[:])
	write(w, out.String())
}

// barWidth leaves room for label and count in 80 columns.
const barWidth = 50

func histogram(w io.Writer, title, unit string, counts []uint64) {
	most := uint64(0)
	for _, n := range counts {
		most = max(most, n)
	}
	if most == 0 {
		return
	}
	fmt.Fprintf(w, "\n# %s\n# %8s %12s\n", title, unit, "frequency")
	for i, n := range counts {
		if n == 0 {
			continue
		}
		bar := strings.Repeat("#", int((n*barWidth+most-1)/most))
		fmt.Fprintf(w, "  %8d %12d  %s\n", i, n, bar)
	}
}
