package lab

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The guest's console carries jobs one way and results the other (see
// init/guest.sh). A result is lines of base64, each marked with the job and
// its number, and one last line with the exit code and the sum of it all. Whatever else is printed between or inside of them is skipped; a
// result with holes is asked for again.

// maxPrints is how often a result is asked for before Run gives up: the
// console is reliable but for other printers, which rarely hit twice.
const maxPrints = 5

// scriptChunk is how much of a script one console line carries: well below
// the guest's terminal buffer of 4 KiB.
const scriptChunk = 1024

// Run runs a shell script in the guest and returns what it printed, both
// outputs in one, and its exit code. PATH has busybox, dash, the coreutils dd,
// the e2fsprogs, blkdiscard and, with GuestOptions.Fio, fio. An error means
// that the guest did not answer.
func (g *Guest) Run(ctx context.Context, script string) (output string, code int, err error) {
	g.mu.Lock()
	g.jobs++
	id := fmt.Sprintf("j%d", g.jobs)
	from := g.console.end()
	err = g.Send(jobLines(id, script))
	g.mu.Unlock()
	if err != nil {
		return "", 0, err
	}
	for prints := 1; ; prints++ {
		var r jobResult
		err := g.console.wait(ctx, from, func(text string) bool {
			r = parseJob(text, id)
			return r.ends >= prints
		})
		if err != nil {
			return r.output, 0, fmt.Errorf("run in guest %s: %w\nscript: %s\nconsole:\n%s",
				g.opts.Name, err, script, g.console.tail(consoleTailLines))
		}
		if r.whole {
			return r.output, r.code, g.Send("f " + id + "\n")
		}
		if prints == maxPrints {
			return r.output, 0, fmt.Errorf("run in guest %s: result is garbled after %d tries\n%s",
				g.opts.Name, prints, g.console.tail(consoleTailLines))
		}
		if err := g.Send("p " + id + "\n"); err != nil {
			return "", 0, err
		}
	}
}

// MustRun is Run of a script that has to succeed.
func (g *Guest) MustRun(ctx context.Context, script string) (output string, err error) {
	output, code, err := g.Run(ctx, script)
	if err == nil && code != 0 {
		err = fmt.Errorf("run in guest %s: exit code %d\nscript: %s\noutput: %s", g.opts.Name, code, script, output)
	}
	return output, err
}

// jobLines encodes a script for the console.
func jobLines(id, script string) string {
	text := base64.StdEncoding.EncodeToString([]byte(script))
	var b strings.Builder
	for at := 0; at == 0 || at < len(text); at += scriptChunk {
		fmt.Fprintf(&b, "w %s %s\n", id, text[at:min(at+scriptChunk, len(text))])
	}
	fmt.Fprintf(&b, "x %s\n", id)
	return b.String()
}

// jobResult is what the console shows of a job.
type jobResult struct {
	ends   int  // last lines seen: how often it was printed
	whole  bool // output and code are complete and right
	output string
	code   int
}

// parseJob finds a job's result in a console's text. Lines of several prints
// complete each other.
func parseJob(text, id string) jobResult {
	var r jobResult
	lines := map[int]string{}
	line := regexp.MustCompile(`<` + regexp.QuoteMeta(id) + `:(\d+):([A-Za-z0-9+/=]*)>`)
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			continue
		}
		lines[n] = m[2]
	}
	end := regexp.MustCompile(`<` + regexp.QuoteMeta(id) + `:end:(\d+):([0-9a-f]{16})>`)
	for _, m := range end.FindAllStringSubmatch(text, -1) {
		r.ends++
		var b strings.Builder
		for n := 1; n <= len(lines); n++ {
			b.WriteString(lines[n])
		}
		data, _ := base64.StdEncoding.DecodeString(b.String()) // a hole fails the sum
		sum := sha256.Sum256(data)
		r.output = string(data)
		r.code, _ = strconv.Atoi(m[1])
		if m[2] == hex.EncodeToString(sum[:])[:16] {
			r.whole = true
			return r
		}
	}
	return r
}
