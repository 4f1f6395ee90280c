package cluster_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"muster/fsm/cluster"
	"muster/fsm/fsmtest"
	"muster/internal/fault"
	"muster/log"
)

func member(name string) cluster.Member {
	return cluster.Member{Name: name, ClusterAddr: name + ":7300", Addrs: map[string]string{"client": name + ":5222"}, NewestVersion: 2}
}

func found(tb testing.TB, modules ...func(*fsmtest.Rig)) *fsmtest.Rig {
	r := fsmtest.New(tb, cluster.Module())
	res := r.Must(cluster.InitEntry(cluster.Init{ID: "c-1", Name: "Test", CACert: []byte("PEM"), Version: 1, Node: member("n1")}))
	if id := cluster.NodeIDResult(res.Value); id != 1 {
		tb.Fatalf("the first node got id %d", id)
	}
	for _, fn := range modules {
		fn(r)
	}
	return r
}

// join admits and starts a node and returns its id.
func join(r *fsmtest.Rig, name string) uint32 {
	r.TB.Helper()
	hash := cluster.HashToken([]byte(name + fmt.Sprint(r.M.Applied())))
	r.Must(cluster.TokenEntry(hash, fsmtest.Start.Add(time.Hour)))
	id := cluster.NodeIDResult(r.Must(cluster.JoinEntry(hash, member(name))).Value)
	start(r, id)
	return id
}

func start(r *fsmtest.Rig, id uint32) uint64 {
	r.TB.Helper()
	return cluster.IncarnationResult(r.Must(cluster.StartEntry(id, "muster 0.1", 2)).Value)
}

func nodes(n int) func(*fsmtest.Rig) {
	return func(r *fsmtest.Rig) {
		start(r, 1)
		for i := 2; i <= n; i++ {
			join(r, fmt.Sprint("n", i))
		}
	}
}

func TestInit(t *testing.T) {
	r := found(t)
	info, ok := cluster.Get(r.M)
	want := cluster.Info{ID: "c-1", Name: "Test", Publisher: 1, Version: 1, CACert: []byte("PEM"), Created: fsmtest.Start.Add(time.Second)}
	if !ok || !reflect.DeepEqual(info, want) {
		t.Errorf("got %+v, want %+v", info, want)
	}
	n, ok := cluster.NodeByName(r.M, "n1")
	if !ok || n.ID != 1 || n.Up || n.Group != "group-1" || n.Addrs["client"] != "n1:5222" || n.Incarnation != 0 {
		t.Errorf("node %+v", n)
	}
	if cluster.Mode(r.M) != cluster.Balanced {
		t.Errorf("mode %q", cluster.Mode(r.M))
	}
	r.Refused(cluster.InitEntry(cluster.Init{ID: "c-2", Version: 1, Node: member("n1")}), fault.Conflict)
	r.Refused(cluster.InitEntry(cluster.Init{ID: "c-2", Version: 1, Node: member("n1"), Replaces: "c-3"}), fault.Conflict)
}

func TestInitRefused(t *testing.T) {
	noAddr, manyAddrs := member("n1"), member("n1")
	noAddr.ClusterAddr = ""
	manyAddrs.Addrs = map[string]string{}
	for i := range 17 {
		manyAddrs.Addrs[fmt.Sprint(i)] = "a"
	}
	longAddr := member("n1")
	longAddr.Addrs = map[string]string{"client": strings.Repeat("a", 300)}
	tests := []struct {
		name string
		init cluster.Init
		code fault.Code
	}{
		{"nothing to replace", cluster.Init{ID: "c-1", Version: 1, Node: member("n1"), Replaces: "c-0"}, fault.NotFound},
		{"no id", cluster.Init{Version: 1, Node: member("n1")}, fault.BadRequest},
		{"bad node name", cluster.Init{ID: "c-1", Version: 1, Node: member("no spaces")}, fault.BadRequest},
		{"no address", cluster.Init{ID: "c-1", Version: 1, Node: noAddr}, fault.BadRequest},
		{"many addresses", cluster.Init{ID: "c-1", Version: 1, Node: manyAddrs}, fault.TooLarge},
		{"long address", cluster.Init{ID: "c-1", Version: 1, Node: longAddr}, fault.NotAcceptable},
		{"version of the future", cluster.Init{ID: "c-1", Version: 3, Node: member("n1")}, fault.NotAcceptable},
		{"long name", cluster.Init{ID: "c-1", Name: strings.Repeat("n", 129), Version: 1, Node: member("n1")}, fault.NotAcceptable},
		{"large certificate", cluster.Init{ID: "c-1", CACert: make([]byte, 65<<10), Version: 1, Node: member("n1")}, fault.TooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fsmtest.New(t, cluster.Module()).Refused(cluster.InitEntry(tt.init), tt.code)
		})
	}
}

func TestBeforeInitNothingWorks(t *testing.T) {
	r := fsmtest.New(t, cluster.Module())
	hash := cluster.HashToken([]byte("t"))
	r.Must(cluster.TokenEntry(hash, fsmtest.Start.Add(time.Hour)))
	for _, e := range []*log.Entry{
		cluster.VersionEntry(2), cluster.JoinEntry(hash, member("n1")), cluster.RemoveEntry(1), cluster.StartEntry(1, "m", 1),
		cluster.DownEntry(1, 1), cluster.UpdateEntry(1, "", nil), cluster.PublisherEntry(1), cluster.ModeEntry(cluster.Manual),
		cluster.AssignEntry([]string{"a@b.c"}, 0), cluster.ServiceEntry(1, "s", true), cluster.OverrideEntry(1, fsmtest.Start, ""),
		cluster.GroupRemoveEntry("g"),
	} {
		r.Refused(e, fault.NotFound)
	}
	if _, ok := cluster.Get(r.M); ok || cluster.Nodes(r.M) != nil {
		t.Error("there is a cluster")
	}
}

func TestTokens(t *testing.T) {
	r := found(t)
	hash := cluster.HashToken([]byte("secret"))
	r.Refused(cluster.JoinEntry(hash, member("n2")), fault.Unauthorized)
	r.Refused(cluster.TokenEntry(hash, fsmtest.Start), fault.BadRequest)
	r.Must(cluster.TokenEntry(hash, fsmtest.Start.Add(time.Minute)))
	late := cluster.JoinEntry(hash, member("n2"))
	r.Refused(cluster.JoinEntry(hash, member("n1")), fault.Conflict) // the token survives a refusal
	r.Must(cluster.JoinEntry(hash, member("n2")))
	r.Refused(cluster.JoinEntry(hash, member("n3")), fault.Unauthorized) // used up
	r.Must(cluster.TokenEntry(hash, fsmtest.Start.Add(time.Minute)))
	late.Time = fsmtest.Start.Add(time.Minute)
	r.Refused(late, fault.Unauthorized)

	other := func(i int) [32]byte { return cluster.HashToken([]byte{byte(i)}) }
	for i := range cluster.MaxTokens { // the expired one makes room
		r.Must(cluster.TokenEntry(other(i), fsmtest.Start.Add(time.Hour)))
	}
	r.Refused(cluster.TokenEntry(other(cluster.MaxTokens), fsmtest.Start.Add(time.Hour)), fault.TooLarge)
}

func TestJoin(t *testing.T) {
	r := found(t, nodes(3))
	if got := fmt.Sprint(cluster.Groups(r.M)); got != "[{group-1 [1 2] true} {group-2 [3] true}]" {
		t.Errorf("groups %s", got)
	}
	old := member("n4")
	old.NewestVersion = 0
	hash := cluster.HashToken([]byte("t"))
	r.Must(cluster.TokenEntry(hash, fsmtest.Start.Add(time.Hour)))
	r.Refused(cluster.JoinEntry(hash, old), fault.NotSupported)
	for i := 4; i <= cluster.MaxNodes; i++ {
		join(r, fmt.Sprint("n", i))
	}
	r.Refused(cluster.JoinEntry(hash, member("n7")), fault.TooLarge)
	r.Verify()
}

func TestRemovedNameComesBackWithANewID(t *testing.T) {
	r := found(t, nodes(3))
	r.Must(cluster.ServiceEntry(3, "presence", true), cluster.OverrideEntry(3, fsmtest.Start.Add(time.Hour), "x"))
	r.Must(cluster.RemoveEntry(3))
	if _, ok := cluster.NodeByID(r.M, 3); ok || cluster.StoppedServices(r.M, 3) != nil {
		t.Error("the node is still there")
	}
	if id := join(r, "n3"); id != 4 {
		t.Errorf("the node came back as %d", id)
	}
	if got := fmt.Sprint(cluster.Groups(r.M)); got != "[{group-1 [1 2] true} {group-2 [4] true}]" {
		t.Errorf("groups %s", got)
	}
	r.Refused(cluster.StartEntry(3, "m", 2), fault.NotFound)
	r.Refused(cluster.RemoveEntry(3), fault.NotFound)
}

func TestPublisherIsAlwaysAMember(t *testing.T) {
	r := found(t, nodes(2))
	r.Refused(cluster.RemoveEntry(1), fault.NotAllowed)
	r.Refused(cluster.PublisherEntry(9), fault.NotFound)
	r.Must(cluster.PublisherEntry(2), cluster.RemoveEntry(1))
	if info, _ := cluster.Get(r.M); info.Publisher != 2 {
		t.Errorf("publisher %d", info.Publisher)
	}
	r.Refused(cluster.RemoveEntry(2), fault.NotAllowed)
}

func TestStartAndDown(t *testing.T) {
	r := found(t)
	first := start(r, 1)
	n, _ := cluster.NodeByID(r.M, 1)
	if first != r.M.Applied() || !n.Up || n.Incarnation != first || n.Revision != first || n.Software != "muster 0.1" {
		t.Errorf("incarnation %d, node %+v", first, n)
	}
	since := n.Since
	second := start(r, 1)
	if n, _ = cluster.NodeByID(r.M, 1); second <= first || n.Since != since {
		t.Errorf("a restart: incarnation %d after %d, up since %v, before %v", second, first, n.Since, since)
	}
	r.Refused(cluster.DownEntry(1, first), fault.Stale)
	r.Must(cluster.DownEntry(1, second))
	if n, _ = cluster.NodeByID(r.M, 1); n.Up || n.Revision != r.M.Applied() || n.Since != fsmtest.Start.Add(time.Duration(r.M.Applied())*time.Second) {
		t.Errorf("after down: %+v", n)
	}
	revision := n.Revision
	r.Must(cluster.DownEntry(1, second))
	if n, _ = cluster.NodeByID(r.M, 1); n.Revision != revision {
		t.Error("down twice is a change")
	}
	res := r.Apply(cluster.StartEntry(1, "m", 2), cluster.StartEntry(1, "m", 2))
	if a, b := cluster.IncarnationResult(res[0].Value), cluster.IncarnationResult(res[1].Value); a >= b {
		t.Errorf("two starts in one record: %d, %d", a, b)
	}
	r.Refused(cluster.StartEntry(1, strings.Repeat("s", 300), 2), fault.BadRequest)
	r.Refused(cluster.StartEntry(1, "old", 0), fault.NotSupported)
}

func TestDecodeNode(t *testing.T) {
	r := found(t)
	start(r, 1)
	for _, c := range r.Changes {
		id, before, after, ok := cluster.DecodeNode(c)
		if ok && (id != 1 || before.Up || !after.Up) {
			t.Errorf("decoded %d %+v %+v", id, before, after)
		}
		if _, _, _, isAssignment := cluster.DecodeAssignment(c); ok == isAssignment {
			t.Errorf("change of %s: node %v, assignment %v", c.Table.Name(), ok, isAssignment)
		}
	}
}

func TestUpdate(t *testing.T) {
	r := found(t)
	r.Must(cluster.UpdateEntry(1, "", map[string]string{"https": "n1:443"}))
	n, _ := cluster.NodeByID(r.M, 1)
	if n.ClusterAddr != "n1:7300" || !reflect.DeepEqual(n.Addrs, map[string]string{"https": "n1:443"}) {
		t.Errorf("node %+v", n)
	}
	r.Must(cluster.UpdateEntry(1, "n1:7400", nil))
	if n, _ = cluster.NodeByID(r.M, 1); n.ClusterAddr != "n1:7400" || len(n.Addrs) != 0 {
		t.Errorf("node %+v", n)
	}
	r.Refused(cluster.UpdateEntry(1, strings.Repeat("a", 300), nil), fault.NotAcceptable)
	r.Refused(cluster.UpdateEntry(1, "", map[string]string{"x": strings.Repeat("a", 300)}), fault.NotAcceptable)
}

func TestVersion(t *testing.T) {
	r := found(t, nodes(2))
	r.Refused(cluster.VersionEntry(1), fault.Conflict)
	r.Refused(cluster.VersionEntry(3), fault.NotAcceptable)
	r.Must(cluster.VersionEntry(2))
	if info, _ := cluster.Get(r.M); info.Version != 2 || r.M.Version() != 2 {
		t.Errorf("version %d, machine %d", info.Version, r.M.Version())
	}
	r.Refused(cluster.StartEntry(2, "old", 1), fault.NotSupported)
	if again := fsmtest.Over(t, r.Store, cluster.Module()); again.M.Version() != 2 {
		t.Errorf("after a restart the version is %d", again.M.Version())
	}
}

func TestServicesSecretsOverrides(t *testing.T) {
	r := found(t)
	r.Must(cluster.ServiceEntry(1, "presence", true), cluster.ServiceEntry(1, "client", true), cluster.ServiceEntry(1, "presence", false))
	if got := cluster.StoppedServices(r.M, 1); !reflect.DeepEqual(got, []string{"client"}) {
		t.Errorf("stopped %v", got)
	}
	r.Refused(cluster.ServiceEntry(1, "Bad Name", true), fault.BadRequest)
	for i := 1; i < 64; i++ {
		r.Must(cluster.ServiceEntry(1, fmt.Sprint("s", i), true))
	}
	r.Refused(cluster.ServiceEntry(1, "s64", true), fault.TooLarge)

	r.Must(cluster.SecretEntry("auth", []byte("sealed")))
	if b, ok := cluster.Secret(r.M, "auth"); !ok || string(b) != "sealed" {
		t.Errorf("secret %q %v", b, ok)
	}
	r.Refused(cluster.SecretEntry("auth", make([]byte, cluster.MaxSecret+1)), fault.TooLarge)
	r.Refused(cluster.SecretEntry("", []byte("x")), fault.BadRequest)
	r.Must(cluster.SecretEntry("auth", nil))
	if _, ok := cluster.Secret(r.M, "auth"); ok {
		t.Error("the secret is still there")
	}

	until := fsmtest.Start.Add(time.Hour)
	r.Must(cluster.OverrideEntry(1, until, "disk replaced"))
	if o, ok := cluster.Override(r.M, 1); !ok || !o.Until.Equal(until) || o.Reason != "disk replaced" {
		t.Errorf("override %+v %v", o, ok)
	}
	r.Refused(cluster.OverrideEntry(1, until, strings.Repeat("r", 300)), fault.NotAcceptable)
	r.Must(cluster.OverrideEntry(1, fsmtest.Start, ""))
	if _, ok := cluster.Override(r.M, 1); ok {
		t.Error("the override is still there")
	}
}

func TestGarbageBodiesAreRejected(t *testing.T) {
	r := found(t)
	for kind := range cluster.Module().Handlers {
		r.Refused(&log.Entry{Kind: kind, Body: []byte{0xff}}, fault.BadRequest)
	}
	for _, b := range [][]byte{nil, {1}, make([]byte, 9)} {
		if cluster.NodeIDResult(b) != 0 || cluster.IncarnationResult(b) != 0 {
			t.Errorf("%x was taken for a result", b)
		}
	}
}
