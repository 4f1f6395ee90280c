// Package presence carries presence (RFC 6121 sections 3 and 4): who is there,
// who may know it, and the stanzas that ask for and grant that. cmd/musterd
// hands it to the router.
//
// A session's presence is a row of the hot store, which every node holds. A
// watcher's view of a subject is decided on the watcher's home node from three
// things: the subject's rows, the subject's roster ("from" or "both"), and both
// sides' blocking lists. Whatever changes one of them (a row, a roster item, a
// blocking list) makes that node tell the watcher the difference. So a grant,
// a removal by an administrator, a block and a dead node are all the same here,
// and none needs a message that could be lost.
//
// Invariants: default deny; a row that vanishes is told to each watcher once;
// a subscription stanza is passed on only after the log has taken it; what a
// session sent directed presence to hears when the session goes.
package presence

import (
	"muster/feature/blocking/state"
	rosterstate "muster/feature/roster/state"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/router"
)

// MaxDirected bounds the addresses that one session may send directed presence
// to: each is remembered until the session goes (RFC 6121 section 4.6).
var MaxDirected = config.Int("presence.max_directed", 1000, 10, 4000, config.Cluster,
	"To how many addresses outside its roster one session may send presence.")

// Feature carries presence.
type Feature struct {
	reg      *router.Registry
	audience *audience
}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "presence" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	f.reg = reg
	f.audience = newAudience(func() source { return reg.Router().State() })
	reg.OnPresenceOut(f.out)
	reg.OnPresenceIn(f.in)
	reg.OnBind(f.bound)
	reg.OnUnbind(f.unbound)
	reg.OnMoved(f.moved)
	reg.OnRow(f.rowChanged)
	reg.Watch(rosterstate.Rosters, f.rosterChanged)
	reg.Watch(state.Lists, f.blockingChanged)
	reg.Watch(user.Table, f.userChanged)
	return nil
}
