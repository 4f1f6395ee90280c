package presence

import (
	rosterstate "muster/feature/roster/state"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// directedMark begins the marks that remember whom a session sent directed
// presence to (RFC 6121 section 4.6); they move with the session.
const directedMark = "directed/"

// direct passes on presence to one address, and remembers who has to hear when the session goes.
func (f *Feature) direct(c *router.Ctx, p *stanza.Packet) {
	key := directedMark + p.To.String()
	if p.Type == stanza.TypeUnavailable {
		if c.Session.Mark(key) != "" {
			*directed(c.Session)--
			_ = c.SetMark(c.Session, key, "") // removing a mark cannot fail
		}
		c.Route(p)
		return
	}
	if c.Session.Mark(key) == "" {
		n := directed(c.Session)
		if int64(*n) >= c.Router().Live().Int(MaxDirected) {
			c.Reply(p.ErrorReply(stanza.NewError(stanza.PolicyViolation, "directed presence to too many addresses")))
			return
		}
		if err := c.SetMark(c.Session, key, "on"); err != nil {
			c.Reply(p.ErrorReply(stanza.FromFault(err)))
			return
		}
		*n++
	}
	c.Route(p)
}

type directedKey struct{}

// directed counts the session's directed marks; the first time on a new home they are counted anew.
func directed(at *router.Attached) *int {
	n, ok := at.Data(directedKey{}).(*int)
	if !ok {
		n = new(int)
		at.Marks(directedMark, func(string, string) { *n++ })
		at.SetData(directedKey{}, n)
	}
	return n
}

// partDirected sends unavailable to whom the session sent directed presence,
// except where the row's end says it already. p is the client's own stanza, or nil.
func (f *Feature) partDirected(c *router.Ctx, p *stanza.Packet) {
	var all []string
	c.Session.Marks(directedMark, func(key, _ string) { all = append(all, key) })
	c.Session.SetData(directedKey{}, nil)
	for _, key := range all {
		_ = c.SetMark(c.Session, key, "") // removing a mark cannot fail
		to, err := jid.Parse(key[len(directedMark):])
		if err != nil || c.Session.Available() && f.watches(c, to) {
			continue
		}
		parting := &stanza.Packet{Kind: stanza.KindPresence, Type: stanza.TypeUnavailable}
		if p != nil {
			parting = p.Clone()
		}
		parting.From, parting.To = c.Session.JID, to
		c.Route(parting)
	}
}

// watches reports whether to hears of the user's rows anyway.
func (f *Feature) watches(c *router.Ctx, to jid.JID) bool {
	item, _ := rosterstate.Get(c.State(), c.User(), to.Bare())
	return item.Sub.HasFrom() || to.Bare() == c.User()
}

// sentTo returns the user's session that sent directed presence to j, or nil.
func sentTo(c *router.Ctx, j jid.JID) *router.Attached {
	for _, at := range c.Sessions() {
		if at.Mark(directedMark+j.String()) != "" || at.Mark(directedMark+j.Bare().String()) != "" {
			return at
		}
	}
	return nil
}
