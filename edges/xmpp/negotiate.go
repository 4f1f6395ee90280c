package xmpp

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	"muster/edges/xmpp/sasl"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
	"muster/router/xmltok"
)

const closeTag = "</stream:stream>"

// streamIDBytes is the size of a stream's random id; 18 bytes are 24 characters.
const streamIDBytes = 18

// negotiation is what a stream needs only until its session is bound.
type negotiation struct {
	exchange *sasl.Exchange // the attempt under way; nil: none
	request  *loginRequest  // what goes with it; nil: by the profile of RFC 6120
	from     jid.JID        // that the client's last stream header claimed
	tries    int            // logins that failed
	rounds   int            // messages of the attempt under way
	binds    int            // bind requests that failed

	registrations int // requests for an account
	bytes         int // read before login
}

// open answers a stream header: with the server's own, and features or an error (RFC 6120 section 4.7).
func (st *stream) open(item *xmltok.Item) {
	to, toErr := jid.Parse(item.Attr("to"))
	from, fromErr := jid.Parse(item.Attr("from"))
	if fromErr != nil {
		from = jid.JID{}
	}
	served := toErr == nil && to.IsDomain() && config.IsDomain(st.run.srv.o.State, to.Domain)
	if served && st.domain == "" {
		st.out.Lock() // header may be reading it to end the stream
		st.domain = to.Domain
		st.out.Unlock()
	}
	st.greeted.Store(true)
	st.neg.from = from
	st.lang = language(item.Lang())
	head := st.header(item, from)
	if cond, text := st.refuseHeader(item, to, served); cond != "" {
		st.write(head)
		st.end(cond, text, nil)
		return
	}
	if host := st.run.srv.redirect.Load(); st.secure && st.phase == phaseHeader && st.user.IsZero() && host != nil && *host != "" {
		st.write(head)
		st.end(stanza.StreamSeeOtherHost, *host, nil)
		return
	}
	st.write(st.features(head))
	st.deadline.Store(st.began.Add(st.run.srv.o.Live.Duration(setLoginTimeout)).UnixNano())
}

// maxLanguage is the longest language tag that a client's stream may have, in bytes (RFC 5646 section 4.4.1).
const maxLanguage = 35

// language returns a language tag as the stream keeps it; none if it is too long to be one.
func language(tag string) string {
	switch {
	case tag == "en":
		return "en" // most clients' costs no memory
	case len(tag) > maxLanguage:
		return ""
	}
	return strings.Clone(tag)
}

// refuseHeader says what is wrong with a stream header; "" if nothing is.
func (st *stream) refuseHeader(item *xmltok.Item, to jid.JID, served bool) (stanza.StreamCondition, string) {
	switch {
	case st.phase != phaseHeader:
		return stanza.StreamNotAuthorized, "no new stream header is due"
	case item.Local != "stream":
		return stanza.StreamBadFormat, "the stream header is <stream/>"
	case item.Space != stanza.NSStream:
		return stanza.StreamInvalidNamespace, "the stream header's namespace is " + stanza.NSStream
	case item.Default != stanza.NSClient && item.Default != stanza.NSStream:
		return stanza.StreamInvalidNamespace, "the content namespace is " + stanza.NSClient
	case !served:
		return stanza.StreamHostUnknown, "this server does not serve that domain"
	case to.Domain != st.domain:
		return stanza.StreamHostUnknown, "the domain of a connection cannot change"
	case st.secure && !st.neg.from.IsZero() && st.neg.from.Domain != to.Domain: // XEP-0388 section 2.1
		return stanza.StreamInvalidFrom, "you belong to another domain"
	case !versionOne(item.Attr("version")):
		return stanza.StreamUnsupportedVersion, "version 1.0 is supported"
	case !st.user.IsZero() && !st.neg.from.IsZero() && st.neg.from.Bare() != st.user:
		return stanza.StreamInvalidFrom, "you logged in as somebody else"
	}
	return "", ""
}

// versionOne reports whether the version is 1.0 or later (RFC 6120 section 4.7.5).
func versionOne(v string) bool {
	major, _, ok := strings.Cut(v, ".")
	n, err := strconv.Atoi(major)
	return ok && err == nil && n >= 1
}

// header returns the server's stream header; item is nil if the client has sent none.
func (st *stream) header(item *xmltok.Item, to jid.JID) []byte {
	st.out.Lock()
	from := st.domain
	st.out.Unlock()
	if from == "" {
		if all := config.Domains(st.run.srv.o.State); len(all) > 0 {
			from = all[0]
		}
	}
	id := make([]byte, streamIDBytes)
	rand.Read(id)
	b := make([]byte, 0, 1024)
	b = append(b, `<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='`+stanza.NSStream+`' id='`...)
	b = append(b, base64.RawURLEncoding.EncodeToString(id)...)
	b = append(append(b, `' from="`...), from...)
	if !to.IsZero() {
		b = append(append(b, `" to="`...), xmltok.AppendAttr(nil, to.String())...)
	}
	return append(b, `" version='1.0' xml:lang='en'>`...)
}

// features appends the stream features of the stream's stage, and moves on to it.
func (st *stream) features(b []byte) []byte {
	b = append(b, "<stream:features>"...)
	switch {
	case !st.secure:
		st.phase = phasePlain
		b = append(b, `<starttls xmlns='`+stanza.NSTLS+`'><required/></starttls>`...)
	case st.user.IsZero():
		st.phase = phaseLogin
		b = st.loginFeatures(b)
	default:
		st.phase = phaseBind
		b = append(b, `<bind xmlns='`+stanza.NSBind+`'/><session xmlns='`+stanza.NSSession+`'><optional/></session>`...)
		b = st.sessionFeatures(append(b, featureSM...))
	}
	return append(b, "</stream:features>"...)
}

const featureSM = `<sm xmlns='` + stanza.NSSM + `'/>`

// sessionFeatures appends what a session can use.
func (st *stream) sessionFeatures(b []byte) []byte {
	b = append(b, `<csi xmlns='`+stanza.NSCSI+`'/>`...)
	b = append(b, st.run.srv.o.Router.StreamFeatures()...)
	return st.limitsFeature(b, MaxStanzaBytes)
}

func (st *stream) loginFeatures(b []byte) []byte {
	p := st.peer()
	b = append(b, `<mechanisms xmlns='`+stanza.NSSASL+`'>`...)
	for _, m := range sasl.Mechanisms(p) {
		b = append(append(append(b, "<mechanism>"...), m...), "</mechanism>"...)
	}
	b = append(b, "</mechanisms>"...)
	b = st.authenticationFeature(b, p)
	if len(p.Kinds) > 0 {
		b = append(b, `<sasl-channel-binding xmlns='`+stanza.NSSASLCB+`'>`...)
		for _, k := range p.Kinds {
			b = append(append(append(b, "<channel-binding type='"...), k...), "'/>"...)
		}
		b = append(b, "</sasl-channel-binding>"...)
	}
	if st.registers() {
		b = append(b, `<register xmlns='`+stanza.NSRegisterFeat+`'/>`...)
	}
	return st.limitsFeature(b, xmltok.UnauthenticatedMaxBytes)
}

// limitsFeature appends the stream's limits (XEP-0478).
func (st *stream) limitsFeature(b []byte, maxBytes int) []byte {
	b = append(b, `<limits xmlns='`+stanza.NSStreamLimits+`'><max-bytes>`...)
	b = strconv.AppendInt(b, int64(maxBytes), 10)
	b = append(b, "</max-bytes><idle-seconds>"...)
	idle := st.run.srv.o.Live.Duration(setIdleTimeout) + st.run.srv.o.Live.Duration(setProbeTimeout)
	b = strconv.AppendInt(b, int64(idle/time.Second), 10)
	return append(b, "</idle-seconds></limits>"...)
}

// handlePlain takes what a client sends before TLS: nothing but the request for it.
func (st *stream) handlePlain(item *xmltok.Item) verdict {
	if item.Space != stanza.NSTLS || item.Local != "starttls" {
		st.end(stanza.StreamPolicyViolation, "TLS is required first", nil)
		return goOn
	}
	if st.run.turns.full(st.run.turnLimits()) {
		st.run.srv.counters.refuse(refusedQueue)
		st.end(stanza.StreamResourceConstraint, "too many clients log in; try again in a moment", nil)
		return goOn
	}
	st.out.Lock()
	defer st.out.Unlock()
	if _, err := st.conn.Write([]byte(`<proceed xmlns='` + stanza.NSTLS + `'/>`)); err != nil {
		st.kill()
	}
	st.mute = true
	return startTLS
}

// handshake negotiates TLS and begins the stream anew: nothing said before counts but the domain. False if it failed.
func (st *stream) handshake() bool {
	st.out.Lock()
	st.mute = true
	st.out.Unlock()
	conf := st.run.srv.startTLS
	if st.direct {
		conf = st.run.srv.directTLS
	}
	st.wire.turn = &turn{st: st}
	t := tls.Server(st.wire, conf)
	if err := t.Handshake(); err != nil {
		st.run.srv.counters.tlsFailed.Add(1)
		return false
	}
	st.out.Lock()
	defer st.out.Unlock()
	st.conn, st.mute = t, false
	st.secure = true
	st.greeted.Store(false)
	st.restart(st.run.srv.before)
	return !st.ending.Load()
}

// restart awaits a new stream header.
func (st *stream) restart(o *xmltok.Options) {
	st.phase = phaseHeader
	st.dec.SetOptions(o)
	st.dec.Reset()
}

// publicText returns what may be said about an error in a stream error.
func publicText(err error) string {
	if fault.CodeOf(err) == fault.Internal {
		return ""
	}
	return fault.Public(err)
}
