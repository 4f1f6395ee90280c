//go:build crash && linux

package crashtest

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"muster/edges/http/adminapi"
)

// registers are the settings that the load changes; barrier is written before each read.
var registers = []string{"contact.sales", "contact.support"}

const barrier = "contact.feedback"

// operation is one write or read of a register.
type operation struct {
	node      *node
	register  string
	value     string // written or read
	read      bool
	call, ret time.Time
	index     uint64 // of a confirmed write, in the log
	err       error
}

// journal holds every operation on registers.
type journal struct {
	mu  sync.Mutex
	ops []operation
}

// serial makes values that no other write of this process has.
var serial atomic.Int64

func (j *journal) add(o operation) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ops = append(j.ops, o)
}

// value makes a value that no other write has.
func (j *journal) value() string { return fmt.Sprintf("mailto:w%d@example.test", serial.Add(1)) }

// run writes and reads through one node's administrative socket until ctx ends.
func (j *journal) run(ctx context.Context, n *node, step time.Duration) {
	for i := 0; ctx.Err() == nil; i++ {
		register := registers[i/2%len(registers)]
		if i%2 == 0 {
			j.write(n, register)
		} else {
			j.readBack(n, register)
		}
		select {
		case <-ctx.Done():
		case <-time.After(step):
		}
	}
}

func (j *journal) write(n *node, register string) {
	o := operation{node: n, register: register, value: j.value(), call: time.Now()}
	o.index, o.err = change(n, register, o.value)
	o.ret = time.Now()
	j.add(o)
}

func change(n *node, register, value string) (uint64, error) {
	var done adminapi.Done
	err := n.call(replyTime, http.MethodPut, "/settings/"+register, adminapi.SettingChange{Value: value}, &done)
	return done.Index, err
}

// readBack reads what the log says: a change of another setting first makes
// sure that this node has applied all that was confirmed before the read began.
func (j *journal) readBack(n *node, register string) {
	o := operation{node: n, register: register, read: true, call: time.Now()}
	value := j.value()
	b := operation{node: n, register: barrier, value: value, call: o.call}
	b.index, b.err = change(n, barrier, value)
	b.ret = time.Now()
	j.add(b)
	if b.err != nil {
		return
	}
	o.value, o.err = n.setting(replyTime, register)
	o.ret = time.Now()
	if o.err == nil {
		j.add(o)
	}
}

// counts returns the confirmed writes and those whose outcome is unknown.
func (j *journal) counts() (confirmed, unknown int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, o := range j.ops {
		switch {
		case o.read:
		case o.err == nil:
			confirmed++
		default:
			unknown++
		}
	}
	return confirmed, unknown
}

// input and output of the checker's model.
type registerInput struct {
	register, value string
	read            bool
}

var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byName := map[string][]porcupine.Operation{}
		for _, o := range history {
			name := o.Input.(registerInput).register
			byName[name] = append(byName[name], o)
		}
		var out [][]porcupine.Operation
		for _, ops := range byName {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return nil }, // whatever it was before
	Step: func(state, input, output any) (bool, any) {
		in := input.(registerInput)
		if in.read {
			return state == nil || output == state, output
		}
		return true, in.value
	},
}

// linearizable checks the history. A write whose outcome is unknown may take
// effect at any later time; one that nobody read cannot matter and is left out.
func (j *journal) linearizable() porcupine.CheckResult {
	j.mu.Lock()
	defer j.mu.Unlock()
	seen := map[string]bool{}
	for _, o := range j.ops {
		if o.read {
			seen[o.value] = true
		}
	}
	var history []porcupine.Operation
	for i, o := range j.ops {
		if o.err != nil && !seen[o.value] {
			continue
		}
		op := porcupine.Operation{ClientId: i, Input: registerInput{o.register, o.value, o.read}, Call: o.call.UnixNano(), Return: o.ret.UnixNano()}
		if o.read {
			op.Output = o.value
		}
		if o.err != nil {
			op.Return = math.MaxInt64
		}
		history = append(history, op)
	}
	return porcupine.CheckOperationsTimeout(registerModel, history, 30*time.Second)
}

// misordered returns confirmed writes whose log index is not above that of a
// write that was confirmed before they began: what a leader of the past would give.
func (j *journal) misordered() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var done []operation
	for _, o := range j.ops {
		if !o.read && o.err == nil {
			done = append(done, o)
		}
	}
	byCall, byReturn := slices.Clone(done), done
	slices.SortFunc(byCall, func(a, b operation) int { return a.call.Compare(b.call) })
	slices.SortFunc(byReturn, func(a, b operation) int { return a.ret.Compare(b.ret) })
	var bad []string
	var high uint64
	next := 0
	for _, o := range byCall {
		for ; next < len(byReturn) && byReturn[next].ret.Before(o.call); next++ {
			high = max(high, byReturn[next].index)
		}
		if o.index <= high {
			bad = append(bad, fmt.Sprintf("%s at %s got index %d, after %d was confirmed", o.value, o.node.name, o.index, high))
		}
	}
	return bad
}

// staleFrom counts the writes begun at a paused node while it was paused and
// confirmed with an index that the log had passed before it went on.
func (j *journal) staleFrom(paused *node, from, until time.Time) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	var high uint64
	for _, o := range j.ops {
		if !o.read && o.err == nil && o.node != paused && o.ret.Before(until) {
			high = max(high, o.index)
		}
	}
	n := 0
	for _, o := range j.ops {
		if !o.read && o.err == nil && o.node == paused && o.call.After(from) && o.call.Before(until) && o.index <= high {
			n++
		}
	}
	return n
}

// gap returns how long after a moment the first write begun after it was confirmed at one of nodes.
func (j *journal) gap(nodes []*node, at time.Time) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := time.Duration(-1)
	for _, o := range j.ops {
		if d := o.ret.Sub(at); !o.read && o.err == nil && o.call.After(at) && slices.Contains(nodes, o.node) && (first < 0 || d < first) {
			first = d
		}
	}
	return first
}

// lost compares what every node says now with the last confirmed write of each register.
func (j *journal) lost(nodes []*node) []string {
	var out []string
	for _, register := range append(slices.Clone(registers), barrier) {
		last, later := j.last(register)
		for _, n := range nodes {
			got, err := n.setting(replyTime, register)
			if err != nil {
				out = append(out, fmt.Sprintf("%s at %s: %v", register, n.name, err))
			} else if last != "" && got != last && !later[got] {
				out = append(out, fmt.Sprintf("%s is %s at %s, confirmed was %s", register, got, n.name, last))
			}
		}
	}
	return out
}

// last returns the confirmed write with the highest index, and the values whose outcome is unknown.
func (j *journal) last(register string) (value string, unknown map[string]bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	unknown = map[string]bool{}
	var index uint64
	for _, o := range j.ops {
		switch {
		case o.read || o.register != register:
		case o.err != nil:
			unknown[o.value] = true
		case o.index > index:
			value, index = o.value, o.index
		}
	}
	return value, unknown
}

// slots is how many contacts of its roster a person's load changes in turn.
const slots = 40

// change of one contact.
type contactChange struct {
	name      string
	confirmed bool
}

// rosterLoad changes one person's contacts and holds what was confirmed.
type rosterLoad struct {
	p      *person
	number int64 // of this load: its contacts are its own

	mu                 sync.Mutex
	history            map[string][]contactChange // by contact
	serial             int
	fresh              [slots]int // which contact each slot uses; a new one after an unknown outcome
	confirmed, unknown int
	slowest            time.Duration
}

func newRosterLoad(p *person) *rosterLoad {
	return &rosterLoad{p: p, number: serial.Add(1), history: map[string][]contactChange{}}
}

// run changes contacts until ctx ends, a step apart.
func (l *rosterLoad) run(ctx context.Context, step time.Duration) {
	for i := 0; ctx.Err() == nil; i++ {
		if l.p.online() {
			l.set(i % slots)
		}
		select {
		case <-ctx.Done():
		case <-time.After(step):
		}
	}
}

func (l *rosterLoad) set(slot int) {
	l.mu.Lock()
	l.serial++
	name := fmt.Sprintf("v%d", l.serial)
	contact := fmt.Sprintf("c%d-%d-%d@elsewhere.test", l.number, slot, l.fresh[slot])
	at := len(l.history[contact])
	l.history[contact] = append(l.history[contact], contactChange{name: name})
	l.mu.Unlock()
	begun := time.Now()
	answer, err := l.p.iq("set", `<query xmlns='jabber:iq:roster'><item jid='`+contact+`' name='`+name+`'/></query>`)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || refusal(answer) != "" {
		l.unknown++
		l.fresh[slot]++
		return
	}
	l.confirmed++
	l.slowest = cmp.Or(max(l.slowest, time.Since(begun)), 0)
	l.history[contact][at].confirmed = true
}

// lost compares a roster with what was confirmed.
func (l *rosterLoad) lost(where string, roster map[string]string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for contact, changes := range l.history {
		last := -1
		for i, c := range changes {
			if c.confirmed {
				last = i
			}
		}
		got, there := roster[contact]
		ok := last < 0 && !there
		for _, c := range changes[max(last, 0):] {
			ok = ok || there && c.name == got
		}
		if !ok {
			out = append(out, fmt.Sprintf("%s: %s of %s is %q, the last of %v confirmed", where, contact, l.p.user.JID(), got, changes))
		}
	}
	return out
}
