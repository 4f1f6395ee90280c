package modules_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

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

var people = []jid.JID{alice, bob, jid.MustParse("carol@example.com"), jid.MustParse("dave@example.org"), jid.MustParse("romeo@montague.net")}

// gen draws an entry of any kind, sensible or not.
func gen(rt *rapid.T) *log.Entry {
	e := rapid.SampledFrom(generators).Draw(rt, "generator")(rt)
	if rapid.IntRange(0, 3).Draw(rt, "keyed") == 0 {
		e.Key = fmt.Sprint("key", rapid.IntRange(0, 5).Draw(rt, "key"))
	}
	if rapid.IntRange(0, 9).Draw(rt, "expecting") == 0 {
		e.Expect = uint64(rapid.IntRange(1, 50).Draw(rt, "expect"))
	}
	e.Time = fsmtest.Start.Add(time.Duration(rapid.IntRange(-100, 100).Draw(rt, "seconds")) * time.Second)
	return e
}

func who(rt *rapid.T) jid.JID     { return rapid.SampledFrom(people).Draw(rt, "who") }
func node(rt *rapid.T) uint32     { return uint32(rapid.IntRange(0, 8).Draw(rt, "node")) }
func yes(rt *rapid.T) bool        { return rapid.Bool().Draw(rt, "yes") }
func nodeName(rt *rapid.T) string { return fmt.Sprint("n", rapid.IntRange(1, 8).Draw(rt, "name")) }
func hash(rt *rapid.T) [32]byte {
	return cluster.HashToken([]byte{byte(rapid.IntRange(0, 2).Draw(rt, "token"))})
}
func domain(rt *rapid.T) string {
	return rapid.SampledFrom([]string{"example.com", "example.org", "Bad Domain"}).Draw(rt, "domain")
}

var generators = []func(*rapid.T) *log.Entry{
	func(rt *rapid.T) *log.Entry {
		return cluster.InitEntry(cluster.Init{ID: nodeName(rt), Replaces: rapid.SampledFrom([]string{"", "c-1", "n1"}).Draw(rt, "replaces"), Version: 1, Node: member("n1")})
	},
	func(rt *rapid.T) *log.Entry { return cluster.VersionEntry(log.ClusterVersion(node(rt) % 3)) },
	func(rt *rapid.T) *log.Entry { return cluster.TokenEntry(hash(rt), fsmtest.Start.Add(50*time.Second)) },
	func(rt *rapid.T) *log.Entry { return cluster.JoinEntry(hash(rt), member(nodeName(rt))) },
	func(rt *rapid.T) *log.Entry { return cluster.RemoveEntry(node(rt)) },
	func(rt *rapid.T) *log.Entry { return cluster.StartEntry(node(rt), "muster", 2) },
	func(rt *rapid.T) *log.Entry {
		return cluster.DownEntry(node(rt), uint64(rapid.IntRange(0, 40).Draw(rt, "inc")))
	},
	func(rt *rapid.T) *log.Entry {
		return cluster.UpdateEntry(node(rt), "", map[string]string{"client": "a:1"})
	},
	func(rt *rapid.T) *log.Entry { return cluster.PublisherEntry(node(rt)) },
	func(rt *rapid.T) *log.Entry {
		return cluster.GroupEntry(cluster.Group{Name: "group-" + nodeName(rt)[1:], Nodes: []uint32{node(rt), node(rt)}[:rapid.IntRange(0, 2).Draw(rt, "n")], HA: yes(rt)})
	},
	func(rt *rapid.T) *log.Entry { return cluster.GroupRemoveEntry("group-" + nodeName(rt)[1:]) },
	func(rt *rapid.T) *log.Entry {
		return cluster.ModeEntry(rapid.SampledFrom([]string{cluster.Balanced, cluster.Manual, cluster.ActiveStandby, "x"}).Draw(rt, "mode"))
	},
	func(rt *rapid.T) *log.Entry { return cluster.AssignEntry([]string{who(rt).String()}, node(rt)) },
	func(rt *rapid.T) *log.Entry { return cluster.UnassignEntry([]string{who(rt).String()}) },
	func(rt *rapid.T) *log.Entry { return cluster.RebalanceEntry(rapid.IntRange(0, 5).Draw(rt, "most")) },
	func(rt *rapid.T) *log.Entry {
		return cluster.SecretEntry(nodeName(rt), []byte("x")[:rapid.IntRange(0, 1).Draw(rt, "len")])
	},
	func(rt *rapid.T) *log.Entry { return cluster.ServiceEntry(node(rt), "s", yes(rt)) },
	func(rt *rapid.T) *log.Entry { return cluster.OverrideEntry(node(rt), fsmtest.Start, "why") },
	func(rt *rapid.T) *log.Entry { return cluster.FailoverEntry(node(rt)) },
	func(rt *rapid.T) *log.Entry { return cluster.ServiceFailoverEntry(node(rt), "why") },
	func(rt *rapid.T) *log.Entry { return cluster.FallbackEntry(node(rt)) },
	func(rt *rapid.T) *log.Entry {
		return cluster.FallbackStepEntry(node(rt), rapid.IntRange(0, cluster.Slots).Draw(rt, "away"), cluster.Cause(node(rt)))
	},
	func(rt *rapid.T) *log.Entry { return cluster.BalanceEntry(yes(rt)) },
	func(rt *rapid.T) *log.Entry { return config.AddDomainEntry(domain(rt)) },
	func(rt *rapid.T) *log.Entry { return config.RemoveDomainEntry(domain(rt)) },
	func(rt *rapid.T) *log.Entry {
		return config.SetEntry("roster.max_contacts", nodeName(rt)[1:], node(rt)%2)
	},
	func(rt *rapid.T) *log.Entry { return config.ResetEntry("roster.max_contacts", 0) },
	func(rt *rapid.T) *log.Entry { return user.CreateEntry(user.User{Name: who(rt).String(), IM: true}) },
	func(rt *rapid.T) *log.Entry {
		return user.CreateEntry(user.User{Name: who(rt).String(), SHA256: verifier(32)})
	},
	func(rt *rapid.T) *log.Entry { return user.UpdateEntry(who(rt).String(), user.Update{}) },
	func(rt *rapid.T) *log.Entry { return user.PasswordEntry(who(rt).String(), verifier(32), verifier(20)) },
	func(rt *rapid.T) *log.Entry { return user.DeleteEntry(who(rt).String()) },
	func(rt *rapid.T) *log.Entry { return roster.SetEntry(who(rt), who(rt), nodeName(rt), nil) },
	func(rt *rapid.T) *log.Entry { return roster.RemoveEntry(who(rt), who(rt)) },
	func(rt *rapid.T) *log.Entry {
		return roster.SubscriptionEntry(roster.Request{From: who(rt), To: who(rt), Type: roster.Type(rapid.IntRange(1, 4).Draw(rt, "type")), Payload: []byte("<p/>")})
	},
	func(rt *rapid.T) *log.Entry { return blocking.AddEntry(who(rt), []jid.JID{who(rt), who(rt)}) },
	func(rt *rapid.T) *log.Entry { return blocking.RemoveEntry(who(rt), []jid.JID{who(rt)}) },
	func(rt *rapid.T) *log.Entry {
		return private.SetEntry(who(rt), "a", nodeName(rt), []byte("<x/>")[:node(rt)%5])
	},
	func(rt *rapid.T) *log.Entry {
		return token.VoidEntry(token.Void{User: who(rt).String(), Agent: token.Agent{byte(node(rt))}, Before: token.DayOf(fsmtest.Start) + node(rt)*8})
	},
	func(rt *rapid.T) *log.Entry {
		im := yes(rt)
		return user.UpdateEntry(who(rt).String(), user.Update{IM: &im})
	},
	func(rt *rapid.T) *log.Entry {
		return archive.SetEntry(who(rt), archive.Prefs{Default: archive.Policy(node(rt) % 5), Always: []string{who(rt).String()}, Never: []string{nodeName(rt)}})
	},
	func(rt *rapid.T) *log.Entry { return vcard.SetEntry(who(rt), []byte("<v/>")[:node(rt)%5]) },
}

// TestSameLogSameState applies random records to two machines. One is
// snapshotted and restored midway, and gets some records twice.
func TestSameLogSameState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := fsmtest.New(t, modules.Control()...), fsmtest.New(t, modules.Control()...)
		prepare := [][]*log.Entry{
			{cluster.InitEntry(cluster.Init{ID: "c-1", Version: 1, Node: member("n1")}), cluster.StartEntry(1, "muster", 2)},
			{config.AddDomainEntry("example.com"), user.CreateEntry(user.User{Name: alice.String()}), user.CreateEntry(user.User{Name: bob.String()})},
		}
		steps := rapid.IntRange(1, 60).Draw(rt, "records")
		restart := rapid.IntRange(1, steps).Draw(rt, "restart")
		for i := 1; i <= steps; i++ {
			entries := []*log.Entry{gen(rt), gen(rt), gen(rt)}[:rapid.IntRange(1, 3).Draw(rt, "batch")]
			if i <= len(prepare) {
				entries = prepare[i-1]
			}
			record := fsmtest.Record(t, uint64(i), entries...)
			ra, rb := a.M.Apply(uint64(i), record), b.M.Apply(uint64(i), record)
			if show(ra) != show(rb) {
				rt.Fatalf("results differ:\n%s\n%s", show(ra), show(rb))
			}
			if again := b.M.Apply(uint64(i), record); again != nil {
				rt.Fatalf("record %d was applied twice", i)
			}
			if i == restart {
				b = fsmtest.Over(t, b.Store.Copy(), modules.Control()...)
			}
			checkMachine(rt, a)
		}
		if !reflect.DeepEqual(a.Store.Rows(), b.Store.Rows()) {
			rt.Fatal("the stores differ")
		}
		a.Verify()
		b.Verify()
	})
}

func show(results []fsm.Result) string {
	var out string
	for _, r := range results {
		out += fmt.Sprintf("%d %x %v\n", r.Index, r.Value, r.Err)
	}
	return out
}

// checkMachine holds the invariants that must survive any sequence of entries.
func checkMachine(rt *rapid.T, r *fsmtest.Rig) {
	info, ok := cluster.Get(r.M)
	if !ok {
		return
	}
	if _, ok := cluster.NodeByID(r.M, info.Publisher); !ok {
		rt.Fatalf("the publisher %d is not a member", info.Publisher)
	}
	inGroup := map[uint32]string{}
	for _, g := range cluster.Groups(r.M) {
		if len(g.Nodes) > cluster.MaxGroup {
			rt.Fatalf("group %+v is too large", g)
		}
		for _, id := range g.Nodes {
			if inGroup[id] != "" {
				rt.Fatalf("node %d is in two groups", id)
			}
			inGroup[id] = g.Name
		}
	}
	nodes := cluster.Nodes(r.M)
	for _, n := range nodes {
		if n.Group == "" || inGroup[n.ID] != n.Group {
			rt.Fatalf("node %d says group %q, the groups say %q", n.ID, n.Group, inGroup[n.ID])
		}
	}
	if len(inGroup) != len(nodes) || len(nodes) > cluster.MaxNodes {
		rt.Fatalf("%d nodes, %d in groups", len(nodes), len(inGroup))
	}
	checkUsers(rt, r)
}

func checkUsers(rt *rapid.T, r *fsmtest.Rig) {
	homes, backups, users := map[uint32]int{}, map[uint32]int{}, 0
	user.Scan(r.M, "", "", func(u user.User) bool {
		users++
		a, _ := cluster.AssignmentOf(r.M, u.Name)
		homes[a.Home]++
		if a.Backup != 0 {
			backups[a.Backup]++
			if _, ok := cluster.NodeByID(r.M, a.Backup); !ok || a.Backup == a.Home {
				rt.Fatalf("%s has backup %d and home %d", u.Name, a.Backup, a.Home)
			}
		}
		if _, ok := cluster.NodeByID(r.M, a.Home); !ok && a.Home != 0 {
			rt.Fatalf("%s is at home on %d, which is no member", u.Name, a.Home)
		}
		return true
	})
	if users != user.Count(r.M) {
		rt.Fatalf("%d users, the count says %d", users, user.Count(r.M))
	}
	for id, n := range cluster.Counts(r.M) {
		if homes[id] != n {
			rt.Fatalf("node %d has %d users, the count says %d", id, homes[id], n)
		}
		found := 0
		cluster.BackupOf(r.M, id, func(string) bool { found++; return true })
		if found != backups[id] {
			rt.Fatalf("node %d is the backup of %d, the index says %d", id, backups[id], found)
		}
	}
}

// FuzzBodies feeds any bytes as the body of every kind: they are accepted or
// rejected, never a panic or a halt, and the digests stay true.
func FuzzBodies(f *testing.F) {
	for _, l := range append(script(), messageScript()...) {
		f.Add(uint16(l.entry.Kind), l.entry.Body)
	}
	f.Add(uint16(log.UserCreate), protowire.AppendVarint(nil, 1<<40))
	f.Fuzz(func(t *testing.T, kind uint16, body []byte) {
		info, ok := log.Kind(kind).Info()
		if !ok {
			return
		}
		if info.Log == log.Message {
			r := fsmtest.NewMessage(t, modules.Message()...)
			for _, l := range messageScript()[:4] {
				r.Apply(l.entry)
			}
			r.Apply(&log.Entry{Kind: log.Kind(kind), Body: body})
			r.Verify()
			return
		}
		r := fsmtest.New(t, modules.Control()...)
		for _, l := range script()[:26] {
			r.Apply(l.entry)
		}
		r.Apply(&log.Entry{Kind: log.Kind(kind), Body: body})
		r.Verify()
	})
}
