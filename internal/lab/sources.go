package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// osRelease reads the host's codename. The host must be Debian: its own apt
// sources, with the codename replaced, are where the packages come from.
func osRelease(text string) (codename string, err error) {
	fields := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		if key, value, ok := strings.Cut(line, "="); ok {
			fields[key] = strings.Trim(value, `"`)
		}
	}
	codename = fields["VERSION_CODENAME"]
	if fields["ID"] != "debian" || codename == "" {
		return "", fmt.Errorf("read os-release: the lab needs a Debian host, this is %q %q",
			fields["ID"], codename)
	}
	return codename, nil
}

// writeSources copies the machine's own apt sources into dir, for another
// suite. Sources of other vendors are left out: they need not know the suite.
func writeSources(etc, dir, codename, suite string) error {
	paths := []string{filepath.Join(etc, "sources.list")}
	for _, glob := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(etc, "sources.list.d", glob))
		if err != nil {
			return err
		}
		paths = append(paths, more...)
	}
	written := 0
	for i, path := range paths {
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		rewrite, ext := rewriteList, ".list"
		if strings.HasSuffix(path, ".sources") {
			rewrite, ext = rewriteDeb822, ".sources"
		}
		text := rewrite(string(data), codename, suite)
		if text == "" {
			continue
		}
		name := filepath.Join(dir, fmt.Sprintf("lab%d%s", i, ext))
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
		written++
	}
	if written == 0 {
		return fmt.Errorf("read apt sources of %s: none is of suite %s", etc, codename)
	}
	return nil
}

// replaceSuite maps a suite of the host to the wanted one, with its pocket:
// trixie-updates becomes bookworm-updates. Any other name is not Debian's own.
func replaceSuite(name, codename, suite string) (string, bool) {
	for _, pocket := range []string{"", "-updates", "-security", "/updates"} {
		for _, own := range []string{codename, "stable"} {
			if name == own+pocket {
				return suite + pocket, true
			}
		}
	}
	return "", false
}

// rewriteList rewrites one-line-style sources: "deb [options] uri suite
// component...". It keeps only the lines of the host's own suites.
func rewriteList(text, codename, suite string) string {
	var out strings.Builder
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "deb" {
			continue
		}
		at := 2 // of the suite: behind "deb", the options and the URI
		for i := 1; i < len(fields) && strings.HasPrefix(fields[1], "["); i++ {
			at++
			if strings.HasSuffix(fields[i], "]") {
				break
			}
		}
		if at >= len(fields) {
			continue
		}
		name, ok := replaceSuite(fields[at], codename, suite)
		if !ok {
			continue
		}
		fields[at] = name
		out.WriteString(strings.Join(fields, " ") + "\n")
	}
	return out.String()
}

// rewriteDeb822 rewrites deb822-style sources: stanzas of "Key: value". It
// keeps the stanzas that have suites of the host, and of those only these.
func rewriteDeb822(text, codename, suite string) string {
	var out []string
	for _, stanza := range splitStanzas(text) {
		kept := rewriteStanza(stanza, codename, suite)
		if kept != "" {
			out = append(out, kept)
		}
	}
	return strings.Join(out, "\n")
}

func splitStanzas(text string) [][]string {
	var stanzas [][]string
	var lines []string
	for _, line := range append(strings.Split(text, "\n"), "") {
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) != "":
			lines = append(lines, line)
		case lines != nil:
			stanzas = append(stanzas, lines)
			lines = nil
		}
	}
	return stanzas
}

func rewriteStanza(lines []string, codename, suite string) string {
	var out strings.Builder
	keep := false
	for _, line := range lines {
		key, value, _ := strings.Cut(line, ":")
		switch {
		case strings.EqualFold(key, "Suites"):
			var suites []string
			for _, s := range strings.Fields(value) {
				if name, ok := replaceSuite(s, codename, suite); ok {
					suites = append(suites, name)
				}
			}
			keep = len(suites) > 0
			line = "Suites: " + strings.Join(suites, " ")
		case strings.EqualFold(key, "Enabled") && strings.TrimSpace(value) == "no":
			return ""
		}
		out.WriteString(line + "\n")
	}
	if !keep {
		return ""
	}
	return out.String()
}
