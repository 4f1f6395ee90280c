//go:build chaos && linux

package crashtest

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"muster/cmd/musterbench/wire"
)

// parcel is one numbered message, with all that became of it.
type parcel struct {
	id       string // of the stanza, and its origin-id (XEP-0359)
	from, to *device
	n        int // counts from one sender to one recipient

	sent    time.Time // for the first time
	resent  int
	acked   time.Time // when the server had taken it over (XEP-0198)
	bounced time.Time
	why     string         // condition of the bounce
	again   bool           // the client sent it again though it had bounced
	got     map[string]int // deliveries by stanza-id
	arrived time.Time      // first of them
	garbled bool           // one was not what was sent
}

// lost says that the server took the message over and nobody heard of it again.
func (p *parcel) lost() bool { return !p.acked.IsZero() && p.bounced.IsZero() && len(p.got) == 0 }

// pending says that nobody can say yet what became of it.
func (p *parcel) pending() bool { return p.bounced.IsZero() && (p.acked.IsZero() || len(p.got) == 0) }

type route struct{ from, to *device }

// books hold every message of a case.
type books struct {
	tag string

	mu        sync.Mutex
	parcels   map[string]*parcel
	next      map[route]int
	latest    map[route]*parcel // of those that have arrived, the one with the highest number
	reordered []string
}

func newBooks(tag string) *books {
	return &books{tag: tag, parcels: map[string]*parcel{}, next: map[route]int{}, latest: map[route]*parcel{}}
}

// write makes the next message from one device to another.
func (b *books) write(from, to *device) *parcel {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := route{from, to}
	b.next[r]++
	p := &parcel{id: fmt.Sprintf("%s-%s-%s-%d", b.tag, from.user.Local, to.user.Local, b.next[r]), from: from, to: to, n: b.next[r],
		sent: time.Now(), got: map[string]int{}}
	b.parcels[p.id] = p
	return p
}

// body is the message's text.
func (p *parcel) body() string {
	const text = "The quick brown fox jumps over the lazy dog, and a second one after it. "
	return "<body>" + text + strconv.Itoa(p.n) + "</body>"
}

// stanza is the message as it is sent, each time the same.
func (p *parcel) stanza() []byte {
	return fmt.Appendf(nil, `<message type='chat' id='%s' to='%s'>%s<origin-id xmlns='urn:xmpp:sid:0' id='%s'/></message>`,
		p.id, p.to.user.JID(), p.body(), p.id)
}

func (b *books) note(p *parcel, fn func(p *parcel)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn(p)
}

// receive takes a message that came to d's client.
func (b *books) receive(d *device, frame []byte) {
	id, bounce := string(wire.Attr(frame, "id")), string(wire.Attr(frame, "type")) == "error"
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.parcels[id]
	switch now := time.Now(); {
	case p == nil: // of an earlier case
	case bounce && d == p.from:
		p.bounced, p.why = now, condition(frame)
	case !bounce && d == p.to:
		p.garbled = p.garbled || !bytes.Contains(frame, []byte(p.body()))
		b.deliver(p, stanzaID(frame), now)
	}
}

func (b *books) deliver(p *parcel, sid string, now time.Time) {
	if p.got[sid]++; len(p.got) > 1 || p.got[sid] > 1 {
		return // order is that of first deliveries
	}
	p.arrived = now
	r := route{p.from, p.to}
	switch last := b.latest[r]; {
	case last == nil || last.n < p.n:
		b.latest[r] = p
	default:
		b.reordered = append(b.reordered, fmt.Sprintf("%s after %s (sent %s and %s, resent %d and %d times, arrived %s and %s)", p.id, last.id,
			p.sent.Format(clock), last.sent.Format(clock), p.resent, last.resent, p.arrived.Format(clock), last.arrived.Format(clock)))
	}
}

// clock is how moments are shown.
const clock = "15:04:05.000"

// condition returns the condition of an error stanza.
func condition(frame []byte) string {
	const ns = "urn:ietf:params:xml:ns:xmpp-stanzas"
	for part := range bytes.SplitSeq(frame, []byte("<")) {
		if bytes.Contains(part, []byte(ns)) && !bytes.HasPrefix(part, []byte("text")) {
			return string(bytes.TrimRight(part[:bytes.IndexAny(part, " >/")], "/"))
		}
	}
	return "error"
}

// stanzaID returns the id that the archive gave a message (XEP-0359), "" if it has none.
func stanzaID(frame []byte) string {
	if i := bytes.Index(frame, []byte("<stanza-id ")); i >= 0 {
		return string(wire.Attr(frame[i:], "id"))
	}
	return ""
}

// undecided counts the messages that something is still to become of.
func (b *books) undecided() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, p := range b.parcels {
		if p.pending() {
			n++
		}
	}
	return n
}

// missing counts those that were taken over and have not arrived.
func (b *books) missing() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, p := range b.parcels {
		if p.lost() {
			n++
		}
	}
	return n
}

// account is the sum of the books.
type account struct {
	sent, acked, lost int
	repeated          int // delivered more than once with the same stanza-id
	twice             int // kept more than once: delivered with different stanza-ids, or again without one
	reordered         int
	bounced, both     int           // and of these delivered too, though the client did not send them again
	again             int           // bounced, sent again by the client, and delivered
	garbled           int           // not what was sent
	unknown           int           // neither acknowledged nor bounced at the end
	p99, wait         time.Duration // 99th percentile and the longest from sending to acknowledgement or bounce
	gap               time.Duration // the longest without any acknowledgement while messages were under way
	reasons           map[string]int
	problems          []string
}

func (b *books) sum() account {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := account{reordered: len(b.reordered), problems: slices.Clone(b.reordered), reasons: map[string]int{}}
	var acks []time.Time
	var waits []time.Duration
	for _, p := range b.parcels {
		a.add(p)
		if !p.acked.IsZero() {
			acks = append(acks, p.acked)
			waits = append(waits, p.acked.Sub(p.sent))
		}
	}
	if slices.Sort(waits); len(waits) > 0 {
		a.p99 = waits[len(waits)*99/100]
	}
	slices.SortFunc(acks, time.Time.Compare)
	for i := 1; i < len(acks); i++ {
		a.gap = max(a.gap, acks[i].Sub(acks[i-1]))
	}
	sort.Strings(a.problems)
	return a
}

// maxProblems is how many are told.
const maxProblems = 10

func (a *account) add(p *parcel) {
	a.sent++
	switch {
	case !p.bounced.IsZero():
		a.bounced++
		a.reasons[p.why]++
		a.wait = max(a.wait, p.bounced.Sub(p.sent))
		switch {
		case len(p.got) == 0:
		case p.again:
			a.again++
		default:
			a.both++
			a.problem(p, "bounced and delivered")
		}
	case !p.acked.IsZero():
		a.acked++
		a.wait = max(a.wait, p.acked.Sub(p.sent))
	default:
		a.unknown++
		a.problem(p, "without an outcome")
	}
	if p.garbled {
		a.garbled++
		a.problem(p, "garbled")
	}
	if p.lost() {
		a.lost++
		a.problem(p, "lost")
	}
	switch n := p.got[""]; {
	case len(p.got) > 1 || n > 1:
		a.twice++
		a.problem(p, "kept more than once")
	default:
		for _, n := range p.got {
			if n > 1 {
				a.repeated++
			}
		}
	}
}

func (a *account) problem(p *parcel, what string) {
	when := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return t.Format(clock)
	}
	if len(a.problems) > maxProblems {
		return
	}
	a.problems = append(a.problems, what+": "+p.id+" sent "+when(p.sent)+", resent "+strconv.Itoa(p.resent)+" times, acknowledged "+when(p.acked)+
		", bounced "+when(p.bounced)+" "+p.why+", arrived "+when(p.arrived)+fmt.Sprint(" ", p.got)+
		", sender's streams: "+p.from.story()+"; recipient's: "+p.to.story())
}
