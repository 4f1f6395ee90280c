package monitor

import (
	"fmt"
	"strings"
	"time"
)

// LogFacts says how far one of the node's logs is.
type LogFacts struct {
	Name     string  // "control", "message"
	Applied  uint64  // index applied here
	Wanted   uint64  // index to reach, as the leader last told; 0: no leader was heard yet
	CaughtUp bool    // Applied has reached what the leader had committed when it was first heard
	Rate     float64 // entries applied per second, lately
	Halted   string  // why nothing can be applied any more; "" normally
	Problem  string  // what is known to hinder, "no leader"; may be empty
}

// SyncFacts says how far the sync agent is.
type SyncFacts struct {
	Configured bool // there is a sync agent
	Done       bool // its first synchronisation is complete
	Problem    string
}

// NodeFacts is what is known of one node of the cluster.
type NodeFacts struct {
	Name     string
	Release  string // software release; "" unknown
	CaughtUp bool
}

// ClusterFacts is what the replicated state says that concerns this node's services.
type ClusterFacts struct {
	Publisher        bool              // this node holds the publisher role
	PublisherTimeout time.Duration     // setting monitor.publisher_timeout
	Version          uint32            // the cluster's version
	Nodes            []NodeFacts       // every node, this one included
	Stopped          map[string]string // services that an administrator stopped on this node → by whom
	OverrideUntil    time.Time         // gates are forced open until then
	OverrideBy       string
}

// ServiceFacts is the Runner's own knowledge of one service.
type ServiceFacts struct {
	Name    string
	Needs   []Gate
	State   State     // as executed: STOPPED also while it waits
	Since   time.Time // when State began
	Failure string    // why the last attempt failed; "" if it did not
	RetryAt time.Time // not to be started before, after a failure
	Ended   string    // why a STARTED service says that it does not serve; "" if it does
}

// Facts is all that Plan decides on.
type Facts struct {
	Now      time.Time
	Booted   time.Time // when this process began to wait
	Oldest   uint32    // cluster versions that this binary can run
	Newest   uint32
	Logs     []LogFacts // at least one, the control log first
	Sync     SyncFacts
	Cluster  ClusterFacts
	Services []ServiceFacts // in start order
	Active   []string       // names of Plan's alarms that are active now
}

// ActionKind says what the Runner shall do.
type ActionKind string

// The actions.
const (
	ActStart ActionKind = "start" // start the service
	ActStop  ActionKind = "stop"  // stop the service, because of Reason
	ActFail  ActionKind = "fail"  // stop the service, which ended by itself; it is tried again after a delay
	ActHold  ActionKind = "hold"  // leave it as it is and show State and Reason
	ActRaise ActionKind = "raise" // raise or update Alarm
	ActClear ActionKind = "clear" // clear the alarm named Alarm.Name
)

// Action is one order of Plan.
type Action struct {
	Kind    ActionKind
	Service string
	State   State
	Reason  string
	Alarm   Alarm
}

// DelayAlarm is how long services may wait at a gate before that is an alarm.
const DelayAlarm = 10 * time.Second

// Alarms that Plan raises. The runner clears those it no longer wants.
const (
	AlarmWaiting    = "services-waiting"        // services wait at a gate for longer than DelayAlarm
	AlarmTimeout    = "publisher-timeout"       // the publisher started though a gate was closed
	AlarmHalted     = "log-halted"              // a log cannot be applied by this release
	AlarmVersion    = "version-unsupported"     // the cluster's version is outside what this release can run
	AlarmIncomplete = "installation-incomplete" // nodes differ in release, or one has not caught up
	AlarmOverride   = "gates-overridden"        // an administrator forced the gates open
	alarmFailed     = "service-failed/"         // followed by the service's name
)

// verdict is the state of one gate.
type verdict struct {
	open   bool
	hard   bool   // closed also for a service that runs
	reason string // why it is closed
	forced string // why it is open though its condition does not hold
}

// Plan decides what to do. It is pure: equal facts give equal actions, in a stable order.
func Plan(f Facts) []Action {
	p := planner{facts: f, wanted: map[string]bool{}, stateOf: map[string]State{}}
	for _, s := range f.Services {
		p.stateOf[s.Name] = s.State
	}
	for _, s := range f.Services {
		p.service(s)
	}
	p.alarms()
	for _, name := range f.Active {
		if !p.wanted[name] {
			p.out = append(p.out, Action{Kind: ActClear, Alarm: Alarm{Name: name}})
		}
	}
	return p.out
}

type planner struct {
	facts   Facts
	out     []Action
	wanted  map[string]bool // alarms
	stateOf map[string]State
	waiting []string // services that wait at a gate of the data monitor
	why     string   // the first gate's reason
}

func (p *planner) service(s ServiceFacts) {
	run, v := p.mayRun(s)
	if s.Failure != "" {
		p.raise(Alarm{Name: alarmFailed + s.Name, Severity: Critical, Reason: s.Failure, Since: s.Since})
	}
	switch s.State {
	case Stopped:
		p.stopped(s, run, v)
	case Starting:
		if !run && v.hard {
			p.add(ActStop, s, Stopping, v.reason)
		}
	case Started:
		switch {
		case !run && v.hard:
			p.add(ActStop, s, Stopping, v.reason)
		case s.Ended != "":
			p.add(ActFail, s, Stopping, "it ended by itself: "+s.Ended)
		}
	}
}

func (p *planner) stopped(s ServiceFacts, run bool, v verdict) {
	switch {
	case run && p.facts.Now.Before(s.RetryAt):
		p.add(ActHold, s, Starting, fmt.Sprintf("failed: %s; next attempt in %s", s.Failure, s.RetryAt.Sub(p.facts.Now).Round(time.Second)))
	case run:
		p.add(ActStart, s, Starting, v.forced)
	case v.reason == ReasonCommanded:
		p.add(ActHold, s, Stopped, ReasonCommanded)
	default:
		p.add(ActHold, s, Starting, v.reason)
	}
}

func (p *planner) add(k ActionKind, s ServiceFacts, state State, reason string) {
	p.out = append(p.out, Action{Kind: k, Service: s.Name, State: state, Reason: reason})
}

func (p *planner) raise(a Alarm) {
	p.wanted[a.Name] = true
	p.out = append(p.out, Action{Kind: ActRaise, Alarm: a})
}

// mayRun tells whether the service should run, and the verdict that says why or why not.
func (p *planner) mayRun(s ServiceFacts) (bool, verdict) {
	if _, ok := p.facts.Cluster.Stopped[s.Name]; ok {
		return false, verdict{hard: true, reason: ReasonCommanded}
	}
	forced := ""
	for _, g := range s.Needs {
		v := p.gate(g)
		if !v.open {
			if _, isService := g.service(); !isService {
				p.waiting = append(p.waiting, s.Name)
				if p.why == "" {
					p.why = v.reason
				}
			}
			return false, v
		}
		if v.forced != "" {
			forced = v.forced
		}
	}
	return true, verdict{open: true, forced: forced}
}

func (p *planner) gate(g Gate) verdict {
	if name, ok := g.service(); ok {
		if p.stateOf[name] == Started {
			return verdict{open: true}
		}
		return verdict{hard: true, reason: "waits for the service " + name}
	}
	switch g {
	case GateVersion:
		return p.versionGate()
	case GateLog:
		return p.logGate()
	case GateSync:
		return p.syncGate()
	}
	return verdict{reason: "waits for a gate that this release does not know: " + string(g)}
}

func (p *planner) versionGate() verdict {
	v := p.facts.Cluster.Version
	if v < p.facts.Oldest || v > p.facts.Newest {
		return verdict{hard: true, reason: fmt.Sprintf("the cluster's version is %d and this release runs %d to %d: install the release that the other nodes run",
			v, p.facts.Oldest, p.facts.Newest)}
	}
	return verdict{open: true}
}

func (p *planner) logGate() verdict {
	if l, ok := p.halted(); ok {
		return verdict{hard: true, reason: "the " + l.Name + " log cannot be applied: " + l.Halted}
	}
	l := p.behind()
	if l.CaughtUp {
		return verdict{open: true}
	}
	reason := "waits for the " + l.Name + " log: "
	if l.Wanted == 0 {
		reason += "no leader was heard yet"
	} else {
		reason += fmt.Sprintf("at index %d of %d", l.Applied, l.Wanted)
	}
	if l.Problem != "" {
		reason += " (" + l.Problem + ")"
	}
	return p.forcible(reason)
}

// halted returns a log that this release cannot apply.
func (p *planner) halted() (LogFacts, bool) {
	for _, l := range p.facts.Logs {
		if l.Halted != "" {
			return l, true
		}
	}
	return LogFacts{}, false
}

// behind returns the first log that has not caught up; if all have, the first.
func (p *planner) behind() LogFacts {
	for _, l := range p.facts.Logs {
		if !l.CaughtUp {
			return l
		}
	}
	return p.facts.Logs[0]
}

func (p *planner) syncGate() verdict {
	s := p.facts.Sync
	if !p.facts.Cluster.Publisher || !s.Configured || s.Done {
		return verdict{open: true} // a subscriber waits for its log only
	}
	reason := "waits for the sync agent's first complete synchronisation"
	if s.Problem != "" {
		reason += " (" + s.Problem + ")"
	}
	return p.forcible(reason)
}

// forcible opens a closed gate for an override, or on the publisher after its timeout.
func (p *planner) forcible(reason string) verdict {
	switch {
	case p.overridden():
		return verdict{open: true, forced: "gates overridden by " + p.facts.Cluster.OverrideBy}
	case p.facts.Cluster.Publisher && p.timedOut():
		return verdict{open: true, forced: "started after the publisher's timeout although it " + reason}
	}
	return verdict{reason: reason}
}

func (p *planner) overridden() bool { return p.facts.Now.Before(p.facts.Cluster.OverrideUntil) }

func (p *planner) timedOut() bool {
	return p.facts.Now.Sub(p.facts.Booted) >= p.facts.Cluster.PublisherTimeout
}

// alarms raises what the gates and the cluster give cause for.
func (p *planner) alarms() {
	f, slow := p.facts, p.behind()
	if l, ok := p.halted(); ok {
		p.raise(Alarm{Name: AlarmHalted, Severity: Critical, Reason: "upgrade this node: the " + l.Name + " log cannot be applied: " + l.Halted, Since: f.Now})
	}
	if v := p.versionGate(); !v.open {
		p.raise(Alarm{Name: AlarmVersion, Severity: Critical, Reason: v.reason, Since: f.Now})
	}
	if len(p.waiting) > 0 && f.Now.Sub(f.Booted) >= DelayAlarm {
		p.raise(Alarm{Name: AlarmWaiting, Severity: Warning, Since: f.Booted,
			Reason:   fmt.Sprintf("%s: %s", strings.Join(p.waiting, ", "), p.why),
			IndexNow: slow.Applied, IndexWanted: slow.Wanted, Estimate: estimate(slow)})
	}
	if p.overridden() {
		p.raise(Alarm{Name: AlarmOverride, Severity: Warning, Since: f.Now,
			Reason: fmt.Sprintf("gates are open by order of %s until %s", f.Cluster.OverrideBy, f.Cluster.OverrideUntil.UTC().Format(time.RFC3339))})
	}
	p.timeoutAlarm()
	if reason := incomplete(f.Cluster.Nodes); reason != "" && f.Now.Sub(f.Booted) >= DelayAlarm {
		p.raise(Alarm{Name: AlarmIncomplete, Severity: Warning, Reason: reason, Since: f.Now})
	}
}

// timeoutAlarm stands while the publisher serves only because its timeout has passed.
func (p *planner) timeoutAlarm() {
	if !p.facts.Cluster.Publisher || p.overridden() || !p.timedOut() {
		return
	}
	for _, v := range []verdict{p.logGate(), p.syncGate()} {
		if v.forced != "" {
			p.raise(Alarm{Name: AlarmTimeout, Severity: Warning, Reason: v.forced, Since: p.facts.Now,
				IndexNow: p.behind().Applied, IndexWanted: p.behind().Wanted})
			return
		}
	}
}

// estimate is the time left until the log has caught up at the present rate; 0 if unknown.
func estimate(l LogFacts) time.Duration {
	if l.Wanted <= l.Applied || l.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(l.Wanted-l.Applied) / l.Rate * float64(time.Second)).Round(time.Second)
}

// incomplete says why an installation or upgrade is not complete: nodes differ
// in release or one has not caught up. "" means complete.
func incomplete(nodes []NodeFacts) string {
	release := ""
	var behind []string
	for _, n := range nodes {
		if !n.CaughtUp {
			behind = append(behind, n.Name)
		}
		switch {
		case n.Release == "" || n.Release == release:
		case release == "":
			release = n.Release
		default:
			return fmt.Sprintf("nodes run different releases (%s and %s): finish the upgrade", release, n.Release)
		}
	}
	if len(behind) > 0 {
		return "not caught up: " + strings.Join(behind, ", ")
	}
	return ""
}

// Complete reports whether every node runs one release and has caught up; if not, why.
func Complete(nodes []NodeFacts) (bool, string) {
	reason := incomplete(nodes)
	return reason == "", reason
}
