package tidy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"muster/log"
)

// TestDependenciesHaveReasons: docs/DEPENDENCIES.md names every direct dependency.
func TestDependenciesHaveReasons(t *testing.T) {
	mod := read(t, "go.mod")
	doc := read(t, "docs/DEPENDENCIES.md")
	direct := 0
	for _, line := range strings.Split(mod, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "v") || strings.Contains(line, "// indirect") || fields[0] == "//" {
			continue
		}
		direct++
		if !strings.Contains(doc, "`"+fields[0]+"`") {
			t.Errorf("docs/DEPENDENCIES.md gives no reason for %s", fields[0])
		}
	}
	if direct == 0 {
		t.Fatal("no direct dependency found in go.mod: is the parsing right?")
	}
}

// TestKindOwnersExist: every kind's owner is a package of this module.
func TestKindOwnersExist(t *testing.T) {
	for _, k := range log.Kinds() {
		if _, err := os.Stat(filepath.Join("../..", k.Owner)); err != nil {
			t.Errorf("kind %s belongs to %s, which does not exist", k.Name, k.Owner)
		}
	}
}

// TestNoDeadTestData: every file or folder directly below a testdata folder is named by some source, script or Makefile.
func TestNoDeadTestData(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	var sources strings.Builder
	entries := map[string]bool{}
	for _, p := range strings.Fields(string(out)) {
		if i := strings.Index(p, "testdata/"); i >= 0 {
			name, _, _ := strings.Cut(p[i+len("testdata/"):], "/")
			entries[p[:i]+"testdata/"+name] = true
		}
		if isSource(p) {
			sources.WriteString(read(t, p))
		}
	}
	all := sources.String()
	for p := range entries {
		name := filepath.Base(p)
		if name == "fuzz" || strings.Contains(all, name) || strings.Contains(all, "testdata/*"+filepath.Ext(name)) {
			continue
		}
		t.Errorf("%s: no source, script or Makefile names it", p)
	}
}

func isSource(p string) bool {
	switch filepath.Ext(p) {
	case ".go", ".sh", ".py", ".mk":
		return true
	}
	return filepath.Base(p) == "Makefile" || p == ".ci/run"
}

// TestMakefileIsShort: at most 60 lines, with help.
func TestMakefileIsShort(t *testing.T) {
	mk := read(t, "Makefile")
	if n := strings.Count(mk, "\n"); n > 60 {
		t.Errorf("Makefile has %d lines; the limit is 60", n)
	}
	if !strings.Contains(mk, "\nhelp:") {
		t.Error("Makefile has no help target")
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
