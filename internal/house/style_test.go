package house

import (
	"bytes"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

const (
	maxFileLines = 499
	maxFuncLines = 69
)

func TestFileLength(t *testing.T) {
	for _, f := range tree(t) {
		if f.lines > maxFileLines {
			t.Errorf("%s: %d lines, want under %d", f.name, f.lines, maxFileLines+1)
		}
	}
}

// TestFuncLength counts from the line of func to that of the closing brace.
// A table in a test counts too: it can stand beside the function.
func TestFuncLength(t *testing.T) {
	for _, f := range tree(t) {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := f.fset.Position(fn.End()).Line - f.line(fn) + 1
			if lines > maxFuncLines {
				t.Errorf("%s:%d: %s has %d lines, want under %d",
					f.name, f.line(fn), fn.Name.Name, lines, maxFuncLines+1)
			}
		}
	}
}

// TestUnsafeOnlyInUnsafeFiles: unsafe is where a reviewer looks for it, and
// says why it is safe.
func TestUnsafeOnlyInUnsafeFiles(t *testing.T) {
	for _, f := range tree(t) {
		named := strings.HasSuffix(f.name, "_unsafe.go") || strings.HasSuffix(f.name, "_unsafe_test.go")
		if slices.Contains(f.imports(), "unsafe") && !named {
			t.Errorf("%s: imports unsafe and is not named *_unsafe.go", f.name)
		}
		if named && !bytes.Contains(f.text, []byte("SAFETY:")) {
			t.Errorf("%s: has no SAFETY: comment", f.name)
		}
		for _, c := range linknames(&f) {
			t.Errorf("%s:%d: go:linkname", f.name, f.line(c))
		}
	}
}

func linknames(f *source) []*ast.Comment {
	var found []*ast.Comment
	for _, g := range f.ast.Comments {
		for _, c := range g.List {
			if strings.HasPrefix(c.Text, "//go:linkname") {
				found = append(found, c)
			}
		}
	}
	return found
}

// TestNoSkip: a test that did not run has not passed, and one that sleeps
// hopes. A missing tool is installed by the test command.
func TestNoSkip(t *testing.T) {
	for _, f := range tree(t) {
		if !f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if name := sel.Sel.Name; skips(sel) {
				t.Errorf("%s:%d: %s in a test", f.name, f.line(sel), name)
			}
			return true
		})
	}
}

// skips knows testing.T's skips by their names, which nothing else of ours
// has but fs.SkipDir and fs.SkipAll; and testing.Short and time.Sleep by their
// packages.
func skips(sel *ast.SelectorExpr) bool {
	switch sel.Sel.Name {
	case "Skip", "Skipf", "SkipNow":
		return true
	case "Short":
		return isPackage(sel.X, "testing")
	case "Sleep":
		return isPackage(sel.X, "time")
	}
	return false
}

func isPackage(x ast.Expr, name string) bool {
	id, ok := x.(*ast.Ident)
	return ok && id.Name == name
}

func TestNoInit(t *testing.T) {
	for _, f := range tree(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s:%d: func init", f.name, f.line(fn))
			}
		}
	}
}

// TestPackagesHaveOneDocComment: rule 2, a package says what it does; main's
// is the man page.
func TestPackagesHaveOneDocComment(t *testing.T) {
	docs := map[string][]string{}
	for _, f := range tree(t) {
		if f.room == "." || strings.HasSuffix(f.ast.Name.Name, "_test") {
			continue
		}
		if _, seen := docs[f.room]; !seen {
			docs[f.room] = nil
		}
		if f.ast.Doc != nil {
			docs[f.room] = append(docs[f.room], f.name)
		}
	}
	for room, files := range docs {
		if len(files) != 1 {
			t.Errorf("%s: package comments in %q, want one", room, files)
		}
	}
}
