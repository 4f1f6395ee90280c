package xmpp

import (
	"encoding/base64"
	"time"

	"muster/edges/xmpp/sasl"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// napSlice is how often a stream that is made to wait looks whether it is over.
const napSlice = 250 * time.Millisecond

// handleLogin takes what a client sends while SASL is offered (RFC 6120 section 6).
func (st *stream) handleLogin(item *xmltok.Item) {
	if st.authenticating() && item.Space != stanza.NSSASL2 {
		st.interrupted()
		return
	}
	if p, ok := st.registration(item); ok {
		st.register(p)
		return
	}
	if item.Space == stanza.NSSASL2 {
		st.handleAuthentication(item)
		return
	}
	if item.Space != stanza.NSSASL {
		st.end(stanza.StreamNotAuthorized, "log in first", nil)
		return
	}
	switch item.Local {
	case "auth":
		st.beginLogin(item)
	case "response":
		st.continueLogin(item)
	case "abort":
		st.loginFailed(sasl.Step{Failure: sasl.Aborted})
	default:
		st.end(stanza.StreamUnsupportedStanzaType, "", nil)
	}
}

func (st *stream) beginLogin(item *xmltok.Item) {
	st.neg.exchange, st.neg.rounds = st.run.srv.auth.New(st.peer()), 0
	initial, ok := decodeSASL(item)
	if !ok {
		st.loginFailed(sasl.Step{Failure: sasl.IncorrectEncoding})
		return
	}
	if len(item.Inner) == 0 {
		initial = nil // none, which differs from an empty one
	}
	st.answerLogin(st.neg.exchange.Begin(st.run.ctx, item.Attr("mechanism"), initial))
}

func (st *stream) continueLogin(item *xmltok.Item) {
	st.neg.rounds++
	response, ok := decodeSASL(item)
	switch {
	case st.neg.exchange == nil || st.neg.rounds > maxRounds:
		st.loginFailed(sasl.Step{Failure: sasl.MalformedRequest, Text: "no login is under way"})
	case !ok:
		st.loginFailed(sasl.Step{Failure: sasl.IncorrectEncoding})
	default:
		st.answerLogin(st.neg.exchange.Continue(st.run.ctx, response))
	}
}

// decodeSASL returns the data of a SASL element; "=" stands for empty (RFC 6120 section 6.4.2).
func decodeSASL(item *xmltok.Item) ([]byte, bool) {
	if string(item.Inner) == "=" {
		return []byte{}, true
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(item.Inner)))
	n, err := base64.StdEncoding.Strict().Decode(out, item.Inner)
	return out[:n], err == nil && len(item.Children) == 0
}

func (st *stream) answerLogin(step sasl.Step) {
	switch {
	case step.Failure != "":
		st.loginFailed(step)
	case step.Done && st.neg.request != nil:
		st.authenticated(step)
	case step.Done:
		st.loggedIn(step)
	default:
		st.write(saslElement("challenge", st.profile(), step.Data))
	}
}

// profile returns the namespace of the SASL profile of the attempt under way.
func (st *stream) profile() string {
	if st.neg.request != nil {
		return stanza.NSSASL2
	}
	return stanza.NSSASL
}

func saslElement(name, space string, data []byte) []byte {
	b := []byte("<" + name + " xmlns='" + space + "'")
	if data == nil {
		return append(b, "/>"...)
	}
	b = append(b, '>')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, "</"+name+">"...)
}

// loggedIn tells the client, and awaits a new stream.
func (st *stream) loggedIn(step sasl.Step) {
	st.enter(step.Account)
	st.restart(st.run.srv.after)
	st.write(saslElement("success", stanza.NSSASL, step.Data))
}

// enter makes the stream one of the account's.
func (st *stream) enter(a sasl.Account) {
	st.run.srv.counters.logins.Add(1)
	st.user = a.User
	st.neg.exchange, st.neg.request = nil, nil
	st.admitted()
	if !st.unlimited && !a.Admin {
		st.throttle = newThrottle(st.run.srv.o.Live, st.wire.in.Load())
	}
}

// loginFailed tells the client why, after the delay that the guard wants; after too many tries the stream ends.
func (st *stream) loginFailed(step sasl.Step) {
	profile := st.profile()
	st.neg.exchange, st.neg.request = nil, nil
	st.neg.tries++
	st.nap(step.Delay)
	b := stanza.NewBuilder("").Open("failure", profile).Leaf(string(step.Failure), stanza.NSSASL)
	if step.Text != "" {
		b.TextElement("text", profile, step.Text, "xml:lang", "en")
	}
	st.write(b.Bytes())
	if st.neg.tries >= maxTries {
		st.end(stanza.StreamPolicyViolation, "too many failed logins", nil)
	}
}

// nap waits, as long as the stream lives.
func (st *stream) nap(d time.Duration) {
	if d > 0 {
		st.yield()
	}
	for d > 0 && !st.closed.Load() && !st.ending.Load() && !st.run.stopping.Load() {
		slice := min(d, napSlice)
		time.Sleep(slice)
		d -= slice
	}
}
