package message

import (
	"testing"

	"muster/router/stanza"
)

func TestPassing(t *testing.T) {
	var l passing
	small := &stanza.Packet{Kind: stanza.KindMessage, Inner: []byte("<body>a</body>")}
	l.put(7, small)
	if got := l.take(7 + passingSlots); got != nil {
		t.Error("another message's stanza was taken")
	}
	if got := l.take(7); got != small {
		t.Errorf("the stanza is not there: %v", got)
	}
	if got := l.take(7); got != nil {
		t.Error("it was taken twice")
	}
	l.put(7, &stanza.Packet{Kind: stanza.KindMessage, Inner: make([]byte, passingSize)})
	if got := l.take(7); got != nil {
		t.Error("a large stanza was remembered")
	}
	l.put(8, small)
	l.put(8+passingSlots, small)
	if l.take(8) != nil || l.take(8+passingSlots) != small {
		t.Error("a later stanza did not take the place of an earlier one")
	}
}
