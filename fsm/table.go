package fsm

import (
	"bytes"
	"strings"
)

// Table is a named set of rows. Its rows are digested together, and a change
// of a row names it. Declare each table once, as a package variable.
type Table struct {
	name   string
	prefix []byte
}

// NewTable declares a table. The name is stable: it is part of every stored key.
func NewTable(name string) *Table {
	if name == "" || strings.IndexByte(name, 0) >= 0 || strings.IndexByte(name, 0xff) >= 0 || name[0] == '!' {
		panic("fsm: bad table name " + name)
	}
	return &Table{name: name, prefix: append([]byte(name), 0)}
}

// Name returns the table's name.
func (t *Table) Name() string { return t.name }

func (t *Table) key(k []byte) []byte {
	return append(append(make([]byte, 0, len(t.prefix)+len(k)), t.prefix...), k...)
}

// Key joins the parts of a composite key. Parts must not hold a zero byte;
// addresses and names never do.
func Key(parts ...string) []byte { return []byte(strings.Join(parts, "\x00")) }

// Prefix is the key prefix of all rows whose first parts are these.
func Prefix(parts ...string) []byte { return append(Key(parts...), 0) }

// SplitKey undoes Key.
func SplitKey(key []byte) []string { return strings.Split(string(key), "\x00") }

// after returns the smallest key that is greater than every key with this prefix.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// Reader reads the tables at some applied index. Machine, Tx and View are Readers.
// A store that cannot be read is a broken invariant: reading then panics.
type Reader interface {
	// Get returns the row of t at key and whether there is one. It must not be changed.
	Get(t *Table, key []byte) ([]byte, bool)
	// Scan calls fn in key order for the rows of t whose key begins with
	// prefix, until fn returns false. from, if not nil, is the first key wanted.
	// key and value are valid only during the call.
	Scan(t *Table, prefix, from []byte, fn func(key, value []byte) bool)
	// ScanBack is Scan from the last key to the first. before, if not nil, is
	// greater than all keys wanted.
	ScanBack(t *Table, prefix, before []byte, fn func(key, value []byte) bool)
	// Index returns the index of the last entry that the rows contain.
	Index() uint64
}

// Change is one row that an entry changed.
type Change struct {
	Table  *Table
	Key    []byte
	Before []byte // nil: the row is new
	After  []byte // nil: the row was deleted
	Index  uint64 // log index of the entry
}
