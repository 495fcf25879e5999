// Package house holds no code. Its tests keep the rules of the house that a
// parser can see: who imports whom, how long files and functions are, where
// unsafe is. They read the files of the tree, not what one build would take.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "xen-disk"

// source is one .go file of the tree.
type source struct {
	name  string // from the top of the tree, with slashes
	room  string // its directory; "." is the top
	test  bool
	text  []byte
	lines int
	fset  *token.FileSet
	ast   *ast.File
}

// generated is the line that go generate's tools write (go help generate).
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// tree parses every .go file of the module but generated ones.
func tree(t *testing.T) []source {
	t.Helper()
	top := os.DirFS(filepath.Join("..", ".."))
	if _, err := fs.Stat(top, "go.mod"); err != nil {
		t.Fatalf("the top of the tree: %v", err)
	}
	var files []source
	err := fs.WalkDir(top, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			hidden := name != "." && strings.HasPrefix(base, ".")
			if hidden || base == "testdata" || base == "vendor" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		text, err := fs.ReadFile(top, name)
		if err != nil {
			return err
		}
		if generated.Match(text) {
			return nil
		}
		files = append(files, parse(t, name, text))
		return nil
	})
	if err != nil {
		t.Fatalf("walk: %v", err)
	}
	if len(files) == 0 {
		t.Fatal("no .go files: the rules were held against nothing")
	}
	return files
}

func parse(t *testing.T, name string, text []byte) source {
	t.Helper()
	f := source{
		name: name, room: path.Dir(name), text: text, fset: token.NewFileSet(),
		test:  strings.HasSuffix(name, "_test.go"),
		lines: strings.Count(string(text), "\n"),
	}
	var err error
	f.ast, err = parser.ParseFile(f.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return f
}

// imports are the paths that a file imports.
func (f *source) imports() []string {
	var paths []string
	for _, i := range f.ast.Imports {
		paths = append(paths, strings.Trim(i.Path.Value, "\"`"))
	}
	return paths
}

// line is where a node begins.
func (f *source) line(n ast.Node) int { return f.fset.Position(n.Pos()).Line }

// under says whether a room is another or lies in it.
func under(room, top string) bool { return room == top || strings.HasPrefix(room, top+"/") }
