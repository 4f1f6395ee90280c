package link

import (
	"bufio"
	"encoding/binary"
	"io"

	"muster/internal/fault"
)

// Limits of the wire.
const (
	MaxFrame   = 1 << 20 // bytes of one frame, kind included: four times the largest client stanza
	maxExtra   = 4 << 10 // bytes of a hello's extra part
	bufferSize = 32 << 10
)

// The kinds of frames that the link itself uses. They are not numbered.
const (
	kindHello = 0
	kindAck   = 1 // received count
	kindPing  = 2 // sender's clock, received count
	kindPong  = 3 // the ping's clock, received count
)

// FirstKind is the lowest kind that the link's users may send.
const FirstKind = 16

const protocol = 1 // version of the frames; both sides must speak the same

// hello opens a connection: who speaks, and where the channel stands.
type hello struct {
	node        uint32
	incarnation uint64
	mine        uint64 // the sender's half of the channel's identity
	theirs      uint64 // the receiver's half as the sender knows it; 0: not at all
	base        uint64 // frames of the sender that it knows to be received: earlier ones are forgotten
	received    uint64 // frames of the receiver that the sender has
	extra       []byte // for the link's user
}

const helloSize = 1 + 4 + 5*8

func appendHello(b []byte, h *hello) []byte {
	b = append(b, protocol)
	b = binary.BigEndian.AppendUint32(b, h.node)
	for _, v := range []uint64{h.incarnation, h.mine, h.theirs, h.base, h.received} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(b, h.extra...)
}

func parseHello(b []byte) (*hello, error) {
	if len(b) < helloSize || len(b) > helloSize+maxExtra {
		return nil, malformed("hello of a wrong size")
	}
	if b[0] != protocol {
		return nil, fault.New(fault.NotSupported, "link.hello", "", "the other node speaks another version of the link protocol")
	}
	word := func(i int) uint64 { return binary.BigEndian.Uint64(b[5+8*i:]) }
	h := &hello{node: binary.BigEndian.Uint32(b[1:]), incarnation: word(0), mine: word(1), theirs: word(2), base: word(3), received: word(4)}
	h.extra = append([]byte(nil), b[helloSize:]...)
	if h.mine == 0 || h.theirs == 0 && h.received != 0 {
		return nil, malformed("hello contradicts itself")
	}
	return h, nil
}

func malformed(text string) error { return fault.New(fault.BadRequest, "link.read", "", text) }

// appendFrameHeader starts a frame whose payload has n bytes.
func appendFrameHeader(b []byte, kind byte, n int) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(n+1)), kind)
}

// readFrame reads one frame into buf, which it grows as needed. The payload is valid until the next call.
func readFrame(r *bufio.Reader, buf *[]byte) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fault.Wrap(err, fault.Unavailable, "link.read", "")
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame {
		return 0, nil, malformed("frame of a wrong size")
	}
	body := int(n) - 1
	if cap(*buf) < body {
		*buf = make([]byte, body)
	}
	payload = (*buf)[:body]
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fault.Wrap(err, fault.Unavailable, "link.read", "")
	}
	if cap(*buf) > 4*bufferSize {
		*buf = nil // one large frame does not hold its memory for ever
	}
	return head[4], payload, nil
}

// parseCounts reads the payload of an ack (one number), a ping or a pong (two).
func parseCounts(kind byte, b []byte) (clock, received uint64, err error) {
	switch {
	case kind == kindAck && len(b) == 8:
		return 0, binary.BigEndian.Uint64(b), nil
	case kind != kindAck && len(b) == 16:
		return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), nil
	}
	return 0, 0, malformed("count of a wrong size")
}
