package tidy

import (
	"go/ast"
	"go/types"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

// impureImports are packages that a state package may not import at all.
var impureImports = []string{"os", "net", "io/fs", "math/rand", "math/rand/v2", "crypto/rand", "runtime", "os/exec",
	"syscall", "log/slog", "unsafe", "github.com/cockroachdb/pebble/v2"}

// impureCalls are functions of allowed packages that give no determined answer.
var impureCalls = map[string]bool{
	"time.Now": true, "time.Since": true, "time.Until": true, "time.Sleep": true, "time.After": true,
	"time.AfterFunc": true, "time.NewTimer": true, "time.NewTicker": true, "time.Tick": true,
}

// sortedMark is the comment that excuses a range over a map: what it collects is sorted, or order cannot matter.
const sortedMark = "order:"

// TestStatePackagesArePure: same log, same state. No clock, randomness, I/O,
// goroutines or map order below fsm/ and in feature/*/state.
func TestStatePackagesArePure(t *testing.T) {
	cfg := &packages.Config{Dir: "../..", Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax |
		packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports}
	pkgs, err := packages.Load(cfg, "./fsm/...", "./feature/...")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, p := range pkgs {
		dir := strings.TrimPrefix(p.PkgPath, Module+"/")
		if top(dir) != "fsm" && !isState(dir) || strings.HasSuffix(dir, "pb") || strings.HasSuffix(dir, "test") {
			continue
		}
		for _, e := range p.Errors {
			t.Errorf("%s: %v", dir, e)
		}
		checked++
		checkPure(t, p)
	}
	if checked < 4 {
		t.Fatalf("only %d state packages were checked", checked)
	}
}

func checkPure(t *testing.T, p *packages.Package) {
	for _, imp := range impureImports {
		if p.Imports[imp] != nil {
			t.Errorf("%s imports %s", p.PkgPath, imp)
		}
	}
	for _, f := range p.Syntax {
		excused := excusedLines(p, f)
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%v: a goroutine in a state package", p.Fset.Position(n.Pos()))
			case *ast.SelectStmt, *ast.SendStmt:
				t.Errorf("%v: a channel operation in a state package", p.Fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if fn, ok := p.TypesInfo.Uses[n.Sel].(*types.Func); ok && fn.Pkg() != nil && fn.Signature().Recv() == nil && impureCalls[fn.Pkg().Path()+"."+fn.Name()] {
					t.Errorf("%v: %s has no determined answer", p.Fset.Position(n.Pos()), fn.FullName())
				}
			case *ast.RangeStmt:
				_, isMap := p.TypesInfo.TypeOf(n.X).Underlying().(*types.Map)
				if line := p.Fset.Position(n.Pos()).Line; isMap && !excused[line] {
					t.Errorf("%v: a range over a map has no order; sort, and say so in a comment that begins with %q", p.Fset.Position(n.Pos()), sortedMark)
				}
			}
			return true
		})
	}
}

// excusedLines are the lines that carry, or follow, a comment beginning with sortedMark.
func excusedLines(p *packages.Package, f *ast.File) map[int]bool {
	lines := map[int]bool{}
	for _, group := range f.Comments {
		for _, c := range group.List {
			if strings.HasPrefix(strings.TrimSpace(strings.TrimPrefix(c.Text, "//")), sortedMark) {
				line := p.Fset.Position(c.Pos()).Line
				lines[line], lines[line+1] = true, true
			}
		}
	}
	return lines
}
