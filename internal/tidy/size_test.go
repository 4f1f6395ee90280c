package tidy

import (
	"go/ast"
	"sort"
	"strings"
	"testing"
)

// The hard sizes of docs/STYLE.md, in lines; the percentiles are the aim for the whole tree.
const (
	maxFunction = 70
	maxFile     = 800
	p95Function = 50
	p95File     = 450
	medFunction = 12
)

// TestSizes holds the hard sizes and the distribution of hand-written code.
func TestSizes(t *testing.T) {
	tree := load(t)
	var functions, files []int
	for _, f := range tree.Files {
		if f.Generated {
			continue
		}
		if f.Lines > maxFile {
			t.Errorf("%s has %d lines; the limit is %d", f.Path, f.Lines, maxFile)
		}
		if f.Test {
			continue
		}
		files = append(files, f.Lines)
		for _, d := range f.AST.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := tree.Fset.Position(fn.End()).Line - tree.Fset.Position(fn.Pos()).Line + 1
			functions = append(functions, n)
			if n > maxFunction {
				t.Errorf("%s: %s has %d lines; the limit is %d", f.Path, fn.Name.Name, n, maxFunction)
			}
		}
	}
	sort.Ints(functions)
	sort.Ints(files)
	med, p95, p95f := at(functions, 50), at(functions, 95), at(files, 95)
	t.Logf("functions: median %d, p95 %d; files: p95 %d", med, p95, p95f)
	if med > medFunction || p95 > p95Function || p95f > p95File {
		t.Errorf("functions: median %d (at most %d), p95 %d (at most %d); files: p95 %d (at most %d)",
			med, medFunction, p95, p95Function, p95f, p95File)
	}
}

func at(sorted []int, percent int) int { return sorted[(len(sorted)-1)*percent/100] }

// TestDocumented: every package and every exported name says what it is.
func TestDocumented(t *testing.T) {
	packages := map[string]bool{}
	for _, f := range load(t).Files {
		if f.Test || f.Generated {
			continue
		}
		packages[f.Dir] = packages[f.Dir] || f.AST.Doc != nil
		for _, d := range f.AST.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: %s has no comment", f.Path, name)
			}
		}
	}
	for dir, ok := range packages {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

func undocumented(d ast.Decl) []string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		var out []string
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					out = append(out, s.Name.Name)
				}
			case *ast.ValueSpec:
				if s.Names[0].IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					out = append(out, s.Names[0].Name)
				}
			}
		}
		return out
	}
	return nil
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported() && !strings.HasSuffix(x.Name, "pb")
		default:
			return false
		}
	}
}
