package xmpp

import (
	"context"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// maxRegistrations is how many registration requests one connection may make before it logs in.
const maxRegistrations = 10

// Registrar makes accounts for clients that have none (XEP-0077).
type Registrar interface {
	// Open reports whether it does so now. While it does not, clients hear nothing of it.
	Open() bool
	// Register makes an account. remote is the client's address for limits; "" is free of them.
	Register(ctx context.Context, user jid.JID, password, remote string) error
}

// registers reports whether clients may make accounts now.
func (st *stream) registers() bool {
	return st.run.srv.o.Registrar != nil && st.run.srv.o.Registrar.Open()
}

// registration returns the request that item is, if it is one for an account and such requests are answered now.
func (st *stream) registration(item *xmltok.Item) (*stanza.Packet, bool) {
	if item.Space != stanza.NSClient || item.Local != "iq" || !st.registers() {
		return nil, false
	}
	p, err := stanza.FromElement(item)
	if p == nil || err != nil || !p.IsRequest() || !p.Has(stanza.NSRegister, "query") || !p.From.IsZero() {
		return nil, false
	}
	return p, p.To.IsZero() || p.To.String() == st.domain
}

// register answers a request for an account (XEP-0077 section 3.1).
func (st *stream) register(p *stanza.Packet) {
	if st.neg.registrations++; st.neg.registrations > maxRegistrations {
		st.end(stanza.StreamPolicyViolation, "too many registration requests", nil)
		return
	}
	c, _ := p.Child(stanza.NSRegister, "query")
	answer := p.Result(nil)
	if p.Type == stanza.TypeGet {
		answer = p.Result(stanza.NewBuilder("").Open("query", stanza.NSRegister).
			TextElement("instructions", "", "Choose a user name and a password.", "xml:lang", "en").
			Leaf("username", "").Leaf("password", "").Bytes())
	} else if e := st.makeAccount(p.Element(c)); e != nil {
		answer = p.ErrorReply(e)
	}
	answer.From = jid.JID{Domain: st.domain}
	st.write(answer.AppendTo(nil))
}

// makeAccount makes the account that a filled-in form asks for.
func (st *stream) makeAccount(form *stanza.Element) *stanza.Error {
	st.yield() // it waits for the log
	name, password := form.Find(stanza.NSRegister, "username"), form.Find(stanza.NSRegister, "password")
	switch {
	case form.Find(stanza.NSRegister, "remove") != nil:
		return stanza.NewError(stanza.UnexpectedRequest, "log in to remove your account")
	case name == nil || password == nil || name.Text() == "" || password.Text() == "":
		return stanza.NewError(stanza.NotAcceptable, "a user name and a password are needed")
	}
	user, err := jid.New(name.Text(), st.domain, "")
	if err != nil || user.Local == "" {
		return stanza.NewError(stanza.NotAcceptable, "this cannot be a user name")
	}
	if err := st.run.srv.o.Registrar.Register(st.run.ctx, user, password.Text(), st.lockAddress()); err != nil {
		st.run.srv.counters.registrationsRefused.Add(1)
		st.run.srv.o.Logger.Info("registration_refused", "account", user.String(), "address", st.lockAddress(), "reason", fault.CodeOf(err).String())
		return stanza.FromFault(err)
	}
	st.run.srv.counters.registrations.Add(1)
	st.run.srv.o.Logger.Info("account_registered", "account", user.String(), "address", st.lockAddress())
	return nil
}
