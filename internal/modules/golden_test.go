package modules_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	archive "muster/feature/archive/state"
	blocking "muster/feature/blocking/state"
	private "muster/feature/private/state"
	roster "muster/feature/roster/state"
	vcard "muster/feature/vcard/state"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/token"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/internal/modules"
	"muster/log"
)

var update = flag.Bool("update", false, "write the golden files that do not exist yet")

const goldenDir = "../../testdata/golden"

var (
	alice      = jid.MustParse("alice@example.com")
	bob        = jid.MustParse("bob@example.com")
	invitation = cluster.HashToken([]byte("token"))
	agent, _   = token.ParseAgent("d4565fa7-4d72-4749-b3d3-740edbf87770")
)

func verifier(size int) user.Verifier {
	return user.Verifier{
		Iterations: 10_000, Salt: bytes.Repeat([]byte{1}, 16),
		StoredKey: bytes.Repeat([]byte{2}, size), ServerKey: bytes.Repeat([]byte{3}, size),
	}
}

func member(name string) cluster.Member {
	return cluster.Member{
		Name: name, ClusterAddr: name + ":7300", Addrs: map[string]string{"client": name + ":5222", "https": name + ":8443"},
		Software: "muster 0.1", NewestVersion: 2,
	}
}

// script has one entry of every kind, in an order in which all are accepted. helper entries prepare the ground.
type line struct {
	helper bool
	entry  *log.Entry
}

func script() []line {
	yes, email := true, "alice@example.com"
	until := fsmtest.Start.Add(time.Hour)
	return []line{
		{false, cluster.InitEntry(cluster.Init{ID: "c-1", Name: "Test", CACert: []byte("PEM"), Version: 1, Node: member("n1")})},
		{false, cluster.VersionEntry(2)},
		{false, cluster.TokenEntry(invitation, until)},
		{false, cluster.JoinEntry(invitation, member("n2"))},
		{false, cluster.StartEntry(1, "muster 0.1", 2)},
		{false, cluster.UpdateEntry(1, "n1:7301", map[string]string{"client": "n1:5222"})},
		{false, cluster.GroupEntry(cluster.Group{Name: "east", Nodes: []uint32{2}, HA: true})},
		{true, cluster.GroupEntry(cluster.Group{Name: "empty"})},
		{false, cluster.GroupRemoveEntry("empty")},
		{false, cluster.ModeEntry(cluster.Balanced)},
		{false, config.AddDomainEntry("example.com")},
		{true, config.AddDomainEntry("example.org")},
		{false, config.RemoveDomainEntry("example.org")},
		{false, config.SetEntry("roster.max_contacts", "500", 0)},
		{false, config.ResetEntry("roster.max_contacts", 0)},
		{false, user.CreateEntry(user.User{Name: alice.String(), IM: true, Presence: true, DisplayName: "Alice", SHA256: verifier(32), SHA1: verifier(20)})},
		{true, user.CreateEntry(user.User{Name: bob.String(), IM: true})},
		{false, user.UpdateEntry(alice.String(), user.Update{Admin: &yes, Email: &email})},
		{false, user.PasswordEntry(alice.String(), verifier(32), verifier(20))},
		{false, cluster.AssignEntry([]string{alice.String()}, 2)},
		{false, cluster.RebalanceEntry(10)},
		{false, cluster.SecretEntry("auth", []byte("sealed"))},
		{false, cluster.ServiceEntry(2, "presence", true)},
		{false, cluster.OverrideEntry(2, until, "maintenance")},
		{false, roster.SetEntry(alice, bob, "Bob", []string{"Friends"})},
		{false, roster.SubscriptionEntry(roster.Request{From: alice, To: bob, Type: roster.Subscribe, Payload: []byte("<presence/>")})},
		{false, roster.RemoveEntry(alice, bob)},
		{false, blocking.AddEntry(alice, []jid.JID{bob})},
		{false, blocking.RemoveEntry(alice, []jid.JID{bob})},
		{false, private.SetEntry(alice, "storage", "storage:bookmarks", []byte("<storage xmlns='storage:bookmarks'/>"))},
		{false, vcard.SetEntry(alice, []byte("<vCard xmlns='vcard-temp'/>"))},
		{false, token.VoidEntry(token.Void{User: alice.String(), Agent: agent, Before: token.DayOf(fsmtest.Start) + 1})},
		{true, cluster.GroupEntry(cluster.Group{Name: "east", Nodes: []uint32{2, 1}, HA: true})},
		{true, cluster.StartEntry(2, "muster 0.1", 2)},
		{false, cluster.ServiceFailoverEntry(1, "client-connections: failed")},
		{false, cluster.FallbackStepEntry(1, 128, cluster.Automatic)},
		{false, cluster.BalanceEntry(true)},
		{false, archive.SetEntry(alice, archive.Prefs{Default: archive.Roster, Always: []string{bob.String()}, Never: []string{"carol@example.org/phone"}})},
		{false, cluster.PublisherEntry(2)},
		{false, cluster.DownEntry(1, 5)},
		{false, cluster.RemoveEntry(1)},
		{false, user.DeleteEntry(bob.String())},
	}
}

func goldenFile(k log.Kind) string { return filepath.Join(goldenDir, k.String()+".v1.bin") }

// stamp fills in the envelope that golden records carry.
func stamp(e *log.Entry) *log.Entry {
	e.Key, e.Node, e.Actor, e.Surface, e.Trace = "golden-"+e.Kind.String(), 1, "local:0", "cli", "trace"
	e.Time = fsmtest.Start
	return e
}

// TestGolden demands that the records which earlier releases wrote still
// decode and apply, and that today's constructors still write the same bytes.
func TestGolden(t *testing.T) {
	seen := map[log.Kind]bool{}
	replay(t, fsmtest.New(t, modules.Control()...), script(), seen)
	replay(t, fsmtest.NewMessage(t, modules.Message()...), messageScript(), seen)
	for _, k := range log.Kinds() {
		if !seen[k.Kind] {
			t.Errorf("kind %s has no golden record", k.Name)
		}
	}
}

// replay applies a script's golden records.
func replay(t *testing.T, r *fsmtest.Rig, lines []line, seen map[log.Kind]bool) {
	t.Helper()
	for _, l := range lines {
		record := fsmtest.Record(t, r.M.Applied()+1, stamp(l.entry))
		if l.helper {
			l.entry.Key = ""
			record = fsmtest.Record(t, r.M.Applied()+1, l.entry)
		} else {
			seen[l.entry.Kind] = true
			record = golden(t, l.entry.Kind, record)
		}
		for _, res := range r.M.Apply(r.M.Applied()+1, record) {
			if res.Err != nil {
				t.Fatalf("%v at index %d: %v", l.entry.Kind, res.Index, res.Err)
			}
		}
		if err := r.M.Halted(); err != nil {
			t.Fatal(err)
		}
	}
	r.Verify()
}

func golden(t *testing.T, k log.Kind, record []byte) []byte {
	t.Helper()
	want, err := os.ReadFile(goldenFile(k))
	if os.IsNotExist(err) && *update {
		if err := os.WriteFile(goldenFile(k), record, 0o644); err != nil {
			t.Fatal(err)
		}
		return record
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(record, want) {
		t.Errorf("%v is written differently now: a kind's encoding may only grow\n got %x\nwant %x", k, record, want)
	}
	return want
}

// TestEveryGoldenFileHasAKind finds golden files that nothing reads.
func TestEveryGoldenFileHasAKind(t *testing.T) {
	known := map[string]bool{}
	for _, k := range log.Kinds() {
		known[filepath.Base(goldenFile(k.Kind))] = true
	}
	files, err := filepath.Glob(filepath.Join(goldenDir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if !known[filepath.Base(f)] {
			t.Errorf("%s belongs to no kind", f)
		}
	}
}

func TestEveryKindHasAHandler(t *testing.T) {
	for name, mods := range map[log.Name][]fsm.Module{log.Control: modules.Control(), log.Message: modules.Message()} {
		have := map[log.Kind]bool{}
		for _, m := range mods {
			for k := range m.Handlers {
				have[k] = true
			}
		}
		for _, k := range log.Kinds() {
			if k.Log == name && !have[k.Kind] {
				t.Errorf("nobody handles %s", k.Name)
			}
		}
	}
}
