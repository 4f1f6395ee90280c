// Package tidy is the architecture as tests: who may import whom, what the
// state packages may not touch, how long a function may be, what must be
// documented. The rules stand in docs/STYLE.md; their reasons in docs/ARCHITECTURE.md.
//
// It has no callers: `go test ./internal/tidy` is its use. This file reads the
// tree; the tests hold the rules.
package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Module is the module path; every package of ours begins with it.
const Module = "muster"

// File is one Go source file of the module.
type File struct {
	Path      string // slash-separated, below the module root
	Dir       string // its folder, "." for the root
	AST       *ast.File
	Lines     int
	Test      bool
	Generated bool
}

// Tree is every Go file of the module.
type Tree struct {
	Root  string
	Fset  *token.FileSet
	Files []*File
}

// Load parses every Go file below root, the module's folder.
func Load(root string) (*Tree, error) {
	t := &Tree{Root: root, Fset: token.NewFileSet()}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(root, path, d.Name())
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		return t.add(path)
	})
	return t, err
}

func skip(root, path, name string) error {
	if path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "run" || name == "bin") {
		return filepath.SkipDir
	}
	return nil
}

func (t *Tree) add(path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f, err := parser.ParseFile(t.Fset, path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(t.Root, path)
	if err != nil {
		return err
	}
	rel = filepath.ToSlash(rel)
	t.Files = append(t.Files, &File{
		Path: rel, Dir: filepath.ToSlash(filepath.Dir(rel)), AST: f,
		Lines: strings.Count(string(src), "\n"),
		Test:  strings.HasSuffix(path, "_test.go"), Generated: ast.IsGenerated(f),
	})
	return nil
}

// Imports returns the file's imports of packages of ours, below the module root, and of all others.
func (f *File) Imports() (ours, others []string) {
	for _, spec := range f.AST.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		if rest, ok := strings.CutPrefix(p, Module+"/"); ok {
			ours = append(ours, rest)
		} else {
			others = append(others, p)
		}
	}
	return ours, others
}
