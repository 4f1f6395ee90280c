package monitor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"muster/fsm/cluster"
)

var haNow = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// ago is a time before haNow.
func ago(seconds int) time.Time { return haNow.Add(-time.Duration(seconds) * time.Second) }

// pair is two nodes that are each other's backup, up for an hour, with all services.
func pair() HAFacts {
	f := HAFacts{Now: haNow, Observer: 1, SilentAfter: 3 * time.Second, ServiceDelay: 10 * time.Second, AutoFallback: true,
		FallbackDelay: time.Minute, FallbackRate: 500, Groups: []cluster.Group{{Name: "g", Nodes: []uint32{1, 2}, HA: true}}}
	for id := uint32(1); id <= 2; id++ {
		f.Nodes = append(f.Nodes, HANode{Node: cluster.Node{ID: id, Name: fmt.Sprint("n", id), Group: "g", Up: true, Incarnation: 5,
			Revision: uint64(id), Joined: ago(7200), Since: ago(3600)}, HA: true, Users: 1000, Reserves: []uint32{3 - id}, GoodSince: ago(3600)})
	}
	return f
}

// trio adds a third node, alone in its group: the others are its backups.
func trio() HAFacts {
	f := pair()
	n := f.Nodes[0]
	n.ID, n.Name, n.Group, n.Reserves = 3, "n3", "h", []uint32{1, 2}
	f.Nodes = append(f.Nodes, n)
	f.Groups = append(f.Groups, cluster.Group{Name: "h", Nodes: []uint32{3}, HA: true})
	return f
}

func away(cause cluster.Cause, slots int, seconds int) *cluster.Failover {
	return &cluster.Failover{Cause: cause, Away: slots, Since: ago(seconds), By: "node:2"}
}

func (n *HANode) goDown(cause cluster.Cause, seconds int) {
	n.Up, n.Since, n.GoodSince, n.Silent, n.Failover = false, ago(seconds), time.Time{}, time.Hour, away(cause, cluster.Slots, seconds)
}

func (n *HANode) goBad(seconds int) {
	n.Bad, n.BadSince, n.GoodSince = "client-connections is STARTING: failed", ago(seconds), time.Time{}
}

// show renders a node's state in one line.
func show(a NodeAvailability) string {
	return fmt.Sprintf("%s: %s, %s, %d s, %d %%|%s|%s", a.Node, a.State, a.Reason, int(haNow.Sub(a.Since).Seconds()), a.Home, a.Text, a.Next)
}

// haCases have the states and the orders of each situation.
var haCases = []struct {
	name   string
	facts  func() HAFacts
	change func(f *HAFacts, n1, n2 *HANode)
	states []string // of n1, n2, …; an empty one is not looked at
	groups string
	orders string
}{
	{"all is well", pair, func(*HAFacts, *HANode, *HANode) {}, []string{
		"n1: Normal, Normal, 3600 s, 100 %||", "n2: Normal, Normal, 3600 s, 100 %||"}, "g Normal true", ""},
	{"settled since the last failover", pair, func(_ *HAFacts, n1, _ *HANode) { n1.Settled, n1.SettledBy = ago(30), "node:2" }, []string{
		"n1: Normal, Normal, 30 s, 100 %||", ""}, "g Normal true", ""},
	{"never started", pair, func(_ *HAFacts, _, n2 *HANode) { n2.Up, n2.Incarnation, n2.Silent = false, 0, time.Hour }, []string{
		"n1: Normal, Normal, 3600 s, 100 %||", "n2: Initializing, Initialization, 7200 s, 100 %|it is a member and has never started|start musterd on n2"}, "g Initializing false", ""},
	{"silent", pair, func(_ *HAFacts, n1, n2 *HANode) { n2.Silent = 2 * time.Second }, []string{
		"n1: Taking Over, Peer Down, 2 s, 100 %|it is the backup of n2|it is declared down 3 s after it was last heard, then its users go to n1",
		"n2: Failing Over, Peer Down, 2 s, 100 %|nothing was heard from it for 2 s|it is declared down 3 s after it was last heard, then its users go to n1"}, "g Failing Over true", ""},
	{"down", pair, func(_ *HAFacts, _, n2 *HANode) { n2.goDown(cluster.PeerDown, 40) }, []string{
		"n1: Running in Backup Mode, Peer Down, 40 s, 100 %|it is the backup of n2|start musterd on n2",
		"n2: Failed Over with Critical Services Not Running, Peer Down, 40 s, 0 %|it is down; n1 serves its users|start musterd on n2"}, "g Failed Over with Critical Services Not Running false", ""},
	{"stopped in order", pair, func(_ *HAFacts, _, n2 *HANode) { n2.goDown(cluster.PeerShutdown, 40) }, []string{
		"n1: Running in Backup Mode, Peer Shutdown, 40 s, 100 %|it is the backup of n2|start musterd on n2", ""}, "g Failed Over with Critical Services Not Running false", ""},
	{"both down", pair, func(_ *HAFacts, n1, n2 *HANode) { n1.goDown(cluster.PeerDown, 9); n2.goDown(cluster.PeerDown, 40) }, []string{
		"n1: Down, Peer Down, 9 s, 0 %|nobody serves its users: n2 is down too|start musterd on n1 or n2",
		"n2: Down, Peer Down, 40 s, 0 %|nobody serves its users: n1 is down too|start musterd on n2 or n1"}, "g Down false", ""},
	{"down without high availability", pair, func(f *HAFacts, n1, n2 *HANode) {
		n2.goDown(cluster.PeerDown, 40)
		n2.Failover, n2.HA, n1.HA, n1.Reserves, n2.Reserves, f.Groups[0].HA = nil, false, false, nil, nil, false
	}, []string{"n1: Normal, Normal, 3600 s, 100 %||", "n2: Down, Peer Down, 40 s, 0 %|nobody serves its users: high availability is off for the group g|start musterd on n2"}, "g Down false", ""},
	{"the only node", func() HAFacts {
		f := pair()
		f.Nodes, f.Groups[0].Nodes = f.Nodes[:1], []uint32{1}
		f.Nodes[0].Reserves = nil
		return f
	}, func(*HAFacts, *HANode, *HANode) {}, []string{"n1: Normal, Normal, 3600 s, 100 %||"}, "g Normal false", ""},
	{"started again, waits", pair, func(_ *HAFacts, _, n2 *HANode) {
		n2.Failover, n2.Since, n2.GoodSince = away(cluster.PeerDown, cluster.Slots, 90), ago(20), ago(18)
	}, []string{
		"n1: Running in Backup Mode, Peer Down, 90 s, 100 %|it is the backup of n2|its users return in 42 s",
		"n2: Failed Over, Peer Down, 90 s, 0 %|n1 serves its users|its users return in 42 s"}, "g Failed Over true", ""},
	{"started again, has not spoken yet", pair, func(_ *HAFacts, _, n2 *HANode) {
		n2.Failover, n2.Since, n2.GoodSince = away(cluster.PeerDown, cluster.Slots, 90), ago(80), time.Time{}
	}, []string{"", "n2: Failed Over, Peer Down, 90 s, 0 %|n1 serves its users|its users return 60 s after it has said that its services run"}, "g Failed Over true", ""},
	{"has waited", pair, func(_ *HAFacts, _, n2 *HANode) {
		n2.Failover, n2.Since, n2.GoodSince = away(cluster.PeerDown, cluster.Slots, 200), ago(60), ago(60)
	}, []string{"", "n2: Failed Over, Peer Down, 200 s, 0 %|n1 serves its users|its users return in 0 s"}, "g Failed Over true", "n2 to 255, Automatic Fallback"},
	{"has waited, no automatic fallback", pair, func(f *HAFacts, _, n2 *HANode) {
		f.AutoFallback = false
		n2.Failover, n2.Since = away(cluster.PeerDown, cluster.Slots, 200), ago(60)
	}, []string{"", "n2: Failed Over, Peer Down, 200 s, 0 %|n1 serves its users|muster ha fallback n2 brings its users back (ha.auto_fallback is off)"}, "g Failed Over true", ""},
	{"falling back", pair, func(f *HAFacts, _, n2 *HANode) {
		n2.Failover = &cluster.Failover{Away: 128, Cause: cluster.PeerDown, Since: ago(300), Fallback: cluster.Automatic, FallbackSince: ago(4), FallbackBy: "node:1"}
		f.Stepped = map[uint32]time.Time{2: haNow.Add(-500 * time.Millisecond)}
	}, []string{
		"n1: Falling Back, Automatic Fallback, 4 s, 100 %|it is the backup of n2|the last one is at home in about 1 s",
		"n2: Taking Back, Automatic Fallback, 4 s, 50 %|50 % of its 1000 users are at home|the last one is at home in about 1 s"}, "g Taking Back true", "n2 to 64, Automatic Fallback"},
	{"falling back slowly", pair, func(f *HAFacts, _, n2 *HANode) {
		n2.Failover, n2.Users = &cluster.Failover{Away: 2, Cause: cluster.PeerDown, Fallback: cluster.Automatic, FallbackSince: ago(4)}, 100_000
		f.Stepped, f.FallbackRate = map[uint32]time.Time{2: ago(3)}, 100 // a slot in 3.9 s
	}, nil, "g Taking Back true", ""},
	{"falling back slowly, a slot is due", pair, func(f *HAFacts, _, n2 *HANode) {
		n2.Failover, n2.Users = &cluster.Failover{Away: 2, Cause: cluster.PeerDown, Fallback: cluster.Automatic, FallbackSince: ago(4)}, 100_000
		f.Stepped, f.FallbackRate = map[uint32]time.Time{2: ago(60)}, 100
	}, nil, "g Taking Back true", "n2 to 1, Automatic Fallback"},
	{"falling back after a pause of the leader", pair, func(f *HAFacts, _, n2 *HANode) {
		n2.Failover, n2.Users = &cluster.Failover{Away: 256, Cause: cluster.PeerDown, Fallback: cluster.Automatic, FallbackSince: ago(60)}, 25_600
		f.Stepped = map[uint32]time.Time{2: ago(60)}
	}, nil, "g Taking Back true", "n2 to 246, Automatic Fallback"},
	{"falling back under a new leader", pair, func(_ *HAFacts, _, n2 *HANode) {
		n2.Failover = &cluster.Failover{Away: 100, Cause: cluster.PeerDown, Fallback: cluster.OnRequest, FallbackSince: ago(9)}
	}, nil, "g Taking Back true", "n2 to 99, On Admin Request"},
	{"nobody to bring home", pair, func(_ *HAFacts, _, n2 *HANode) {
		n2.Failover, n2.Users = away(cluster.PeerDown, cluster.Slots, 200), 0
	}, nil, "g Failed Over true", "n2 to 0, Automatic Fallback"},
	{"a service fails while falling back", pair, func(_ *HAFacts, _, n2 *HANode) {
		n2.Failover = &cluster.Failover{Away: 128, Cause: cluster.PeerDown, Fallback: cluster.Automatic, FallbackSince: ago(4)}
		n2.goBad(4)
	}, []string{"", "n2: Taking Back, Automatic Fallback, 4 s, 50 %|50 % of its 1000 users are at home|no more come home while a critical service does not run: client-connections is STARTING: failed"}, "g Taking Back true", ""},
	{"and stays so", pair, func(_ *HAFacts, _, n2 *HANode) {
		n2.Failover = &cluster.Failover{Away: 128, Cause: cluster.PeerDown, Fallback: cluster.Automatic, FallbackSince: ago(4)}
		n2.goBad(10)
	}, nil, "g Taking Back true", "n2 fails over: client-connections is STARTING: failed"},
	{"by an administrator", pair, func(_ *HAFacts, n1, _ *HANode) { n1.Failover = away(cluster.OnRequest, cluster.Slots, 9000) }, []string{
		"n1: Idle, On Admin Request, 9000 s, 0 %|n2 serves its users|muster ha fallback n1 brings its users back",
		"n2: Running in Backup Mode, On Admin Request, 9000 s, 100 %|it is the backup of n1|muster ha fallback n1 brings its users back"}, "g Idle true", ""},
	{"by an administrator, and a service is down", pair, func(_ *HAFacts, n1, _ *HANode) {
		n1.Failover = away(cluster.OnRequest, cluster.Slots, 9000)
		n1.goBad(50)
	}, []string{"n1: Failed Over with Critical Services Not Running, On Admin Request, 9000 s, 0 %|n2 serves its users; client-connections is STARTING: failed|muster services list on n1, then muster ha fallback n1"}, "g Failed Over with Critical Services Not Running true", ""},
	{"services are being started", pair, func(_ *HAFacts, n1, _ *HANode) { n1.Since = ago(3); n1.goBad(2) }, []string{
		"n1: Initializing, Initialization, 2 s, 100 %|client-connections is STARTING: failed|its services are being started", "n2: Normal, Normal, 3600 s, 100 %||"}, "g Initializing true", ""},
	{"a critical service is down", pair, func(_ *HAFacts, n1, _ *HANode) { n1.goBad(4) }, []string{
		"n1: Failing Over, Critical Service Down, 4 s, 100 %|client-connections is STARTING: failed|its users go to n2 in 6 s",
		"n2: Taking Over, Critical Service Down, 4 s, 100 %|it is the backup of n1|its users go to n2 in 6 s"}, "g Failing Over true", ""},
	{"for long enough", pair, func(_ *HAFacts, n1, _ *HANode) { n1.goBad(10) }, nil, "g Failing Over true", "n1 fails over: client-connections is STARTING: failed"},
	{"and the node has failed over", pair, func(_ *HAFacts, n1, _ *HANode) {
		n1.goBad(40)
		n1.Failover = away(cluster.ServiceDown, cluster.Slots, 30)
	}, []string{"n1: Failed Over with Critical Services Not Running, Critical Service Down, 30 s, 0 %|n2 serves its users; client-connections is STARTING: failed|muster services list on n1 shows its services; its users return when those run"},
		"g Failed Over with Critical Services Not Running true", ""},
	{"and the service runs again", pair, func(_ *HAFacts, n1, _ *HANode) {
		n1.GoodSince, n1.Failover = ago(59), away(cluster.ServiceDown, cluster.Slots, 300)
	}, []string{"n1: Failed Over, Critical Service Down, 300 s, 0 %|n2 serves its users|its users return in 1 s"}, "g Failed Over true", ""},
	{"without high availability", pair, func(f *HAFacts, n1, n2 *HANode) {
		n1.goBad(10)
		n2.HA, n1.HA, n1.Reserves, n2.Reserves, f.Groups[0].HA = false, false, nil, nil, false
	}, []string{"n1: Initializing, Critical Service Down, 10 s, 100 %|client-connections is STARTING: failed|its users stay, for high availability is off: muster services list on n1"}, "g Initializing false", ""},
	{"and the backup is down", pair, func(_ *HAFacts, n1, n2 *HANode) { n1.goBad(10); n2.goDown(cluster.PeerDown, 40) }, []string{
		"n1: Initializing, Critical Service Down, 10 s, 100 %|client-connections is STARTING: failed|its users stay, for no backup can take them: muster services list on n1"}, "g Failed Over with Critical Services Not Running false", ""},
	{"on both nodes", pair, func(_ *HAFacts, n1, n2 *HANode) { n1.goBad(10); n2.goBad(20) }, nil, "g Initializing true", ""},
	{"on the backup in use: users return at once", pair, func(_ *HAFacts, n1, n2 *HANode) {
		n1.Failover = away(cluster.OnRequest, cluster.Slots, 30)
		n2.goBad(10)
	}, nil, "g Initializing true", "n1 to 0, Critical Service Down on Backup"},
	{"on the backup in use, and the home has not spoken", pair, func(_ *HAFacts, n1, n2 *HANode) {
		n1.Failover, n1.GoodSince = away(cluster.PeerDown, cluster.Slots, 30), time.Time{}
		n2.goBad(10)
	}, nil, "g Initializing true", ""},
	{"on a borrowed backup of two: the other one goes on", trio, func(f *HAFacts, n1, n2 *HANode) {
		f.Nodes[2].Failover = away(cluster.PeerDown, cluster.Slots, 30)
		f.Nodes[2].Since, f.Nodes[2].GoodSince = ago(20), ago(20)
		n1.goBad(10)
	}, []string{"", "", "n3: Failed Over, Peer Down, 30 s, 0 %|n1, n2 serve its users|its users return in 40 s"}, "g Failing Over true, h Failed Over true", "n1 fails over: client-connections is STARTING: failed"},
	{"on all borrowed backups in use", trio, func(f *HAFacts, n1, n2 *HANode) {
		f.Nodes[2].Failover = away(cluster.PeerDown, cluster.Slots, 30)
		f.Nodes[2].Failover.Back = []uint32{2}
		n1.goBad(10)
	}, []string{"", "n2: Taking Over, Critical Service Down, 10 s, 100 %|it is the backup of n1|its users go to n2 in 0 s", "n3: Failed Over, Peer Down, 30 s, 0 %|n1 serves its users|its users return in 0 s"},
		"g Failing Over true, h Failed Over true", "n1 fails over: client-connections is STARTING: failed; n3 to 0, Critical Service Down on Backup"},
	{"a node without a leader's word", pair, func(f *HAFacts, _, n2 *HANode) { f.Unheard, n2.Silent = "n1 hears no leader", 4*time.Second }, []string{
		"n1: Normal, Normal, 3600 s, 100 %||", "n2: Unknown, Unknown, 4 s, 100 %|n1 hears no leader, and nothing was heard from n2 for 4 s|the state is known when the leader is heard again; see muster status"}, "g Unknown true", ""},
}

func TestAvailability(t *testing.T) {
	for _, tt := range haCases {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.facts()
			tt.change(&f, &f.Nodes[0], &f.Nodes[len(f.Nodes)-1-(len(f.Nodes)-1)/2])
			nodes, groups := Availability(f)
			for i, want := range tt.states {
				if got := show(nodes[i]); want != "" && got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			}
			for _, n := range nodes {
				if n.State == HAUnknown && n.Text == "" || n.State != HANormal && n.Next == "" || n.Reason == "" || n.Since.IsZero() {
					t.Errorf("%+v does not tell the story", n)
				}
			}
			var shown []string
			for _, g := range groups {
				shown = append(shown, fmt.Sprintf("%s %s %v", g.Group, g.State, g.Protected))
				if !g.Protected && g.Text == "" {
					t.Errorf("%+v does not say why", g)
				}
			}
			if got := strings.Join(shown, ", "); got != tt.groups {
				t.Errorf("groups: got %s, want %s", got, tt.groups)
			}
		})
	}
}

func TestPlanHA(t *testing.T) {
	for _, tt := range haCases {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.facts()
			tt.change(&f, &f.Nodes[0], &f.Nodes[len(f.Nodes)-1-(len(f.Nodes)-1)/2])
			var got []string
			for _, o := range PlanHA(f) {
				if o.Failover {
					got = append(got, fmt.Sprintf("%s fails over: %s", o.Name, o.Detail))
				} else {
					got = append(got, fmt.Sprintf("%s to %d, %v", o.Name, o.Away, o.Cause))
				}
				if o.Revision == 0 || o.Node == 0 {
					t.Errorf("%+v names no state", o)
				}
			}
			if s := strings.Join(got, "; "); s != tt.orders {
				t.Errorf("got %q, want %q", s, tt.orders)
			}
		})
	}
}

// TestTheGoodNodeTakesItsUsersBack: both nodes of a pair would depend on one
// whose services are down, so the users of the good one go home first, and then those of the bad one follow.
func TestTheGoodNodeTakesItsUsersBack(t *testing.T) {
	f := pair()
	n1, n2 := &f.Nodes[0], &f.Nodes[1]
	n1.goBad(10) // it serves the users of n2, which has just started again
	n2.Failover, n2.Since, n2.GoodSince = away(cluster.PeerDown, cluster.Slots, 30), ago(5), ago(3)
	orders := PlanHA(f)
	if len(orders) != 1 || orders[0].Node != 2 || orders[0].Failover || orders[0].Away != 0 {
		t.Fatalf("orders %+v", orders)
	}
	n2.Failover = nil
	if orders = PlanHA(f); len(orders) != 1 || orders[0].Node != 1 || !orders[0].Failover {
		t.Errorf("orders %+v", orders)
	}
	n2.Failover = away(cluster.OnRequest, cluster.Slots, 30) // against an administrator's order nothing is crossed: users come home instead
	if orders = PlanHA(f); len(orders) != 1 || orders[0].Node != 2 || orders[0].Away != 0 {
		t.Errorf("orders %+v", orders)
	}
}

func TestCriticalDown(t *testing.T) {
	service := func(name string, s State, reason string) ServiceStatus {
		return ServiceStatus{Name: name, Health: Health{State: s, Reason: reason}}
	}
	for _, tt := range []struct {
		name   string
		report []ServiceStatus
		want   string
	}{
		{"none", nil, ""},
		{"all run", []ServiceStatus{service("a", Started, ""), service("b", Started, "slow")}, ""},
		{"stopped on purpose", []ServiceStatus{service("a", Stopped, ReasonCommanded)}, ""},
		{"stopped", []ServiceStatus{service("a", Started, ""), service("b", Stopped, ReasonNotRun)}, "b is STOPPED: NOTRUNNING"},
		{"waits", []ServiceStatus{service("a", Starting, "waits for the control log"), service("b", Stopped, "")}, "a is STARTING: waits for the control log"},
		{"without a reason", []ServiceStatus{service("a", Stopping, "")}, "a is STOPPING"},
	} {
		if got := CriticalDown(tt.report); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
