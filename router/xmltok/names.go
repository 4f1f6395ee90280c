package xmltok

import (
	"encoding/xml"
	"strings"
	"unicode/utf8"
)

const (
	nsClient = "jabber:client"
	nsStream = "http://etherx.jabber.org/streams"
	nsXML    = "http://www.w3.org/XML/1998/namespace"
	nsXMLNS  = "http://www.w3.org/2000/xmlns/"
)

// known holds the strings that nearly all traffic consists of, so that reading them allocates nothing.
var known = func() map[string]string {
	m := map[string]string{}
	for _, s := range strings.Fields(`jabber:client jabber:server http://etherx.jabber.org/streams
		http://www.w3.org/XML/1998/namespace jabber:component:accept
		urn:ietf:params:xml:ns:xmpp-streams urn:ietf:params:xml:ns:xmpp-stanzas urn:ietf:params:xml:ns:xmpp-tls
		urn:ietf:params:xml:ns:xmpp-sasl urn:ietf:params:xml:ns:xmpp-bind urn:ietf:params:xml:ns:xmpp-session
		urn:ietf:params:xml:ns:xmpp-framing jabber:iq:roster urn:xmpp:features:rosterver
		http://jabber.org/protocol/disco#info http://jabber.org/protocol/disco#items http://jabber.org/protocol/caps
		urn:xmpp:carbons:2 urn:xmpp:forward:0 urn:xmpp:delay jabber:x:delay urn:xmpp:blocking urn:xmpp:sm:3
		urn:xmpp:csi:0 urn:xmpp:ping jabber:iq:version urn:xmpp:time jabber:iq:last jabber:iq:private vcard-temp
		vcard-temp:x:update http://jabber.org/protocol/commands jabber:x:data jabber:x:oob jabber:iq:register
		urn:xmpp:hints urn:xmpp:receipts http://jabber.org/protocol/chatstates urn:xmpp:chat-markers:0
		urn:xmpp:message-correct:0 urn:xmpp:attention:0 http://jabber.org/protocol/nick urn:xmpp:sid:0
		urn:xmpp:occupant-id:0 urn:xmpp:mam:2 http://jabber.org/protocol/rsm http://jabber.org/protocol/muc
		http://jabber.org/protocol/muc#user http://jabber.org/protocol/pubsub http://jabber.org/protocol/pubsub#event
		urn:xmpp:idle:1 http://jabber.org/protocol/address urn:xmpp:http:upload:0 urn:xmpp:reply:0
		urn:xmpp:fallback:0 urn:xmpp:reactions:0 urn:xmpp:eme:0 eu.siacs.conversations.axolotl
		http://jabber.org/protocol/xhtml-im http://www.w3.org/1999/xhtml
		stream:stream stream message presence iq body subject thread active composing paused inactive gone
		request received displayed markable origin-id stanza-id x c query item items show status priority ping
		r a enable enabled resume auth response starttls bind resource session error text delay sent forwarded
		private enable disable store no-store no-copy no-permanent-store vCard photo replace fallback reply
		html data block unblock blocklist idle nick pubsub publish command encryption encrypted event
		type id from to lang version xmlns by stamp node ver hash ext jid name xml db`) {
		m[s] = s
	}
	return m
}()

const numSlots = 1 << 10 // several times the known strings, so that few share a slot

// slots finds most of known faster than a map does: each string by its slot, as far as that is free.
var slots = func() (t [numSlots]string) {
	for s := range known {
		if i := slot([]byte(s)); t[i] == "" || s < t[i] { // not by the order of the map
			t[i] = s
		}
	}
	return t
}()

func slot(b []byte) int {
	n := len(b)
	return (n*37 + int(b[0])*3 + int(b[n/2])*61 + int(b[n-1])*131) & (numSlots - 1)
}

// intern returns b as a string, without allocating for known ones.
func intern(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s := slots[slot(b)]; s == string(b) {
		return s
	}
	if s, ok := known[string(b)]; ok {
		return s
	}
	return string(b)
}

// Classes of bytes in names.
const (
	nameRest  = 1 << iota // digit, - or .: not at the start
	nameStart             // letter or _
	nameColon
	nameWide // part of a character beyond ASCII
)

var nameClass = func() (t [256]uint8) {
	for c := range t {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
			t[c] = nameStart
		case '0' <= c && c <= '9', c == '-', c == '.':
			t[c] = nameRest
		case c == ':':
			t[c] = nameColon
		case c >= utf8.RuneSelf:
			t[c] = nameWide
		}
	}
	return t
}()

// qname reads the qualified name at b[i:]. colon is the offset of its colon within the name, or -1.
func qname(b []byte, i, maxLen int) (end, colon int, err error) {
	start, seen := i, uint8(0)
	colon = -1
	for i < len(b) && nameClass[b[i]]&(nameStart|nameRest) != 0 {
		i++
	}
	if i < len(b) && nameClass[b[i]] == 0 && i > start && i-start <= maxLen && nameClass[b[start]] == nameStart {
		return i, -1, nil // as nearly always
	}
	for i = start; i < len(b); i++ {
		k := nameClass[b[i]]
		if k == 0 || i-start > maxLen {
			break
		}
		if k == nameColon {
			if colon >= 0 {
				return 0, 0, ErrNotWellFormed.because("a name with two colons")
			}
			colon = i - start
		}
		seen |= k
	}
	if i-start > maxLen {
		return 0, 0, ErrTooLarge.because("name too long")
	}
	if i == len(b) {
		return 0, 0, errMore
	}
	if !validName(b[start:i], colon, seen) {
		return 0, 0, ErrNotWellFormed.because("malformed name")
	}
	return i, colon, nil
}

// validName checks what the classes of the bytes alone do not: that each part starts as it must.
func validName(name []byte, colon int, seen uint8) bool {
	if len(name) == 0 || colon == 0 || colon == len(name)-1 {
		return false
	}
	const starts = nameStart | nameWide
	if nameClass[name[0]]&starts == 0 || colon > 0 && nameClass[name[colon+1]]&starts == 0 {
		return false
	}
	return seen&nameWide == 0 || wideName(string(name[:max(colon, 0)])) && wideName(string(name[colon+1:]))
}

// wideName checks a name beyond ASCII, which nearly never occurs, by the tables of the
// standard library: XML 1.0 fourth edition, the stricter ones, so that every parser agrees.
func wideName(s string) bool {
	if s == "" {
		return true
	}
	tok, err := xml.NewDecoder(strings.NewReader("<" + s + "/>")).RawToken()
	start, ok := tok.(xml.StartElement)
	return err == nil && ok && start.Name.Local == s && start.Name.Space == ""
}

// Intern returns b as a string, without allocating for the names and namespaces that most traffic consists of.
func Intern(b []byte) string { return intern(b) }
