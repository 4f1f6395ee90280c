package xmpp

import (
	"context"

	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// transport is how the router's lists call sessions of this edge.
const transport = "c2s"

// handleBind takes what a client sends between login and session: a bind request or a resumption (RFC 6120 section 7).
func (st *stream) handleBind(item *xmltok.Item) {
	switch {
	case item.Space == stanza.NSSM && item.Local == "resume":
		failed := st.resume(resumption{item.Attr("previd"), item.Attr("h")}, func(_ *session, resumed []byte) []byte { return resumed })
		if failed != nil {
			st.write(failed)
		}
	case item.Space == stanza.NSSM:
		st.write(managementFailed("unexpected-request", nil))
	case item.Space == stanza.NSCSI: // of the session to come; it begins active
	case item.Space == stanza.NSClient && isStanza(item.Local):
		p, err := stanza.FromElement(item)
		if c, ok := bindRequest(p); ok && err == nil {
			st.bind(p, c)
			return
		}
		st.end(stanza.StreamNotAuthorized, "bind a resource first", nil)
	default:
		st.end(stanza.StreamUnsupportedStanzaType, "", nil)
	}
}

func isStanza(local string) bool { return local == "message" || local == "presence" || local == "iq" }

func bindRequest(p *stanza.Packet) (stanza.Child, bool) {
	if p == nil || p.Kind != stanza.KindIQ || p.Type != stanza.TypeSet {
		return stanza.Child{}, false
	}
	return p.Child(stanza.NSBind, "bind")
}

// bind makes the stream's session.
func (st *stream) bind(p *stanza.Packet, c stanza.Child) {
	var resource string
	if el := p.Element(c).Find(stanza.NSBind, "resource"); el != nil {
		resource = el.Text()
	}
	if resource != "" {
		full, err := jid.New(st.user.Local, st.user.Domain, resource)
		if err != nil {
			st.refuseBind(p, stanza.NewError(stanza.BadRequest, "not a valid resource"))
			return
		}
		resource = full.Resource
	}
	ctx, cancel := context.WithTimeout(st.run.ctx, bindTimeout)
	defer cancel()
	s := newSession(st)
	st.yield()
	bound, err := st.run.srv.o.Router.Bind(ctx, BindRequest{
		User: st.user, Resource: resource, Sink: s, Transport: transport, Remote: st.wire.RemoteAddr().String(),
	})
	if err != nil {
		st.refuseBind(p, bindError(err))
		return
	}
	inner := stanza.NewBuilder("").Open("bind", stanza.NSBind).TextElement("jid", "", bound.JID().String()).Bytes()
	result := p.Result(inner)
	result.From, result.To = jid.JID{}, jid.JID{}
	st.live(s)
	s.attach(st, bound, beginning{first: result.AppendTo(nil)})
}

// live makes s the stream's session.
func (st *stream) live(s *session) {
	st.sess.Store(s)
	st.phase, st.neg = phaseLive, nil
	st.graduate()
	if due := st.deadline.Load(); !st.ending.Load() {
		st.deadline.CompareAndSwap(due, 0) // not the deadline of an end that begins just now
	}
}

// bindError maps a refusal to the conditions of RFC 6120 section 7.7.2.
func bindError(err error) *stanza.Error {
	switch fault.CodeOf(err) {
	case fault.TooLarge:
		return &stanza.Error{Type: stanza.Wait, Condition: stanza.ResourceConstraint, Text: fault.Public(err)}
	case fault.Forbidden, fault.NotFound:
		return stanza.NewError(stanza.NotAllowed, fault.Public(err))
	}
	return stanza.FromFault(err)
}

func (st *stream) refuseBind(p *stanza.Packet, e *stanza.Error) {
	st.write(p.ErrorReply(e).AppendTo(nil))
	if st.neg.binds++; st.neg.binds >= maxBinds {
		st.end(stanza.StreamPolicyViolation, "too many bind requests failed", nil)
	}
}

// handleLive takes what a client sends in its session.
func (st *stream) handleLive(item *xmltok.Item) {
	s := st.sess.Load()
	switch {
	case item.Space == stanza.NSClient && isStanza(item.Local):
		st.paceStanza()
		st.handleStanza(s, item)
	case item.Space == stanza.NSSM:
		st.manage(s, item)
	case item.Space == stanza.NSCSI && item.Local == "active":
		s.setQuiet(false)
	case item.Space == stanza.NSCSI && item.Local == "inactive":
		s.setQuiet(true)
	case item.Space == stanza.NSServer:
		st.end(stanza.StreamInvalidNamespace, "", nil)
	default:
		st.end(stanza.StreamUnsupportedStanzaType, "", nil)
	}
}

// handleStanza checks a stanza, stamps its sender and gives it to the router.
func (st *stream) handleStanza(s *session, item *xmltok.Item) {
	p, err := stanza.FromElement(item)
	if p == nil {
		st.end(stanza.StreamUnsupportedStanzaType, publicText(err), nil)
		return
	}
	if !ownSender(item, p.From, s.full) {
		st.end(stanza.StreamInvalidFrom, "", nil)
		return
	}
	st.run.srv.counters.stanzasIn.Add(1)
	p.From = s.full
	if p.Lang == "" {
		p.Lang = st.lang // RFC 6120 section 8.1.5
	}
	if err != nil {
		s.answer(st, p, asStanzaError(err))
		return
	}
	if e := stanza.ValidateClient(p); e != nil {
		s.answer(st, p, e)
		return
	}
	if p.Kind == stanza.KindIQ && s.streamRequest(st, p) {
		return
	}
	s.receive(st, stanza.StripForged(p, st.run.serves))
}

func asStanzaError(err error) *stanza.Error {
	if e, ok := err.(*stanza.Error); ok {
		return e
	}
	return stanza.FromFault(err)
}

// ownSender reports whether a stanza's sender is absent or the session's own address, bare or full (RFC 6120 section 8.1.2.1).
func ownSender(item *xmltok.Item, from, full jid.JID) bool {
	if from.IsZero() {
		return item.Attr("from") == "" // else it was malformed
	}
	return from == full || from == full.Bare()
}

// serves reports whether the cluster serves a domain.
func (r *run) serves(domain string) bool { return config.IsDomain(r.srv.o.State, domain) }

// streamRequest answers the requests that concern the stream: a second bind, and the session
// request of RFC 3921, which has no effect. False: p is not one.
func (s *session) streamRequest(st *stream, p *stanza.Packet) bool {
	if p.Type != stanza.TypeSet || !p.To.IsZero() && p.To != s.full.Bare() && p.To.String() != s.full.Domain {
		return false
	}
	switch {
	case p.Has(stanza.NSBind, "bind"):
		s.answer(st, p, stanza.NewError(stanza.NotAllowed, "a resource is bound already"))
	case p.Has(stanza.NSSession, "session"):
		s.reply(st, p.Result(nil))
	default:
		return false
	}
	return true
}
