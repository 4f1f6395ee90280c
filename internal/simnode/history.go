package simnode

import (
	"fmt"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"muster/internal/jid"
)

// History is what clients and operators were promised and what came of it.
type History struct {
	start time.Time

	mu         sync.Mutex
	nextOp     int
	ops        map[string][]*op // by key
	nextChat   int
	chats      map[string]*chat
	order      []*chat
	marks      []mark
	doubtful   int // messages with more or less than one outcome that a fault excuses
	violations []string
	refusals   map[string]int // by error text
}

// mark is a time at which something happened that can excuse a message's fate.
type mark struct {
	at   time.Time
	what event
	host string // of an isolation or a move
}

type event uint8

const (
	disruption event = iota // a process or a link changed its state
	death                   // a process died
	isolation               // a node was cut off, or declared down while it lived
	move                    // a node learned that another is over, or that it is isolated itself: homes move, links begin anew
)

// op is one use of a register: a write of value, or a read that saw it.
type op struct {
	id       int
	key      string
	value    string
	read     bool
	call     time.Time
	done     time.Time
	resolved bool
	ok       bool // confirmed; otherwise the outcome is unknown
}

// chat is one message that a client sent.
type chat struct {
	id      string
	seq     int
	from    *life
	to      jid.JID
	sent    time.Time
	refused bool // by Session.Receive: the server took no responsibility
	arrived []arrival
	errors  []time.Time
	acked   bool // the server said that it is done with it
	kept    int  // entries of it in the message log
	waiting bool // in the recipient's inbox, at the end
}

type arrival struct {
	at time.Time
	l  *life
}

func newHistory() *History {
	return &History{start: time.Now(), ops: map[string][]*op{}, chats: map[string]*chat{}, refusals: map[string]int{}}
}

// at renders a time as the trace does.
func (c *Cluster) at(t time.Time) string {
	return fmt.Sprintf("%.3f", t.Sub(c.History.start).Seconds())
}

// Violate notes that a promise was broken.
func (h *History) Violate(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.violations = append(h.violations, fmt.Sprintf(format, args...))
}

// Violations returns what was noted.
func (h *History) Violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.violations...)
}

func (h *History) mark(what event) { h.markHost(what, "") }

func (h *History) markHost(what event, host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.marks = append(h.marks, mark{time.Now(), what, host})
}

// had reports whether something happened between two times.
func (h *History) had(what event, from, to time.Time) bool {
	for _, m := range h.marks {
		if m.what == what && !m.at.Before(from) && !m.at.After(to) {
			return true
		}
	}
	return false
}

// hadOn reports whether something happened on a host between two times.
func (h *History) hadOn(host string, what event, from, to time.Time) bool {
	for _, m := range h.marks {
		if m.what == what && m.host == host && !m.at.Before(from) && !m.at.After(to) {
			return true
		}
	}
	return false
}

// number returns a number that nobody had before.
func (h *History) number() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextOp++
	return h.nextOp
}

func (h *History) begin(key, value string) *op {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextOp++
	o := &op{id: h.nextOp, key: key, value: value, call: time.Now()}
	h.ops[key] = append(h.ops[key], o)
	return o
}

func (h *History) end(o *op, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.done, o.ok, o.resolved = time.Now(), ok, true
}

// refused counts an error; the change may have been made all the same.
func (h *History) refused(o *op, _ *life, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusals[text]++
}

// saw notes a read that returned value.
func (h *History) saw(key, value string, call time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextOp++
	h.ops[key] = append(h.ops[key], &op{id: h.nextOp, key: key, value: value, read: true, call: call, done: time.Now(), resolved: true, ok: true})
}

// keys returns the registers that were written.
func (h *History) keys() (keys []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.ops {
		keys = append(keys, k)
	}
	return keys
}

func (h *History) chatSent(from *life, to jid.JID) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextChat++
	m := &chat{id: fmt.Sprint("m", h.nextChat), seq: h.nextChat, from: from, to: to, sent: time.Now()}
	h.chats[m.id] = m
	h.order = append(h.order, m)
	return m.id
}

func (h *History) chatAcked(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.chats[id]; m != nil {
		m.acked = true
	}
}

func (h *History) chatRefused(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.chats[id].refused = true
}

func (h *History) chatArrived(id string, l *life) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.chats[id]; m != nil {
		m.arrived = append(m.arrived, arrival{time.Now(), l})
	}
}

func (h *History) chatFailed(id string, l *life) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.chats[id]; m != nil && m.from == l {
		m.errors = append(m.errors, time.Now())
	}
}

// register is the model of one key: a write sets it, a read sees the last write.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		if o := input.(*op); !o.read {
			return true, o.value
		}
		return output.(string) == state.(string), state
	},
	DescribeOperation: func(input, _ any) string {
		o := input.(*op)
		if o.read {
			return "read " + o.value
		}
		return "write " + o.value
	},
	DescribeState: func(state any) string { return state.(string) },
}

// linearizable checks the history of one key. A write of unknown outcome may take effect at any time after its call, or never.
func (h *History) linearizable(key string) bool {
	h.mu.Lock()
	var history []porcupine.Operation
	read := map[string]bool{}
	for _, o := range h.ops[key] {
		read[o.value] = read[o.value] || o.read
	}
	end := time.Since(h.start).Nanoseconds() + 1
	for _, o := range h.ops[key] {
		if !o.ok && !read[o.value] {
			continue // values are unique: a write that nobody saw may be taken as not made, which keeps the check quick
		}
		ret := o.done.Sub(h.start).Nanoseconds()
		if !o.ok {
			ret = end + int64(o.id)
		}
		history = append(history, porcupine.Operation{ClientId: o.id, Input: o, Call: o.call.Sub(h.start).Nanoseconds(), Output: o.value, Return: ret})
	}
	h.mu.Unlock()
	return porcupine.CheckOperations(register, history)
}
