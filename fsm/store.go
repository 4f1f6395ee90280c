package fsm

// Op is one write of a batch.
type Op struct {
	Key    []byte
	Value  []byte
	Delete bool
}

// StoreReader reads an ordered key-value store. What Get returns is shared and
// must not be changed; what a Scan callback gets is valid only during the call.
type StoreReader interface {
	// Get returns the value of key and whether there is one.
	Get(key []byte) ([]byte, bool, error)
	// Scan calls fn for the keys in [lower, upper) in byte order until fn returns false.
	Scan(lower, upper []byte, fn func(key, value []byte) bool) error
	// ScanBack is Scan from the last key to the first.
	ScanBack(lower, upper []byte, fn func(key, value []byte) bool) error
}

// Store is the ordered key-value store under a machine. Package
// internal/store implements it on Pebble; the machine itself does no I/O.
type Store interface {
	StoreReader
	// Apply writes all of ops or none. It need not be synced: after a crash
	// the machine replays the log from the index that the store still has.
	// Values must not be changed afterwards.
	Apply(ops []Op) error
	// Snapshot returns a consistent view that the caller must close.
	Snapshot() (StoreSnapshot, error)
}

// StoreSnapshot is a consistent view of a store.
type StoreSnapshot interface {
	StoreReader
	Close() error
}
