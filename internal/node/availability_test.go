package node

import (
	"fmt"
	"testing"
	"time"

	"muster/internal/node/operate"
	"muster/monitor"
	"muster/replication"
)

// TestServicesWord follows what nodes say of their services, with this node's clock.
func TestServicesWord(t *testing.T) {
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	good := replication.NodeHealth{Node: 1, Reachable: true}
	bad, worse := good, good
	bad.Service, worse.Service = "a is STARTING", "a is STOPPED"
	silent := replication.NodeHealth{Node: 1}
	for _, tt := range []struct {
		name  string
		polls []replication.NodeHealth // two seconds apart
		after int                      // seconds after the last poll
		want  operate.NodeLiveness
	}{
		{"never asked", nil, 0, operate.NodeLiveness{}},
		{"never answered", []replication.NodeHealth{silent, silent}, 0, operate.NodeLiveness{}},
		{"well", []replication.NodeHealth{good, good}, 0, operate.NodeLiveness{GoodSince: at(0)}},
		{"not well", []replication.NodeHealth{good, bad, worse}, 0, operate.NodeLiveness{Bad: "a is STOPPED", BadSince: at(2)}},
		{"well again", []replication.NodeHealth{bad, bad, good, good}, 0, operate.NodeLiveness{GoodSince: at(4)}},
		{"not answering", []replication.NodeHealth{bad, silent, silent}, 0, operate.NodeLiveness{Bad: "a is STARTING", BadSince: at(0)}},
		{"not answering for long", []replication.NodeHealth{bad, silent, silent, silent, silent, silent}, 0, operate.NodeLiveness{}},
		{"heard again after long", []replication.NodeHealth{good, silent, silent, silent, silent, silent, good}, 0, operate.NodeLiveness{GoodSince: at(12)}},
		{"outdated", []replication.NodeHealth{good}, 9, operate.NodeLiveness{}},
		{"no member any more", []replication.NodeHealth{good, {Node: 2, Reachable: true}}, 0, operate.NodeLiveness{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s services
			for i, h := range tt.polls {
				s.note(at(2*i), []replication.NodeHealth{h})
			}
			if got := s.get(at(2*len(tt.polls)-2+tt.after), 1); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestKeptAlarms: those of a prefix are raised, updated and cleared; all others stay.
func TestKeptAlarms(t *testing.T) {
	n := &Node{alarms: monitor.NewAlarms(quiet())}
	n.alarms.Raise(monitor.Alarm{Name: "certificate"})
	want := func(what, names string) {
		t.Helper()
		var got []string
		for _, a := range n.alarms.Active() {
			got = append(got, a.Name+" "+a.Reason)
		}
		if fmt.Sprint(got) != names {
			t.Errorf("%s: got %v, want %s", what, got, names)
		}
	}
	n.keepAlarms("x/", map[string]monitor.Alarm{"n1": {Reason: "1"}, "n2": {Reason: "2"}})
	want("raised", "[certificate  x/n1 1 x/n2 2]")
	n.keepAlarms("x/", map[string]monitor.Alarm{"n2": {Reason: "3"}})
	want("one is over", "[certificate  x/n2 3]")
	n.keepAlarms("y/", nil)
	want("another prefix", "[certificate  x/n2 3]")
	n.keepAlarms("x/", nil)
	want("over", "[certificate ]")
	if raised, cleared := n.alarms.Counts(); raised != 3 || cleared != 2 {
		t.Errorf("%d raised, %d cleared", raised, cleared)
	}
}
