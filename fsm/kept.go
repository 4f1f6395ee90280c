package fsm

import (
	"encoding/binary"
	"fmt"
	"math"

	"muster/internal/fault"
)

// kept returns the result of an earlier entry with the same idempotency key.
func (tx *Tx) kept(key string) (Result, bool) {
	if key == "" {
		return Result{}, false
	}
	b, ok := tx.Get(keptKeys, []byte(key))
	if !ok || len(b) < 11 {
		return Result{}, false
	}
	// index (8), code (1), length of text (2), text, value
	res := Result{Index: binary.BigEndian.Uint64(b)}
	n := int(binary.BigEndian.Uint16(b[9:]))
	if code := fault.Code(b[8]); code != 0 {
		res.Err = fault.New(code, "log.propose", "", string(b[11:11+n]))
	}
	if rest := b[11+n:]; len(rest) > 0 {
		res.Value = rest
	}
	return res, true
}

// keep remembers an entry's result under its key and forgets the oldest ones.
func (tx *Tx) keep(key string, ordinal int, res Result) {
	if key == "" {
		return
	}
	var text string
	if res.Err != nil {
		text = fault.Public(res.Err)
		text = text[:min(len(text), math.MaxUint16)]
	}
	b := binary.BigEndian.AppendUint64(nil, res.Index)
	b = append(b, byte(fault.CodeOf(res.Err)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	b = append(append(b, text...), res.Value...)
	tx.Put(keptKeys, []byte(key), b)
	tx.Insert(keptOrder, fmt.Appendf(nil, "%016x.%08x", tx.index, ordinal), []byte(key))
	tx.forget()
}

// forget drops what lies more than MaxKept indexes back, a few rows at a time.
func (tx *Tx) forget() {
	if tx.index <= MaxKept {
		return
	}
	limit := fmt.Sprintf("%016x", tx.index-MaxKept)
	type old struct{ order, key []byte }
	var olds []old
	tx.Scan(keptOrder, nil, nil, func(k, v []byte) bool {
		if string(k) >= limit || len(olds) == 4 {
			return false
		}
		olds = append(olds, old{append([]byte(nil), k...), append([]byte(nil), v...)})
		return true
	})
	for _, o := range olds {
		tx.Delete(keptOrder, o.order)
		tx.Delete(keptKeys, o.key)
	}
}
