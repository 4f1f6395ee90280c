package tidy

import (
	"strings"
	"testing"
)

// layers says which top-level folders each may import, besides internal/ and
// itself (DESIGN.md section 3). More exact rules stand in allowed.
var layers = map[string][]string{
	"cmd":         {"log", "fsm", "replication", "monitor", "router", "feature", "edges"},
	"edges":       {"router", "monitor", "fsm"},
	"feature":     {"router", "monitor", "fsm", "log"},
	"router":      {"fsm", "log"},
	"replication": {"fsm", "log"},
	"monitor":     {"fsm"}, // settings, and facts about failovers; replication is seen through the monitor's own interface
	"fsm":         {"log"},
	"log":         {},
}

// helpers may be imported from everywhere and import nothing of ours but one another.
var helpers = []string{"internal/fault", "internal/jid", "internal/scram", "internal/certs", "internal/store", "internal/disk"}

// assembly packages put the parts together and may import all that cmd may.
var assembly = []string{"internal/node", "internal/modules", "internal/simnode", "internal/simnet", "internal/bootstrap", "internal/tidy", "internal/demo"}

// pairs are the feature-to-feature imports that are allowed, each with its reason.
var pairs = map[string]string{
	"feature/presence -> feature/roster/state":   "presence follows subscriptions",
	"feature/presence -> feature/blocking/state": "nothing reaches or leaves a blocked contact",
	"feature/blocking -> feature/roster/state":   "blocking a watcher looks like going offline to it",
	"feature/last -> feature/roster/state":       "last activity is for subscribers",
	"feature/last -> feature/blocking/state":     "last activity is not for blocked contacts",
	"feature/disco -> feature/roster/state":      "an account answers its subscribers",
	"feature/disco -> feature/blocking/state":    "an account does not answer blocked contacts",
	"feature/vcard -> feature/blocking/state":    "a vCard is not for blocked contacts",
	"feature/commands -> feature/roster/state":   "administrators read a user's roster",
	"feature/roster -> feature/blocking/state":   "a subscription to a blocked contact is refused",
	"feature/archive -> feature/roster/state":    "users may have archived what they exchange with contacts",
	"feature/archive -> feature/message/state":   "an archive is read from the message log",
	"feature/offline -> feature/message/state":   "what waits is in the message log",
}

// TestImports holds the import table.
func TestImports(t *testing.T) {
	for _, f := range load(t).Files {
		ours, _ := f.Imports()
		for _, imp := range ours {
			if why := refused(f, imp); why != "" {
				t.Errorf("%s imports %s: %s", f.Path, imp, why)
			}
		}
	}
}

func refused(f *File, imp string) string {
	from, to := top(f.Dir), top(imp)
	switch {
	case within(f.Dir, assembly) || f.Test && from != "fsm" && from != "log":
		return "" // tests may assemble what they need
	case within(imp, helpers):
		return ""
	case within(imp, assembly):
		if from == "cmd" || f.Test {
			return ""
		}
		return "only cmd puts the parts together"
	case f.Dir == "internal/store" && imp == "fsm":
		return "" // it implements the machine's Store
	case from == "internal":
		return "a helper imports helpers only"
	case isState(f.Dir):
		if to == "fsm" || to == "log" || strings.HasPrefix(imp, f.Dir+"/") || pairs[featureOf(f.Dir)+" -> "+imp] != "" {
			return ""
		}
		return "a state package imports fsm and log only"
	case from == to && from == "feature":
		if featureOf(f.Dir) == featureOf(imp) || pairs[f.Dir+" -> "+imp] != "" {
			return ""
		}
		return "this pair of features is not on the list"
	case from == to && from == "edges":
		if featureOf(f.Dir) == featureOf(imp) {
			return ""
		}
		return "an edge never imports another edge"
	case from == to:
		return ""
	}
	for _, ok := range layers[from] {
		if to == ok {
			return ""
		}
	}
	return "the import table of DESIGN.md section 3 does not allow it"
}

func top(dir string) string { first, _, _ := strings.Cut(dir, "/"); return first }

// featureOf returns "feature/x" of "feature/x/state", and "edges/x" likewise.
func featureOf(dir string) string {
	parts := strings.SplitN(dir, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func isState(dir string) bool {
	parts := strings.Split(dir, "/")
	return len(parts) >= 3 && parts[0] == "feature" && parts[2] == "state"
}

func within(dir string, list []string) bool {
	for _, p := range list {
		if dir == p || strings.HasPrefix(dir, p+"/") {
			return true
		}
	}
	return false
}

// TestStandardLogIsBanned: "log." always means the event log; messages go to log/slog.
func TestStandardLogIsBanned(t *testing.T) {
	for _, f := range load(t).Files {
		_, others := f.Imports()
		for _, imp := range others {
			if imp == "log" {
				t.Errorf("%s imports the standard log package; use log/slog", f.Path)
			}
		}
	}
}

func load(t *testing.T) *Tree {
	t.Helper()
	tree, err := Load("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files) < 20 {
		t.Fatalf("only %d files read: is the root right?", len(tree.Files))
	}
	return tree
}
