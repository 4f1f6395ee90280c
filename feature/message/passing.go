package message

import (
	"sync/atomic"

	"muster/router/stanza"
)

// passing remembers the stanzas that this node had written to the log a moment
// ago: when they come back from it, most of them need not be parsed again. It
// only saves work: what it does not have is parsed.
type passing struct {
	slots [passingSlots]atomic.Pointer[passed]
}

const (
	passingSlots = 512     // more than are under way at a time on a busy node
	passingSize  = 4 << 10 // bytes of the largest stanza that is remembered
)

// passed is a stanza under the random id of its sender's copy, which no other message has.
type passed struct {
	id uint64
	p  *stanza.Packet
}

func (l *passing) put(id uint64, p *stanza.Packet) {
	if p.Size() <= passingSize {
		l.slots[id%passingSlots].Store(&passed{id, p})
	}
}

// take returns the stanza of that id and forgets it; nil if it is not there.
func (l *passing) take(id uint64) *stanza.Packet {
	slot := &l.slots[id%passingSlots]
	if have := slot.Load(); have != nil && have.id == id && slot.CompareAndSwap(have, nil) {
		return have.p
	}
	return nil
}
