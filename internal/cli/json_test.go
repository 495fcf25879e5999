package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestJSONDocument: docs/json.md shows what the commands print, and explains
// each field. With -update the blocks are written anew.
func TestJSONDocument(t *testing.T) {
	path := filepath.Join(here(t), "../../docs/json.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := newImageRig(t)
	makeFile(t, "demo.raw", 8<<20)
	writeAt(t, "demo.raw", 3<<20, strings.Repeat("x", 1<<20))
	r.made(t, "create broken.vhd --size 4MiB")
	fill(t, "broken.vhd", 0, strings.Repeat("x", 512))
	writeAt(t, "broken.vhd", sizeOf(t, "broken.vhd")-512, strings.Repeat("\x00", 512))
	parts := strings.Split(string(text), "```\n")
	ran := map[string]bool{}
	for i := 1; i < len(parts); i += 2 {
		line, _, _ := strings.Cut(parts[i], "\n")
		args, ok := strings.CutPrefix(line, "$ xen-disk image ")
		if !ok {
			t.Errorf("a block that is no command: %q", line)
			continue
		}
		ran[strings.Fields(args)[0]] = true
		r.answer(t, args)
		if r.err.Len() != 0 {
			t.Errorf("%s: %s", line, &r.err)
		}
		parts[i] = line + "\n" + r.steady(r.out.String())
		documented(t, args, r.out.Bytes(), parts[i+1])
	}
	for _, name := range imageCommands(t) {
		if !ran[name] {
			t.Errorf("docs/json.md says nothing of %s", name)
		}
	}
	got := strings.Join(parts, "```\n")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != string(text) {
		t.Errorf("docs/json.md is not what the commands print (-update accepts it):\n%s", got)
	}
}

// documented checks that what follows a block explains all of its fields; of
// two blocks in a row the second one has the table.
func documented(t *testing.T, name string, object []byte, after string) {
	t.Helper()
	var fields any
	if err := json.Unmarshal(object, &fields); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if !strings.Contains(after, "|") {
		return
	}
	for field := range fieldNames(fields) {
		if field != "version" && !regexp.MustCompile("(?m)^\\|.*`"+field+"`.*\\|").MatchString(after) {
			t.Errorf("%s: docs/json.md does not explain %s", name, field)
		}
	}
}

// fieldNames are the names of all fields, also of objects inside.
func fieldNames(v any) map[string]bool {
	names := map[string]bool{}
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			names[name] = true
			for n := range fieldNames(inner) {
				names[n] = true
			}
		}
	case []any:
		for _, inner := range v {
			for n := range fieldNames(inner) {
				names[n] = true
			}
		}
	}
	return names
}
