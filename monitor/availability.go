package monitor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"muster/fsm/cluster"
)

// HAState is a node's place in a failover, in the words of the reference product.
type HAState string

// The states. None of them needs a person to be left, except Idle, which a person ordered.
const (
	HANormal         HAState = "Normal"                                         // its users are at home
	HAInitializing   HAState = "Initializing"                                   // it has never started, or its services are being started
	HAIdle           HAState = "Idle"                                           // failed over by an administrator, until that one wants it back
	HABackupMode     HAState = "Running in Backup Mode"                         // it serves users of another node too
	HATakingOver     HAState = "Taking Over"                                    // it is about to
	HAFailingOver    HAState = "Failing Over"                                   // its users are about to go to their backups
	HAFailedOver     HAState = "Failed Over"                                    // it is well; its users are with their backups for a while
	HAFailedServices HAState = "Failed Over with Critical Services Not Running" // it is not well, or down; its users are with their backups
	HAFallingBack    HAState = "Falling Back"                                   // it gives users back
	HATakingBack     HAState = "Taking Back"                                    // its users are coming back
	HADown           HAState = "Down"                                           // it is down, and no backup serves its users
	HAUnknown        HAState = "Unknown"                                        // the observer cannot know; the text says why
)

// HANode is what is known of one node: what the log says and what was heard of it.
type HANode struct {
	cluster.Node
	HA        bool          // high availability of its group is on
	Users     int           // whose home it is
	Reserves  []uint32      // the nodes that its users have as their backups
	Settled   time.Time     // end of its last failover; zero if that is forgotten
	SettledBy string        // who ended it
	Silent    time.Duration // since it was heard; 0 for the observer itself
	Bad       string        // a critical service that does not run, and why; "" if all do or that is not known
	BadSince  time.Time     // since when, as observed
	GoodSince time.Time     // since when all critical services run, as observed; zero: they do not, or that is not known
}

// HAFacts is all that Availability and PlanHA decide on.
type HAFacts struct {
	Now           time.Time
	Observer      uint32        // the node that looks
	Unheard       string        // why the observer's log may be behind; "" while it hears the leader
	SilentAfter   time.Duration // silence after which a node is declared down
	ServiceDelay  time.Duration // setting ha.critical_service_delay
	AutoFallback  bool          // setting ha.auto_fallback
	FallbackDelay time.Duration // setting ha.fallback_delay
	FallbackRate  int           // setting ha.fallback_rate, in users a second
	Nodes         []HANode      // by id
	Groups        []cluster.Group
	Stepped       map[uint32]time.Time // when the leader last moved users of a node home; only PlanHA looks at it
}

// NodeAvailability is a node's state and its story.
type NodeAvailability struct {
	Node   string    `json:"node"`
	Group  string    `json:"group"`
	State  HAState   `json:"state"`
	Reason string    `json:"reason"`         // in the words of the reference product
	Since  time.Time `json:"since"`          // of the state
	By     string    `json:"by,omitempty"`   // actor that brought it about
	Text   string    `json:"text,omitempty"` // what is going on
	Next   string    `json:"next,omitempty"` // what comes next, or what to do
	Users  int       `json:"users"`          // whose home it is
	Home   int       `json:"home_percent"`   // of them that the node serves itself

	id     uint32
	helper []uint32 // nodes that serve, or will serve, its users
}

// GroupAvailability is the state of a redundancy group: that of its node which is worst off.
type GroupAvailability struct {
	Group     string  `json:"group"`
	HA        bool    `json:"ha"`
	State     HAState `json:"state"`
	Reason    string  `json:"reason"`
	Protected bool    `json:"protected"`      // every user would have a home if one more node died
	Text      string  `json:"text,omitempty"` // why it is not protected
}

// Availability computes the state of every node and group. It is pure.
func Availability(f HAFacts) ([]NodeAvailability, []GroupAvailability) {
	v := haView{HAFacts: f, byID: map[uint32]*HANode{}}
	for i := range f.Nodes {
		v.byID[f.Nodes[i].ID] = &f.Nodes[i]
	}
	out := make([]NodeAvailability, len(f.Nodes))
	for i := range f.Nodes {
		out[i] = v.own(&f.Nodes[i])
	}
	for i := range out {
		v.help(&out[i], out)
	}
	groups := make([]GroupAvailability, 0, len(f.Groups))
	for _, g := range f.Groups {
		groups = append(groups, v.group(g, out))
	}
	return out, groups
}

type haView struct {
	HAFacts
	byID map[uint32]*HANode
}

// own is the state of a node as far as its own users are concerned.
func (v haView) own(n *HANode) NodeAvailability {
	a := NodeAvailability{Node: n.Name, Group: n.Group, Users: n.Users, Home: 100, id: n.ID}
	set := func(s HAState, reason string, since time.Time, by, text, next string) NodeAvailability {
		a.State, a.Reason, a.Since, a.By, a.Text, a.Next = s, reason, since, by, text, next
		return a
	}
	switch {
	case v.Unheard != "" && n.ID != v.Observer && n.Silent > v.SilentAfter:
		return set(HAUnknown, "Unknown", v.Now.Add(-n.Silent), "",
			fmt.Sprintf("%s, and nothing was heard from %s for %s", v.Unheard, n.Name, inWords(n.Silent)), "the state is known when the leader is heard again; see muster status")
	case n.Incarnation == 0:
		return set(HAInitializing, "Initialization", n.Joined, "", "it is a member and has never started", "start musterd on "+n.Name)
	case !n.Up:
		return v.down(n, a)
	case n.Failover != nil:
		return v.away(n, a)
	case n.Silent > v.SilentAfter/2 && n.ID != v.Observer:
		a.helper = v.able(n)
		return set(HAFailingOver, cluster.PeerDown.String(), v.Now.Add(-n.Silent), "", "nothing was heard from it for "+inWords(n.Silent),
			fmt.Sprintf("it is declared down %s after it was last heard%s", inWords(v.SilentAfter), v.to(", then its users go to ", a.helper)))
	case n.Bad != "":
		return v.unwell(n, a)
	}
	since := n.Since
	if n.Settled.After(since) {
		since = n.Settled
		a.By = n.SettledBy
	}
	return set(HANormal, "Normal", since, a.By, "", "")
}

// down is the state of a node whose process is over.
func (v haView) down(n *HANode, a NodeAvailability) NodeAvailability {
	a.State, a.Reason, a.Since, a.Next, a.Home = HADown, cluster.PeerDown.String(), n.Since, "start musterd on "+n.Name, 0
	if f := n.Failover; f != nil {
		a.Reason, a.By = f.Cause.String(), f.By
	}
	for _, id := range n.Reserves {
		if b := v.byID[id]; b != nil && b.Up {
			a.helper = append(a.helper, id)
		}
	}
	switch {
	case !n.HA:
		a.Text = "nobody serves its users: high availability is off for the group " + n.Group
	case len(n.Reserves) == 0:
		a.Text = "nobody serves its users: there is no other node"
	case len(a.helper) == 0:
		a.Text = "nobody serves its users: " + v.names(n.Reserves) + " is down too"
		a.Next = "start musterd on " + n.Name + " or " + v.names(n.Reserves)
	default:
		a.State, a.Text = HAFailedServices, "it is down; "+v.serving(a.helper)
	}
	return a
}

// away is the state of a node that is up and whose users are, or were until now, with their backups.
func (v haView) away(n *HANode, a NodeAvailability) NodeAvailability {
	f := n.Failover
	a.Reason, a.Since, a.By, a.Home = f.Cause.String(), f.Since, f.By, 100*(cluster.Slots-f.Away)/cluster.Slots
	for _, id := range n.Reserves {
		if b := v.byID[id]; b != nil && b.Up && !slices.Contains(f.Back, id) {
			a.helper = append(a.helper, id)
		}
	}
	a.Text = v.serving(a.helper)
	switch {
	case f.Fallback != cluster.NoCause:
		a.State, a.Reason, a.Since, a.By = HATakingBack, f.Fallback.String(), f.FallbackSince, f.FallbackBy
		a.Text = fmt.Sprintf("%d %% of its %d users are at home", a.Home, n.Users)
		a.Next = "the last one is at home in about " + inWords(time.Duration(float64(n.Users)*float64(f.Away)/cluster.Slots/float64(max(v.FallbackRate, 1))*float64(time.Second)))
		if n.Bad != "" {
			a.Next = "no more come home while a critical service does not run: " + n.Bad
		}
	case n.Bad != "":
		a.State = HAFailedServices
		a.Text += "; " + n.Bad
		a.Next = "muster services list on " + n.Name + " shows its services; its users return when those run"
		if f.Cause == cluster.OnRequest {
			a.Next = "muster services list on " + n.Name + ", then muster ha fallback " + n.Name
		}
	case f.Cause == cluster.OnRequest:
		a.State, a.Next = HAIdle, "muster ha fallback "+n.Name+" brings its users back"
	case !v.AutoFallback:
		a.State, a.Next = HAFailedOver, "muster ha fallback "+n.Name+" brings its users back (ha.auto_fallback is off)"
	case n.GoodSince.IsZero():
		a.State, a.Next = HAFailedOver, fmt.Sprintf("its users return %s after it has said that its services run", inWords(v.FallbackDelay))
	default:
		a.State, a.Next = HAFailedOver, "its users return in "+inWords(v.due(n).Sub(v.Now))
	}
	return a
}

// due is when the users of a node that is well may come home by themselves.
func (v haView) due(n *HANode) time.Time {
	at := n.Since
	if n.GoodSince.After(at) {
		at = n.GoodSince
	}
	return at.Add(v.FallbackDelay)
}

// unwell is the state of a node with a critical service that does not run and whose users are at home.
func (v haView) unwell(n *HANode, a NodeAvailability) NodeAvailability {
	a.State, a.Reason, a.Since, a.Text = HAInitializing, cluster.ServiceDown.String(), n.BadSince, n.Bad
	able := v.able(n)
	switch {
	case v.Now.Sub(n.Since) < v.ServiceDelay:
		a.Reason, a.Next = "Initialization", "its services are being started"
	case !n.HA:
		a.Next = "its users stay, for high availability is off: muster services list on " + n.Name
	case len(able) == 0:
		a.Next = "its users stay, for no backup can take them: muster services list on " + n.Name
	default:
		a.State, a.helper = HAFailingOver, able
		a.Next = "its users go to " + v.names(able) + " in " + inWords(n.BadSince.Add(v.ServiceDelay).Sub(v.Now))
	}
	return a
}

// able returns the backups of a node that could take its users now.
func (v haView) able(n *HANode) (out []uint32) {
	for _, id := range n.Reserves {
		if b := v.byID[id]; b != nil && b.Up && b.Failover == nil && b.Bad == "" {
			out = append(out, id)
		}
	}
	return out
}

// help makes a node that is well say what it does for others.
func (v haView) help(a *NodeAvailability, all []NodeAvailability) {
	if a.State != HANormal {
		return
	}
	var whose []string
	for i := range all {
		o := &all[i]
		if !slices.Contains(o.helper, a.id) {
			continue
		}
		state := HABackupMode
		switch o.State {
		case HAFailingOver:
			state = HATakingOver
		case HATakingBack:
			state = HAFallingBack
		}
		if len(whose) == 0 || a.State == HATakingOver && state != HATakingOver { // what is comes before what will be
			a.State, a.Reason, a.Since, a.By, a.Next = state, o.Reason, o.Since, o.By, o.Next
		}
		whose = append(whose, o.Node)
	}
	if len(whose) > 0 {
		a.Text = "it is the backup of " + strings.Join(whose, ", ")
	}
}

// worst lists the states of a group's nodes from the worst to the best.
var worst = []HAState{HADown, HAUnknown, HAFailedServices, HAFailingOver, HAInitializing, HAFailedOver, HAIdle, HATakingBack,
	HATakingOver, HAFallingBack, HABackupMode, HANormal}

func (v haView) group(g cluster.Group, all []NodeAvailability) GroupAvailability {
	out := GroupAvailability{Group: g.Name, HA: g.HA, State: HANormal, Reason: "Normal", Protected: true}
	rank := len(worst)
	for _, a := range all {
		if !slices.Contains(g.Nodes, a.id) {
			continue
		}
		if r := slices.Index(worst, a.State); r < rank {
			rank, out.State, out.Reason = r, a.State, a.Reason
		}
	}
	if !g.HA {
		out.Protected, out.Text = false, "high availability is off: users have no backup"
		return out
	}
	var exposed []uint32
	for _, id := range g.Nodes {
		n := v.byID[id]
		if n == nil {
			continue
		}
		ups := 0
		for _, r := range append([]uint32{id}, n.Reserves...) {
			if b := v.byID[r]; b != nil && b.Up {
				ups++
			}
		}
		if ups < 2 {
			exposed = append(exposed, id)
		}
	}
	if len(exposed) > 0 {
		out.Protected, out.Text = false, "the users of "+v.names(exposed)+" would have no home if one more node died"
	}
	return out
}

func (v haView) names(ids []uint32) string {
	var out []string
	for _, id := range ids {
		if n := v.byID[id]; n != nil {
			out = append(out, n.Name)
		}
	}
	if len(out) == 0 {
		return "nobody"
	}
	return strings.Join(out, ", ")
}

// serving says who serves a node's users.
func (v haView) serving(ids []uint32) string {
	if len(ids) > 1 {
		return v.names(ids) + " serve its users"
	}
	return v.names(ids) + " serves its users"
}

// to is text and names, or nothing if there are no names.
func (v haView) to(text string, ids []uint32) string {
	if len(ids) == 0 {
		return ""
	}
	return text + v.names(ids)
}

// inWords renders a span of time in whole seconds, never less than none.
func inWords(d time.Duration) string {
	s := int64(max(d, 0).Round(time.Second) / time.Second)
	if s < 120 {
		return fmt.Sprintf("%d s", s)
	}
	return fmt.Sprintf("%d min %d s", s/60, s%60)
}
