package feature_test

import (
	rosterstate "muster/feature/roster/state"
	"muster/internal/jid"
	"muster/log"
)

// subscriptionEntries let a see b's presence: a asks, b agrees.
func subscriptionEntries(a, b string) []*log.Entry {
	from, to := jid.MustParse(a+"@"+domain), jid.MustParse(b+"@"+domain)
	return []*log.Entry{
		rosterstate.SubscriptionEntry(rosterstate.Request{From: from, To: to, Type: rosterstate.Subscribe}),
		rosterstate.SubscriptionEntry(rosterstate.Request{From: to, To: from, Type: rosterstate.Subscribed}),
	}
}
