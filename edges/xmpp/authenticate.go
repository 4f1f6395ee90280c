package xmpp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"time"

	"muster/edges/xmpp/sasl"
	"muster/fsm/token"
	"muster/internal/jid"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// Sizes of resources made for clients (XEP-0386 section 3.3).
const (
	maxTag        = 128 // bytes of the client's tag; a longer one is left out
	resourceBytes = 12  // of the server's part: 16 characters
)

// authenticating reports whether an attempt by the extensible profile is under way, during which the
// client sends nothing but what belongs to it (XEP-0388 section 2.4).
func (st *stream) authenticating() bool { return st.neg != nil && st.neg.request != nil }

// interrupted ends a stream whose client sends something else while it authenticates.
func (st *stream) interrupted() {
	st.end(stanza.StreamPolicyViolation, "nothing else may be sent during authentication", nil)
}

// authenticationFeature appends the extensible SASL profile with all that a login can bring along.
func (st *stream) authenticationFeature(b []byte, p sasl.Peer) []byte {
	b = append(b, `<authentication xmlns='`+stanza.NSSASL2+`'>`...)
	b = appendMechanisms(b, sasl.Mechanisms(p))
	b = append(b, `<inline>`+featureSM+`<bind xmlns='`+stanza.NSBind2+`'><inline>`...)
	for _, ns := range append([]string{stanza.NSSM, stanza.NSCSI}, st.run.srv.o.Router.BindFeatures()...) {
		b = append(append(append(b, "<feature var='"...), ns...), "'/>"...)
	}
	b = append(b, "</inline></bind>"...)
	if st.run.srv.tokens.offered() {
		b = append(b, `<fast xmlns='`+stanza.NSFAST+`'>`...)
		b = append(appendMechanisms(b, sasl.TokenMechanisms(p)), "</fast>"...)
	}
	return append(b, "</inline></authentication>"...)
}

func appendMechanisms(b []byte, names []string) []byte {
	for _, m := range names {
		b = append(append(append(b, "<mechanism>"...), m...), "</mechanism>"...)
	}
	return b
}

// handleAuthentication takes an element of the extensible SASL profile (XEP-0388).
func (st *stream) handleAuthentication(item *xmltok.Item) {
	switch {
	case item.Local == "authenticate" && !st.authenticating():
		st.beginAuthentication(item)
	case item.Local == "response" && st.authenticating():
		st.continueLogin(item)
	case item.Local == "abort" && st.authenticating():
		st.loginFailed(sasl.Step{Failure: sasl.Aborted})
	default:
		st.interrupted()
	}
}

func (st *stream) beginAuthentication(item *xmltok.Item) {
	q, problem := readLogin(item)
	st.neg.request = q
	switch {
	case problem != "":
		st.loginFailed(sasl.Step{Failure: sasl.MalformedRequest, Text: problem})
		return
	case !q.initialOK:
		st.loginFailed(sasl.Step{Failure: sasl.IncorrectEncoding})
		return
	}
	p := st.peer()
	if st.run.srv.tokens.offered() && q.token {
		p.Agent = q.agent
	}
	st.neg.exchange, st.neg.rounds = st.run.srv.auth.New(p), 0
	st.answerLogin(st.neg.exchange.Begin(st.run.ctx, q.mechanism, q.initial))
}

// authenticated does what the client asked for with its login, and tells it all at once (XEP-0388 section 2.6.1):
// a new token, then the resumption of a session, or else a new one.
func (st *stream) authenticated(step sasl.Step) {
	q, account := st.neg.request, step.Account
	if from := st.neg.from; !from.IsZero() && from.Bare() != account.User {
		st.loginFailed(sasl.Step{Failure: sasl.InvalidAuthzid, Text: "your stream is that of somebody else"})
		return
	}
	given, ok := st.settleTokens(q, step)
	if !ok {
		st.loginFailed(sasl.Step{Failure: sasl.TemporaryAuthFailure, Text: "the token cannot be invalidated now: try again in a moment"})
		return
	}
	st.enter(account)
	st.dec.SetOptions(st.run.srv.after)
	st.phase = phaseBind
	w := welcome{data: step.Data, token: given}
	if q.resume != nil {
		w.failed = st.resume(*q.resume, func(s *session, resumed []byte) []byte { return w.bytes(s.full, resumed) })
		if w.failed == nil {
			return
		}
	}
	if q.bind == nil || !st.bindAtLogin(q, w) {
		st.write(st.features(w.bytes(st.user, nil)))
	}
}

// welcome is what <success/> tells.
type welcome struct {
	data   []byte // of the mechanism; nil: none
	failed []byte // why no session was resumed
	token  []byte // for the next login
}

// bytes returns <success/>; session is what is said about the session.
func (w welcome) bytes(as jid.JID, session []byte) []byte {
	b := []byte(`<success xmlns='` + stanza.NSSASL2 + `'>`)
	if w.data != nil {
		b = base64.StdEncoding.AppendEncode(append(b, "<additional-data>"...), w.data)
		b = append(b, "</additional-data>"...)
	}
	b = xmltok.AppendText(append(b, "<authorization-identifier>"...), as.String())
	b = append(b, "</authorization-identifier>"...)
	for _, part := range [][]byte{w.failed, session, w.token} {
		b = append(b, part...)
	}
	return append(b, "</success>"...)
}

// settleTokens makes tokens void, and gives a new one, as the client asked or as is due. False if what must be void cannot be.
func (st *stream) settleTokens(q *loginRequest, step sasl.Step) (given []byte, ok bool) {
	st.yield() // what follows may wait for the log
	t, c := st.run.srv.tokens, tokenClient{step.Account.User.String(), q.agent}
	mechanism, used := q.wanted, step.TokenDay
	var err error
	switch {
	case used == 0:
	case q.invalidate:
		st.run.srv.counters.tokenLogins.Add(1)
		err = t.invalidate(st.run.ctx, c, used)
		used = 0
	default:
		st.run.srv.counters.tokenLogins.Add(1)
		err = t.used(st.run.ctx, c, used)
		if mechanism == "" && t.due(used) {
			mechanism = q.mechanism
		}
	}
	switch {
	case err != nil:
		st.run.srv.o.Logger.Warn("token_not_void", "account", c.user, "error", err)
		return nil, false
	case mechanism == "" || q.agent == (token.Agent{}) || !t.offered() || !slices.Contains(sasl.TokenMechanisms(st.peer()), mechanism):
		return nil, true
	}
	if q.wanted != "" {
		used = 0 // what it asks for it gets, be it the same again
	}
	text, expires, ok := t.issue(step.Account, q.agent, mechanism, used)
	if !ok {
		return nil, true
	}
	return stanza.NewBuilder("").Leaf("token", stanza.NSFAST, "token", text, "expiry", expires.Format(time.RFC3339)).Bytes(), true
}

// bindAtLogin makes the session that the client asked for with its login (XEP-0386 section 3.2). False if it gets
// none: the client may then ask for one as RFC 6120 says, and learns what is wrong.
func (st *stream) bindAtLogin(q *loginRequest, w welcome) bool {
	ctx, cancel := context.WithTimeout(st.run.ctx, bindTimeout)
	defer cancel()
	s := newSession(st)
	st.yield()
	bound, err := st.run.srv.o.Router.Bind(ctx, BindRequest{
		User: st.user, Resource: st.resource(q), Sink: s, Transport: transport, Remote: st.wire.RemoteAddr().String(), Wishes: q.bind.wishes,
	})
	if err != nil {
		st.neg.binds++
		return false
	}
	start := beginning{quiet: q.bind.quiet}
	told := []byte(`<bound xmlns='` + stanza.NSBind2 + `'>`)
	features := []byte("<stream:features>")
	if q.bind.manage {
		var enabled []byte
		start.sm, enabled = s.newManagement(bound, q.bind.resume)
		told = append(told, enabled...)
	} else {
		features = append(features, featureSM...)
	}
	start.first = append(w.bytes(bound.JID(), append(told, "</bound>"...)), st.sessionFeatures(features)...)
	start.first = append(start.first, "</stream:features>"...)
	st.live(s)
	s.attach(st, bound, start)
	return true
}

// resource returns the resource for a client: its tag, and a part that is the same whenever this installation
// comes back, and tells nobody its id. It is "" where the router has to make one.
func (st *stream) resource(q *loginRequest) string {
	part := make([]byte, resourceBytes)
	switch {
	case q.agent != token.Agent{}:
		m := hmac.New(sha256.New, st.run.srv.o.Key)
		m.Write([]byte("muster resource\x00" + st.user.String() + "\x00"))
		m.Write(q.agent[:])
		copy(part, m.Sum(nil))
	case q.bind.tag == "":
		return ""
	default:
		rand.Read(part)
	}
	made := base64.RawURLEncoding.EncodeToString(part)
	if q.bind.tag != "" && len(q.bind.tag) <= maxTag {
		if full, err := jid.New(st.user.Local, st.user.Domain, q.bind.tag+"/"+made); err == nil {
			return full.Resource
		}
	}
	return made
}
