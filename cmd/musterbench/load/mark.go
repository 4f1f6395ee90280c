package load

import (
	"bytes"
	"strconv"
	"time"
)

// A mark is what a benchmark stanza carries: when it was sent, its number, and
// who sent it. It has a fixed width so that it can be written in place.
const (
	timeDigits     = 16
	sequenceDigits = 10
	senderDigits   = 6
	markSize       = 1 + timeDigits + 1 + sequenceDigits + 1 + senderDigits
)

// markSign starts a mark; no server sends it on its own.
const markSign = '~'

// mark is a decoded mark.
type mark struct {
	sent     time.Duration // since the run's epoch
	sequence uint64
	sender   int
}

// put writes m into b, which has markSize bytes.
func (m mark) put(b []byte) {
	b[0] = markSign
	digits(b[1:1+timeDigits], uint64(m.sent))
	b[1+timeDigits] = ' '
	rest := b[2+timeDigits:]
	digits(rest[:sequenceDigits], m.sequence)
	rest[sequenceDigits] = ' '
	digits(rest[sequenceDigits+1:sequenceDigits+1+senderDigits], uint64(m.sender))
}

// digits writes v with leading zeros, filling b.
func digits(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
}

// findMark returns the first mark in frame.
func findMark(frame []byte) (mark, bool) {
	i := bytes.IndexByte(frame, markSign)
	if i < 0 || len(frame) < i+markSize {
		return mark{}, false
	}
	b := frame[i+1:]
	sent, err1 := strconv.ParseInt(string(b[:timeDigits]), 10, 64)
	b = b[timeDigits+1:]
	sequence, err2 := strconv.ParseUint(string(b[:sequenceDigits]), 10, 64)
	b = b[sequenceDigits+1:]
	sender, err3 := strconv.Atoi(string(b[:senderDigits]))
	if err1 != nil || err2 != nil || err3 != nil || sent < 0 || sender < 0 {
		return mark{}, false
	}
	return mark{sent: time.Duration(sent), sequence: sequence, sender: sender}, true
}
