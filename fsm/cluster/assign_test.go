package cluster_test

import (
	"fmt"
	"testing"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
)

// town is a cluster of n started nodes that can have users.
func town(tb testing.TB, n int) *fsmtest.Rig {
	r := fsmtest.New(tb, cluster.Module(), config.Module(), user.Module())
	r.Must(cluster.InitEntry(cluster.Init{ID: "c-1", Version: 1, Node: member("n1")}), config.AddDomainEntry("x.org"))
	nodes(n)(r)
	return r
}

func populate(r *fsmtest.Rig, from, to int) {
	r.TB.Helper()
	for i := from; i < to; i++ {
		r.Must(user.CreateEntry(user.User{Name: name(i)}))
	}
}

func name(i int) string { return fmt.Sprintf("u%03d@x.org", i) }

// where renders "home/backup" of a user.
func where(r *fsmtest.Rig, u string) string {
	a, ok := cluster.AssignmentOf(r.M, u)
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%d/%d", a.Home, a.Backup)
}

func counts(r *fsmtest.Rig) string { return fmt.Sprint(cluster.Counts(r.M)) }

func TestBalancedOverNodes(t *testing.T) {
	for n, want := range map[int]string{1: "map[1:12]", 2: "map[1:6 2:6]", 3: "map[1:4 2:4 3:4]", 4: "map[1:3 2:3 3:3 4:3]"} {
		t.Run(fmt.Sprint(n, " nodes"), func(t *testing.T) {
			r := town(t, n)
			populate(r, 0, 12)
			if got := counts(r); got != want {
				t.Errorf("counts %s, want %s", got, want)
			}
			r.Verify()
		})
	}
}

func TestBackups(t *testing.T) {
	r := town(t, 1)
	populate(r, 0, 1)
	if got := where(r, name(0)); got != "1/0" {
		t.Errorf("one node: %s", got)
	}
	join(r, "n2")
	if got := where(r, name(0)); got != "1/2" {
		t.Errorf("the second node becomes the backup: %s", got)
	}
	join(r, "n3")
	populate(r, 1, 6)
	borrowed := map[string]int{}
	for i := range 6 {
		a, _ := cluster.AssignmentOf(r.M, name(i))
		switch a.Home {
		case 1, 2:
			if a.Backup != 3-a.Home {
				t.Errorf("%s: %s, want the other node of the pair", name(i), where(r, name(i)))
			}
		case 3:
			borrowed[fmt.Sprint(a.Backup)]++
		}
	}
	if len(borrowed) != 2 || borrowed["1"] != 1 || borrowed["2"] != 1 {
		t.Errorf("borrowed backups are not spread: %v", borrowed)
	}
	join(r, "n4")
	for i := range 6 {
		if a, _ := cluster.AssignmentOf(r.M, name(i)); a.Home == 3 && a.Backup != 4 {
			t.Errorf("%s keeps a borrowed backup: %s", name(i), where(r, name(i)))
		}
	}
	r.Verify()
}

func TestRemovedNodesUsersMove(t *testing.T) {
	r := town(t, 3)
	populate(r, 0, 12)
	r.Must(cluster.RemoveEntry(2))
	for i := range 12 {
		a, ok := cluster.AssignmentOf(r.M, name(i))
		if !ok || a.Home == 2 || a.Backup == 2 || a.Backup == 0 || a.Home == a.Backup {
			t.Errorf("%s: %s", name(i), where(r, name(i)))
		}
	}
	if got := counts(r); got != "map[1:8 3:4]" {
		t.Errorf("the backup takes over: %s", got)
	}
	r.Must(cluster.RemoveEntry(3))
	if got := counts(r); got != "map[1:12]" || where(r, name(0)) != "1/0" {
		t.Errorf("one node is left: %s, %s", got, where(r, name(0)))
	}
	r.Verify()
}

func TestEffectiveHome(t *testing.T) {
	r := town(t, 2)
	populate(r, 0, 1)
	u := name(0)
	epoch := uint64(0)
	check := func(want string) {
		t.Helper()
		h, ok := cluster.EffectiveHome(r.M, u)
		if got := fmt.Sprintf("%d/%d %v", h.Node, h.Backup, ok); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if ok && h.Epoch <= epoch {
			t.Errorf("epoch %d after %d", h.Epoch, epoch)
		}
		epoch = max(epoch, h.Epoch)
	}
	check("1/2 true")
	inc := func(id uint32) uint64 { n, _ := cluster.NodeByID(r.M, id); return n.Incarnation }
	r.Must(cluster.DownEntry(1, inc(1)))
	check("2/1 true")
	r.Must(cluster.DownEntry(2, inc(2)))
	check("0/0 false")
	start(r, 1)
	check("1/2 true")
	r.Must(cluster.AssignEntry([]string{u}, 2))
	start(r, 2)
	check("1/2 true") // failed over until it falls back
	r.Must(cluster.FallbackStepEntry(2, 0, cluster.Automatic))
	check("2/1 true")
	r.Must(user.DeleteEntry(u))
	check("0/0 false")
}

func TestResolve(t *testing.T) {
	up := func(id uint32, rev uint64) cluster.Node { return cluster.Node{ID: id, Up: true, Revision: rev} }
	down := func(id uint32, rev uint64) cluster.Node { return cluster.Node{ID: id, Revision: rev} }
	away := func(id uint32, rev uint64, slots int, back ...uint32) cluster.Node {
		return cluster.Node{ID: id, Up: true, Revision: rev, Failover: &cluster.Failover{Away: slots, Back: back}}
	}
	tests := []struct {
		name  string
		a     cluster.Assignment
		nodes []cluster.Node
		want  cluster.Home
		ok    bool
	}{
		{"both up", cluster.Assignment{Home: 1, Backup: 2, Revision: 9}, []cluster.Node{up(1, 3), up(2, 4)}, cluster.Home{Node: 1, Backup: 2, Epoch: 9}, true},
		{"home down", cluster.Assignment{Home: 1, Backup: 2, Revision: 2}, []cluster.Node{down(1, 30), up(2, 4)}, cluster.Home{Node: 2, Backup: 1, Epoch: 30}, true},
		{"backup changed", cluster.Assignment{Home: 1, Backup: 2, Revision: 2}, []cluster.Node{up(1, 3), down(2, 40)}, cluster.Home{Node: 1, Backup: 2, Epoch: 40}, true},
		{"both down", cluster.Assignment{Home: 1, Backup: 2}, []cluster.Node{down(1, 3), down(2, 4)}, cluster.Home{}, false},
		{"home gone", cluster.Assignment{Home: 1, Backup: 2, Revision: 5}, []cluster.Node{up(2, 4)}, cluster.Home{Node: 2, Backup: 1, Epoch: 5}, true},
		{"no backup", cluster.Assignment{Home: 1, Revision: 5}, []cluster.Node{up(1, 4)}, cluster.Home{Node: 1, Epoch: 5}, true},
		{"away", cluster.Assignment{Home: 1, Backup: 2, Slot: 9}, []cluster.Node{away(1, 7, 10), up(2, 4)}, cluster.Home{Node: 2, Backup: 1, Epoch: 7}, true},
		{"home by the last step", cluster.Assignment{Home: 1, Backup: 2, Slot: 10}, []cluster.Node{away(1, 7, 10), up(2, 4)}, cluster.Home{Node: 1, Backup: 2, Epoch: 7}, true},
		{"the highest slot is away", cluster.Assignment{Home: 1, Backup: 2, Slot: 255}, []cluster.Node{away(1, 7, cluster.Slots), up(2, 4)}, cluster.Home{Node: 2, Backup: 1, Epoch: 7}, true},
		{"away, backup down", cluster.Assignment{Home: 1, Backup: 2, Slot: 9}, []cluster.Node{away(1, 7, 10), down(2, 8)}, cluster.Home{Node: 1, Backup: 2, Epoch: 8}, true},
		{"away, backup gone", cluster.Assignment{Home: 1, Backup: 3, Slot: 9}, []cluster.Node{away(1, 7, 10)}, cluster.Home{Node: 1, Backup: 3, Epoch: 7}, true},
		{"away, no backup", cluster.Assignment{Home: 1, Slot: 9}, []cluster.Node{away(1, 7, 10)}, cluster.Home{Node: 1, Epoch: 7}, true},
		{"away, backup was down", cluster.Assignment{Home: 1, Backup: 2, Slot: 9}, []cluster.Node{away(1, 7, 10, 2), up(2, 8)}, cluster.Home{Node: 1, Backup: 2, Epoch: 8}, true},
		{"away, another backup was down", cluster.Assignment{Home: 1, Backup: 2, Slot: 9}, []cluster.Node{away(1, 7, 10, 3), up(2, 4)}, cluster.Home{Node: 2, Backup: 1, Epoch: 7}, true},
		{"the backup is away itself", cluster.Assignment{Home: 1, Backup: 2, Slot: 9}, []cluster.Node{down(1, 7), away(2, 4, cluster.Slots)}, cluster.Home{Node: 2, Backup: 1, Epoch: 7}, true},
		{"unassigned", cluster.Assignment{}, []cluster.Node{up(1, 4)}, cluster.Home{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := cluster.Resolve(tt.a, func(id uint32) (cluster.Node, bool) {
				for _, n := range tt.nodes {
					if n.ID == id {
						return n, true
					}
				}
				return cluster.Node{}, false
			})
			if got != tt.want || ok != tt.ok {
				t.Errorf("got %+v %v, want %+v %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestModes(t *testing.T) {
	r := town(t, 4)
	r.Refused(cluster.ModeEntry("random"), fault.NotAcceptable)
	r.Must(cluster.ModeEntry(cluster.Manual))
	populate(r, 0, 2)
	if counts(r) != "map[0:2 1:0 2:0 3:0 4:0]" || where(r, name(0)) != "-" {
		t.Errorf("manual: %s", counts(r))
	}
	r.Must(cluster.AssignEntry([]string{name(0), name(1)}, 4))
	if where(r, name(0)) != "4/3" || where(r, name(1)) != "4/3" {
		t.Errorf("assigned by hand: %s", where(r, name(0)))
	}
	r.Must(cluster.UnassignEntry([]string{name(1)}))
	if where(r, name(1)) != "-" {
		t.Errorf("unassigned: %s", where(r, name(1)))
	}
	r.Must(cluster.AssignEntry([]string{name(1)}, 0))
	if where(r, name(1)) != "1/2" {
		t.Errorf("assigned by the rule: %s", where(r, name(1)))
	}
	r.Must(cluster.ModeEntry(cluster.ActiveStandby))
	populate(r, 2, 8)
	if got := counts(r); got != "map[1:4 2:0 3:3 4:1]" {
		t.Errorf("active-standby: %s", got)
	}
	r.Must(cluster.RebalanceEntry(100))
	if got := counts(r); got != "map[1:4 2:0 3:4 4:0]" {
		t.Errorf("the standby keeps users: %s", got)
	}
	r.Verify()
}

func TestAssignRefused(t *testing.T) {
	r := town(t, 2)
	populate(r, 0, 1)
	r.Refused(cluster.AssignEntry([]string{name(0), "nobody@x.org"}, 2), fault.NotFound)
	r.Refused(cluster.AssignEntry([]string{name(0)}, 9), fault.NotFound)
	r.Refused(cluster.AssignEntry(nil, 1), fault.TooLarge)
	r.Refused(cluster.AssignEntry(make([]string, cluster.MaxAssign+1), 1), fault.TooLarge)
}

func TestRebalance(t *testing.T) {
	r := town(t, 1)
	populate(r, 0, 10)
	join(r, "n2")
	join(r, "n3")
	r.Refused(cluster.RebalanceEntry(0), fault.BadRequest)
	if n := cluster.RebalanceResult(r.Must(cluster.RebalanceEntry(2)).Value); n != 2 || counts(r) != "map[1:8 2:1 3:1]" {
		t.Errorf("moved %d: %s", n, counts(r))
	}
	for moved := -1; moved != 0; {
		moved = cluster.RebalanceResult(r.Must(cluster.RebalanceEntry(3)).Value)
	}
	if got := counts(r); got != "map[1:4 2:3 3:3]" {
		t.Errorf("counts %s", got)
	}
	r.Verify()
}

// TestBalanceOrder: the order stands until a rebalancing finds nothing to move.
func TestBalanceOrder(t *testing.T) {
	r := town(t, 1)
	populate(r, 0, 10)
	join(r, "n2")
	if _, ok := cluster.BalanceOrdered(r.M); ok || cluster.Unbalanced(r.M) != 5 {
		t.Errorf("ordered %v, %d to move", ok, cluster.Unbalanced(r.M))
	}
	order := cluster.BalanceEntry(false)
	order.Actor = "local:7"
	first := r.Must(order).Index
	r.Must(cluster.BalanceEntry(false))
	want := cluster.Balance{Since: fsmtest.Start.Add(time.Duration(first) * time.Second), By: "local:7"}
	if b, ok := cluster.BalanceOrdered(r.M); !ok || b != want {
		t.Errorf("order %+v %v, want %+v", b, ok, want)
	}
	r.Must(cluster.RebalanceEntry(10))
	if _, ok := cluster.BalanceOrdered(r.M); !ok || cluster.Unbalanced(r.M) != 0 {
		t.Errorf("ordered %v, %d to move", ok, cluster.Unbalanced(r.M))
	}
	r.Must(cluster.RebalanceEntry(10))
	if _, ok := cluster.BalanceOrdered(r.M); ok {
		t.Error("the order stands though nothing is left to do")
	}
	r.Must(cluster.BalanceEntry(false), cluster.BalanceEntry(true), cluster.BalanceEntry(true))
	if _, ok := cluster.BalanceOrdered(r.M); ok {
		t.Error("the order cannot be called off")
	}
	r.Refused(cluster.RebalanceEntry(0), fault.BadRequest)
	fsmtest.New(t, cluster.Module()).Refused(cluster.BalanceEntry(false), fault.NotFound)
	r.Verify()
}

func TestGroups(t *testing.T) {
	r := town(t, 4)
	populate(r, 0, 8)
	r.Must(cluster.GroupEntry(cluster.Group{Name: "east", Nodes: []uint32{2, 3}, HA: true}))
	if got := fmt.Sprint(cluster.Groups(r.M)); got != "[{east [2 3] true} {group-1 [1] true} {group-2 [4] true}]" {
		t.Errorf("groups %s", got)
	}
	for i := range 8 {
		if a, _ := cluster.AssignmentOf(r.M, name(i)); a.Home == 2 && a.Backup != 3 || a.Home == 3 && a.Backup != 2 {
			t.Errorf("%s: %s", name(i), where(r, name(i)))
		}
	}
	if n, _ := cluster.NodeByID(r.M, 2); n.Group != "east" {
		t.Errorf("node 2 says %q", n.Group)
	}
	r.Must(cluster.GroupEntry(cluster.Group{Name: "east", Nodes: []uint32{3, 2}, HA: false}))
	for i := range 8 {
		if a, _ := cluster.AssignmentOf(r.M, name(i)); (a.Home == 2 || a.Home == 3) && a.Backup != 0 {
			t.Errorf("without availability there is no backup, %s: %s", name(i), where(r, name(i)))
		}
	}
	r.Refused(cluster.GroupEntry(cluster.Group{Name: "east", Nodes: []uint32{2}}), fault.Conflict)
	r.Refused(cluster.GroupEntry(cluster.Group{Name: "east", Nodes: []uint32{1, 2, 3}}), fault.NotAcceptable)
	r.Refused(cluster.GroupEntry(cluster.Group{Name: "west", Nodes: []uint32{1, 1}}), fault.NotAcceptable)
	r.Refused(cluster.GroupEntry(cluster.Group{Name: "west", Nodes: []uint32{7}}), fault.NotFound)
	r.Refused(cluster.GroupEntry(cluster.Group{Name: "we st"}), fault.BadRequest)
	r.Refused(cluster.GroupRemoveEntry("east"), fault.Conflict)
	r.Refused(cluster.GroupRemoveEntry("west"), fault.NotFound)
	for i := len(cluster.Groups(r.M)); i < cluster.MaxGroups; i++ {
		r.Must(cluster.GroupEntry(cluster.Group{Name: fmt.Sprint("empty", i)}))
	}
	r.Refused(cluster.GroupEntry(cluster.Group{Name: "more"}), fault.TooLarge)
	r.Must(cluster.GroupRemoveEntry("empty4"))
	r.Verify()
}

// TestRestoredStateGetsANewCluster gives a backup's state to a cluster of one node of another name.
func TestRestoredStateGetsANewCluster(t *testing.T) {
	r := town(t, 3)
	populate(r, 0, 6)
	r.Must(cluster.SecretEntry("auth", []byte("old key")), cluster.TokenEntry(cluster.HashToken([]byte("t")), fsmtest.Start.Add(time.Hour)))
	res := r.Must(cluster.InitEntry(cluster.Init{ID: "c-9", Name: "New", Version: 1, Node: member("other"), Replaces: "c-1"}))
	id := cluster.NodeIDResult(res.Value)
	info, _ := cluster.Get(r.M)
	if id != 4 || info.ID != "c-9" || info.Publisher != 4 || len(cluster.Nodes(r.M)) != 1 {
		t.Errorf("node %d, cluster %+v", id, info)
	}
	if got := counts(r); got != "map[4:6]" || where(r, name(3)) != "4/0" {
		t.Errorf("counts %s, %s", got, where(r, name(3)))
	}
	if _, ok := cluster.Secret(r.M, "auth"); ok {
		t.Error("a secret of the old cluster is still there")
	}
	if user.Count(r.M) != 6 {
		t.Errorf("%d users", user.Count(r.M))
	}
	r.Verify()
}

func TestDecodeAssignment(t *testing.T) {
	r := town(t, 2)
	populate(r, 0, 1)
	seen := func() (out []string) {
		for _, c := range r.Changes {
			if u, before, after, ok := cluster.DecodeAssignment(c); ok {
				out = append(out, fmt.Sprintf("%s %v %v", u, before != nil, after != nil))
			}
		}
		return out
	}
	if got := fmt.Sprint(seen()); got != "[u000@x.org false true]" {
		t.Errorf("created: %s", got)
	}
	r.Must(user.DeleteEntry(name(0)))
	if got := fmt.Sprint(seen()); got != "[u000@x.org true false]" {
		t.Errorf("deleted: %s", got)
	}
}

// TestAssignWithoutACluster creates users before there is a node: they are homeless and counted so.
func TestAssignWithoutACluster(t *testing.T) {
	var mods = []fsm.Module{cluster.Module(), config.Module(), user.Module()}
	r := fsmtest.New(t, mods...)
	r.Must(config.AddDomainEntry("x.org"))
	populate(r, 0, 2)
	if got := counts(r); got != "map[0:2]" {
		t.Errorf("counts %s", got)
	}
}
