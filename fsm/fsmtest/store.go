// Package fsmtest holds what tests of machines share: a store in memory and a
// rig that applies entries in order. Tests of state packages, features and
// simulations use it; the server never does.
package fsmtest

import (
	"bytes"
	"slices"
	"sort"
	"sync"

	"muster/fsm"
)

// Store is an fsm.Store in memory. It is safe for concurrent use; a snapshot copies everything.
type Store struct {
	mu   sync.RWMutex
	keys []string // sorted
	rows map[string][]byte
}

var _ fsm.Store = (*Store)(nil)

// NewStore returns an empty store.
func NewStore() *Store { return &Store{rows: map[string][]byte{}} }

// Get implements fsm.StoreReader.
func (s *Store) Get(key []byte) ([]byte, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.rows[string(key)]
	return bytes.Clone(v), ok, nil
}

// Scan implements fsm.StoreReader. Writes during the scan are not seen by it.
func (s *Store) Scan(lower, upper []byte, fn func(key, value []byte) bool) error {
	for _, p := range s.between(lower, upper) {
		if !fn([]byte(p.k), bytes.Clone(p.v)) {
			break
		}
	}
	return nil
}

// ScanBack implements fsm.StoreReader. Writes during the scan are not seen by it.
func (s *Store) ScanBack(lower, upper []byte, fn func(key, value []byte) bool) error {
	found := s.between(lower, upper)
	for i := len(found) - 1; i >= 0; i-- {
		if !fn([]byte(found[i].k), bytes.Clone(found[i].v)) {
			break
		}
	}
	return nil
}

type pair struct {
	k string
	v []byte
}

// between returns the rows of [lower, upper) in order.
func (s *Store) between(lower, upper []byte) (found []pair) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := sort.SearchStrings(s.keys, string(lower)); i < len(s.keys); i++ {
		if k := s.keys[i]; upper == nil || k < string(upper) {
			found = append(found, pair{k, s.rows[k]})
		} else {
			break
		}
	}
	return found
}

// Apply implements fsm.Store.
func (s *Store) Apply(ops []fsm.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, op := range ops {
		k := string(op.Key)
		_, have := s.rows[k]
		at := sort.SearchStrings(s.keys, k)
		switch {
		case op.Delete && have:
			s.keys = slices.Delete(s.keys, at, at+1)
			delete(s.rows, k)
		case op.Delete:
		case !have:
			s.keys = slices.Insert(s.keys, at, k)
			fallthrough
		default:
			s.rows[k] = append([]byte{}, op.Value...)
		}
	}
	return nil
}

// Snapshot implements fsm.Store.
func (s *Store) Snapshot() (fsm.StoreSnapshot, error) { return &snapshot{s.Copy()}, nil }

// Copy returns an independent store with the same rows.
func (s *Store) Copy() *Store {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := &Store{keys: slices.Clone(s.keys), rows: make(map[string][]byte, len(s.rows))}
	for k, v := range s.rows {
		c.rows[k] = v
	}
	return c
}

// Rows returns every row by key, for comparisons.
func (s *Store) Rows() map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[string]string, len(s.rows))
	for k, v := range s.rows {
		out[k] = string(v)
	}
	return out
}

type snapshot struct{ *Store }

// Close implements fsm.StoreSnapshot.
func (snapshot) Close() error { return nil }
