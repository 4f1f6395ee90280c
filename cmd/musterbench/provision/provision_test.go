package provision

import (
	"encoding/csv"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"muster/cmd/musterbench/target"
	"muster/internal/fault"
)

func users(t *testing.T, pattern string, n int) []target.User {
	t.Helper()
	all, err := target.Expand(pattern, 1, n)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestCSV(t *testing.T) {
	dir := t.TempDir()
	if err := Write(CSV, dir, users(t, "user%d@bench.test:secret", 5), 2); err != nil {
		t.Fatal(err)
	}
	accounts, err := csv.NewReader(strings.NewReader(read(t, dir, "users.csv"))).ReadAll()
	if err != nil || len(accounts) != 5 || accounts[4][0] != "user5@bench.test" || accounts[4][1] != "secret" {
		t.Errorf("accounts %v, %v", accounts, err)
	}
	contacts, err := csv.NewReader(strings.NewReader(read(t, dir, "rosters.csv"))).ReadAll()
	if err != nil || len(contacts) != 5 {
		t.Fatalf("five users with two contacts each make %d pairs, want 5: %v, %v", len(contacts), contacts, err)
	}
	pairs := make(map[string]bool)
	for _, c := range contacts {
		if pairs[c[1]+" "+c[0]] || pairs[c[0]+" "+c[1]] || c[0] == c[1] {
			t.Errorf("the pair %v stands there twice", c)
		}
		pairs[c[0]+" "+c[1]] = true
	}
}

func TestEjabberd(t *testing.T) {
	dir := t.TempDir()
	if err := Write(Ejabberd, dir, users(t, "user%d@bench.test:secret", 3), 2); err != nil {
		t.Fatal(err)
	}
	terms := read(t, dir, "ejabberd.terms")
	if n := strings.Count(terms, "{passwd,{<<\"user"); n != 3 {
		t.Errorf("%d accounts, want 3", n)
	}
	if n := strings.Count(terms, ",both,none,[],<<>>,[]}.\n"); n != 6 {
		t.Errorf("%d contacts, want 6", n)
	}
	row := regexp.MustCompile(`^\{passwd,\{<<"user1">>,<<"bench.test">>\},\{scram,<<"[A-Za-z0-9+/]{27}=">>,<<"[A-Za-z0-9+/]{27}=">>,<<"[^"]+">>,sha,10000\}\}\.\n`)
	if !row.MatchString(terms) {
		t.Errorf("first row: %.200s", terms)
	}
}

func TestProsody(t *testing.T) {
	dir := t.TempDir()
	if err := Write(Prosody, dir, users(t, "the_user-%d@bench.test:secret", 3), 2); err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(dir, "bench%2etest")
	account := read(t, host, "accounts", "the%5fuser%2d1.dat")
	for _, want := range []string{`["iteration_count"] = 10000;`, `["salt"] = "musterbench-salt";`} {
		if !strings.Contains(account, want) {
			t.Errorf("account lacks %q: %s", want, account)
		}
	}
	if !regexp.MustCompile(`\["stored_key"\] = "[0-9a-f]{40}"`).MatchString(account) {
		t.Errorf("account without a stored key: %s", account)
	}
	roster := read(t, host, "roster", "the%5fuser%2d1.dat")
	if n := strings.Count(roster, `["subscription"] = "both"`); n != 2 {
		t.Errorf("%d contacts, want 2: %s", n, roster)
	}
}

// TestProsodyFilesAreLua has a Lua interpreter read what was written, where there is one.
func TestProsodyFilesAreLua(t *testing.T) {
	dir := t.TempDir()
	if err := Write(Prosody, dir, users(t, "user%d@bench.test:secret", 3), 2); err != nil {
		t.Fatal(err)
	}
	var interpreter string
	for _, name := range []string{"lua", "lua5.4", "lua5.3", "lua5.1"} {
		if path, err := exec.LookPath(name); err == nil {
			interpreter = path
		}
	}
	for _, store := range []string{"accounts", "roster"} {
		path := filepath.Join(dir, "bench%2etest", store, "user1.dat")
		text := read(t, path)
		if strings.Count(text, "{") != strings.Count(text, "}") || !strings.HasPrefix(text, "return {") {
			t.Errorf("%s is no Lua table: %s", store, text)
		}
		if interpreter == "" {
			continue
		}
		script := fmt.Sprintf("assert(type(dofile(%q)) == 'table')", path)
		if out, err := exec.Command(interpreter, "-e", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", store, err, out)
		}
	}
}

func TestVerifierIsDerivedOncePerPassword(t *testing.T) {
	known := make(verifiers)
	a, err := known.of("one")
	if err != nil {
		t.Fatal(err)
	}
	b, err := known.of("two")
	if err != nil {
		t.Fatal(err)
	}
	again, err := known.of("one")
	if err != nil || len(known) != 2 {
		t.Fatalf("%d derivations, %v", len(known), err)
	}
	if string(a.stored) == string(b.stored) || string(a.stored) != string(again.stored) || string(a.stored) == string(a.server) {
		t.Error("verifiers are mixed up")
	}
}

func TestWriteFails(t *testing.T) {
	if err := Write("xml", t.TempDir(), nil, 0); !fault.Is(err, fault.BadRequest) {
		t.Errorf("unknown format: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []Format{CSV, Ejabberd, Prosody} {
		if err := Write(format, file, users(t, "u%d@d:p", 1), 0); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s into a file: %v", format, err)
		}
	}
}
