package cli

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// columns is the width of a terminal, for which all texts are made.
const columns = 80

// oneLine joins what errors.Join put on lines of their own.
func oneLine(s string) string { return strings.Join(strings.Split(s, "\n"), "; ") }

// printable escapes what is no text. Names and errors can come from a guest,
// and a terminal obeys what it is sent.
func printable(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			b.WriteString(`\x` + strconv.FormatUint(uint64(s[i]), 16))
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// wrap breaks a line at spaces; what follows the first line is indented. Words
// that are too long stay whole, so that they can be copied.
func wrap(line, indent string) string {
	var b strings.Builder
	for utf8.RuneCountInString(line) > columns {
		at := breakAt(line, len(indent))
		if at < 0 {
			break
		}
		b.WriteString(strings.TrimRight(line[:at], " ") + "\n")
		line = indent + line[at+1:]
	}
	return b.String() + line
}

// breakAt is the last space within the columns, else the first after them,
// that comes behind the indentation.
func breakAt(line string, indent int) int {
	at, width := -1, 0
	for i, r := range line {
		if r == ' ' && i > indent {
			if width > columns && at >= 0 {
				break
			}
			at = i
			if width > columns {
				break
			}
		}
		width++
	}
	return at
}
