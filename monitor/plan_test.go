package monitor

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// facts returns those of a healthy subscriber that booted a second ago, with one stopped service "clients", changed by edits.
func facts(edits ...func(*Facts)) Facts {
	f := Facts{
		Now: epoch.Add(time.Second), Booted: epoch, Oldest: 1, Newest: 2,
		Logs:    []LogFacts{{Name: "control", Applied: 100, Wanted: 100, CaughtUp: true}, {Name: "message", Applied: 900, Wanted: 900, CaughtUp: true}},
		Cluster: ClusterFacts{PublisherTimeout: 5 * time.Minute, Version: 1},
		Services: []ServiceFacts{{
			Name: "clients", Needs: FeatureGates(), State: Stopped, Since: epoch,
		}},
	}
	for _, edit := range edits {
		edit(&f)
	}
	return f
}

func after(d time.Duration) func(*Facts) { return func(f *Facts) { f.Now = epoch.Add(d) } }
func publisher(f *Facts)                 { f.Cluster.Publisher = true }
func behind(f *Facts)                    { f.Logs[0] = LogFacts{Name: "control", Applied: 40, Wanted: 100, Rate: 2} }
func noLeader(f *Facts)                  { f.Logs[0] = LogFacts{Name: "control", Applied: 40, Problem: "no leader"} }
func messagesBehind(f *Facts) {
	f.Logs[1] = LogFacts{Name: "message", Applied: 300, Wanted: 900, Rate: 60, Problem: "restoring"}
}
func syncing(f *Facts)                     { f.Sync = SyncFacts{Configured: true, Problem: "page 3"} }
func halted(f *Facts)                      { f.Logs[0].Halted = "kind 99 is not known here" }
func in(s State) func(*Facts)              { return func(f *Facts) { f.Services[0].State = s } }
func commanded(f *Facts)                   { f.Cluster.Stopped = map[string]string{"clients": "an administrator"} }
func version(v uint32) func(*Facts)        { return func(f *Facts) { f.Cluster.Version = v } }
func active(names ...string) func(*Facts)  { return func(f *Facts) { f.Active = names } }
func needs(g ...Gate) func(*Facts)         { return func(f *Facts) { f.Services[0].Needs = g } }
func nodes(list ...NodeFacts) func(*Facts) { return func(f *Facts) { f.Cluster.Nodes = list } }
func overridden(until time.Duration) func(*Facts) {
	return func(f *Facts) { f.Cluster.OverrideUntil, f.Cluster.OverrideBy = epoch.Add(until), "ann" }
}
func failedOnce(f *Facts) {
	f.Services[0].Failure, f.Services[0].RetryAt = "port in use", epoch.Add(4*time.Second)
}

// render writes actions as lines that a table can hold.
func render(actions []Action) string {
	var b strings.Builder
	for _, a := range actions {
		switch a.Kind {
		case ActRaise:
			fmt.Fprintf(&b, "raise %s: %s", a.Alarm.Name, a.Alarm.Reason)
			if a.Alarm.IndexWanted != 0 {
				fmt.Fprintf(&b, " [%d/%d %s]", a.Alarm.IndexNow, a.Alarm.IndexWanted, a.Alarm.Estimate)
			}
		case ActClear:
			fmt.Fprintf(&b, "clear %s", a.Alarm.Name)
		default:
			fmt.Fprintf(&b, "%s %s %s", a.Kind, a.Service, a.State)
			if a.Reason != "" {
				b.WriteString(": " + a.Reason)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

const (
	waitsLog  = "waits for the control log: at index 40 of 100"
	waitsSync = "waits for the sync agent's first complete synchronisation (page 3)"
)

func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		name  string
		facts Facts
		want  string
	}{
		{"caught up: starts", facts(), "start clients STARTING\n"},
		{"running and healthy: nothing", facts(in(Started)), ""},
		{"being started: nothing", facts(in(Starting)), ""},

		{"subscriber behind: waits, no alarm yet", facts(behind), "hold clients STARTING: " + waitsLog + "\n"},
		{"subscriber behind for long: alarm with estimate", facts(behind, after(DelayAlarm)),
			"hold clients STARTING: " + waitsLog + "\nraise services-waiting: clients: " + waitsLog + " [40/100 30s]\n"},
		{"subscriber's message log behind: named with its own figures", facts(messagesBehind, after(DelayAlarm)),
			"hold clients STARTING: waits for the message log: at index 300 of 900 (restoring)\n" +
				"raise services-waiting: clients: waits for the message log: at index 300 of 900 (restoring) [300/900 10s]\n"},
		{"both logs behind: the control log is named", facts(behind, messagesBehind), "hold clients STARTING: " + waitsLog + "\n"},
		{"halted message log stops a running service", facts(in(Started), func(f *Facts) { f.Logs[1].Halted = "kind 99" }),
			"stop clients STOPPING: the message log cannot be applied: kind 99\n" +
				"raise log-halted: upgrade this node: the message log cannot be applied: kind 99\n"},
		{"subscriber waits without limit", facts(behind, after(1000*time.Hour)),
			"hold clients STARTING: " + waitsLog + "\nraise services-waiting: clients: " + waitsLog + " [40/100 30s]\n"},
		{"subscriber without a leader: waits", facts(noLeader),
			"hold clients STARTING: waits for the control log: no leader was heard yet (no leader)\n"},
		{"subscriber never waits for the sync agent", facts(syncing), "start clients STARTING\n"},

		{"publisher waits for its log", facts(publisher, behind), "hold clients STARTING: " + waitsLog + "\n"},
		{"publisher waits for the sync agent", facts(publisher, syncing), "hold clients STARTING: " + waitsSync + "\n"},
		{"publisher without a sync agent starts", facts(publisher), "start clients STARTING\n"},
		{"publisher with a complete sync starts", facts(publisher, syncing, func(f *Facts) { f.Sync.Done = true }), "start clients STARTING\n"},
		{"publisher just before its timeout: waits", facts(publisher, syncing, after(5*time.Minute-1)),
			"hold clients STARTING: " + waitsSync + "\nraise services-waiting: clients: " + waitsSync + " [100/100 0s]\n"},
		{"publisher after its timeout: starts without sync", facts(publisher, syncing, after(5*time.Minute)),
			"start clients STARTING: started after the publisher's timeout although it " + waitsSync +
				"\nraise publisher-timeout: started after the publisher's timeout although it " + waitsSync + " [100/100 0s]\n"},
		{"publisher after its timeout: starts without its log", facts(publisher, behind, after(6*time.Minute)),
			"start clients STARTING: started after the publisher's timeout although it " + waitsLog +
				"\nraise publisher-timeout: started after the publisher's timeout although it " + waitsLog + " [40/100 0s]\n"},
		{"publisher recovers after its timeout: alarm cleared", facts(publisher, after(6*time.Minute), in(Started), active(AlarmTimeout)),
			"clear publisher-timeout\n"},
		{"timeout set shorter takes effect at once", facts(publisher, behind, after(2*time.Second), in(Started), func(f *Facts) { f.Cluster.PublisherTimeout = time.Second }),
			"raise publisher-timeout: started after the publisher's timeout although it " + waitsLog + " [40/100 0s]\n"},

		{"recovery clears the alarm", facts(after(time.Minute), active(AlarmWaiting)), "start clients STARTING\nclear services-waiting\n"},
		{"gate closing again leaves a running service alone", facts(behind, in(Started)), ""},

		{"override opens the gates", facts(behind, overridden(time.Minute)),
			"start clients STARTING: gates overridden by ann\nraise gates-overridden: gates are open by order of ann until 2026-03-01T12:01:00Z\n"},
		{"override has expired", facts(behind, overridden(time.Second), active(AlarmOverride)),
			"hold clients STARTING: " + waitsLog + "\nclear gates-overridden\n"},
		{"override does not open a halted log", facts(halted, overridden(time.Minute)),
			"hold clients STARTING: the control log cannot be applied: kind 99 is not known here\n" +
				"raise log-halted: upgrade this node: the control log cannot be applied: kind 99 is not known here\n" +
				"raise gates-overridden: gates are open by order of ann until 2026-03-01T12:01:00Z\n"},

		{"halted log stops a running service", facts(halted, in(Started)),
			"stop clients STOPPING: the control log cannot be applied: kind 99 is not known here\nraise log-halted: upgrade this node: the control log cannot be applied: kind 99 is not known here\n"},

		{"newer cluster version: waits hard", facts(version(3)),
			"hold clients STARTING: the cluster's version is 3 and this release runs 1 to 2: install the release that the other nodes run\n" +
				"raise version-unsupported: the cluster's version is 3 and this release runs 1 to 2: install the release that the other nodes run\n"},
		{"version raised beyond this release: stops", facts(version(3), in(Started)),
			"stop clients STOPPING: the cluster's version is 3 and this release runs 1 to 2: install the release that the other nodes run\n" +
				"raise version-unsupported: the cluster's version is 3 and this release runs 1 to 2: install the release that the other nodes run\n"},
		{"version raised within this release: runs", facts(version(2), in(Started)), ""},

		{"stopped by an administrator", facts(commanded), "hold clients STOPPED: Commanded Out of Service\n"},
		{"administrator stops a running service", facts(commanded, in(Started)), "stop clients STOPPING: Commanded Out of Service\n"},
		{"administrator stops a starting service", facts(commanded, in(Starting)), "stop clients STOPPING: Commanded Out of Service\n"},
		{"a commanded stop is no alarm", facts(commanded, after(time.Hour)), "hold clients STOPPED: Commanded Out of Service\n"},

		{"failed: waits for the retry", facts(failedOnce),
			"raise service-failed/clients: port in use\nhold clients STARTING: failed: port in use; next attempt in 3s\n"},
		{"failed: tries again in time", facts(failedOnce, after(4*time.Second)),
			"raise service-failed/clients: port in use\nstart clients STARTING\n"},
		{"started after a failure: alarm cleared", facts(in(Started), active("service-failed/clients")), "clear service-failed/clients\n"},
		{"ended by itself", facts(in(Started), func(f *Facts) { f.Services[0].Ended = "listener closed" }),
			"fail clients STOPPING: it ended by itself: listener closed\n"},

		{"waits for a service", facts(needs(Running("router"))), "hold clients STARTING: waits for the service router\n"},
		{"a gate of a newer release stays closed", facts(needs("moon")), "hold clients STARTING: waits for a gate that this release does not know: moon\n"},

		{"nodes of two releases: installation incomplete", facts(in(Started), after(time.Minute), nodes(NodeFacts{"a", "1.0", true}, NodeFacts{"b", "1.1", true})),
			"raise installation-incomplete: nodes run different releases (1.0 and 1.1): finish the upgrade\n"},
		{"a node behind: installation incomplete", facts(in(Started), after(time.Minute), nodes(NodeFacts{"a", "1.0", true}, NodeFacts{"b", "1.0", false})),
			"raise installation-incomplete: not caught up: b\n"},
		{"one release, all caught up: complete", facts(in(Started), after(time.Minute), nodes(NodeFacts{"a", "1.0", true}, NodeFacts{"b", "1.0", true}), active(AlarmIncomplete)),
			"clear installation-incomplete\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := render(Plan(tc.facts)); got != tc.want {
				t.Errorf("got\n%swant\n%s", got, tc.want)
			}
		})
	}
}

func TestPlanOrdersServices(t *testing.T) {
	f := facts()
	f.Services = []ServiceFacts{
		{Name: "router", Needs: []Gate{GateLog}, State: Stopped},
		{Name: "clients", Needs: []Gate{Running("router")}, State: Stopped},
	}
	if got, want := render(Plan(f)), "start router STARTING\nhold clients STARTING: waits for the service router\n"; got != want {
		t.Errorf("first look: got\n%swant\n%s", got, want)
	}
	f.Services[0].State = Started
	if got, want := render(Plan(f)), "start clients STARTING\n"; got != want {
		t.Errorf("second look: got\n%swant\n%s", got, want)
	}
	f.Services[1].State, f.Services[0].State = Started, Stopping
	if got, want := render(Plan(f)), "stop clients STOPPING: waits for the service router\n"; got != want {
		t.Errorf("the service below stopped: got\n%swant\n%s", got, want)
	}
}

func TestComplete(t *testing.T) {
	if ok, why := Complete([]NodeFacts{{"a", "1", true}, {"b", "", true}}); !ok {
		t.Errorf("a node whose release is not known yet makes it incomplete: %s", why)
	}
	if ok, why := Complete([]NodeFacts{{"a", "1", false}}); ok || !strings.Contains(why, "a") {
		t.Errorf("got %v %q", ok, why)
	}
}

func TestEstimate(t *testing.T) {
	for _, tc := range []struct {
		log  LogFacts
		want time.Duration
	}{
		{LogFacts{Applied: 10, Wanted: 110, Rate: 10}, 10 * time.Second},
		{LogFacts{Applied: 10, Wanted: 110}, 0},
		{LogFacts{Applied: 110, Wanted: 110, Rate: 10}, 0},
		{LogFacts{Applied: 120, Wanted: 110, Rate: 10}, 0},
	} {
		if got := estimate(tc.log); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.log, got, tc.want)
		}
	}
}
