package cli

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestReadmeCommands: every command line of the README is one that xen-disk
// understands, and every make target exists. The lab runs the demo and the
// examples themselves.
func TestReadmeCommands(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, line := range strings.Split(string(readme), "\n") {
		command, ok := strings.CutPrefix(line, "    ")
		if !ok {
			continue
		}
		if target, ok := strings.CutPrefix(command, "make "); ok {
			seen++
			if !regexp.MustCompile(`(?m)^` + target + `:`).Match(makefile) {
				t.Errorf("README has %q, the Makefile no such target", command)
			}
		}
		if args, ok := strings.CutPrefix(command, "xen-disk "); ok {
			seen++
			var cmds commands
			parser, err := kong.New(&cmds, kong.Vars{"version": "test"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(strings.Fields(args)); err != nil {
				t.Errorf("README has %q: %v", command, err)
			}
		}
	}
	if seen < 5 {
		t.Errorf("found %d commands in the README", seen)
	}
}

// TestReadmeExitCodes: the README's table has every exit code.
func TestReadmeExitCodes(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range []int{
		exitOK, exitFailed, exitUsage, exitMissing, exitBusy, exitGuest,
		exitCorrupt, exitLeaks, exitDiffer, exitNoXen,
	} {
		if !regexp.MustCompile(`(?m)^\| ` + string(rune('0'+code)) + ` \|`).Match(readme) {
			t.Errorf("README does not explain exit code %d", code)
		}
	}
}
