package log

import "fmt"

// Kind numbers an entry's meaning. The table below is the one place that allots numbers.
type Kind uint16

// Name says which log a kind belongs to.
type Name string

// The logs (DESIGN.md section 3.2).
const (
	Control Name = "control" // cluster-wide: configuration, nodes, users, rosters
	Message Name = "message" // one per presence redundancy group: messages, sessions
)

// ClusterVersion counts the generations of the log's meaning. A cluster's
// version is itself an entry; nodes of version N and N+1 run together until it is raised.
type ClusterVersion uint32

// The cluster versions that this binary can run.
const (
	OldestVersion ClusterVersion = 1
	NewestVersion ClusterVersion = 1
)

// The kinds. Append only: a number is never reused, a meaning never changes.
const (
	ClusterInit       Kind = 1
	ClusterVersionSet Kind = 2
	NodeToken         Kind = 3
	NodeJoin          Kind = 4
	NodeRemove        Kind = 5
	NodeStart         Kind = 6
	NodeDown          Kind = 7
	NodeUpdate        Kind = 8
	PublisherMove     Kind = 9
	GroupPut          Kind = 10
	GroupRemove       Kind = 11
	AssignMode        Kind = 12
	AssignUsers       Kind = 13
	Rebalance         Kind = 14
	SecretPut         Kind = 15
	ServiceSet        Kind = 16
	GateOverride      Kind = 17
	HAFailover        Kind = 18
	HAFallback        Kind = 19
	DomainAdd         Kind = 20
	DomainRemove      Kind = 21
	SettingSet        Kind = 22
	SettingReset      Kind = 23
	BalanceOrder      Kind = 26
	UserCreate        Kind = 30
	UserUpdate        Kind = 31
	UserPassword      Kind = 32
	UserDelete        Kind = 33
	RosterSet         Kind = 40
	RosterRemove      Kind = 41
	Subscription      Kind = 42
	BlockAdd          Kind = 50
	BlockRemove       Kind = 51
	PrivateSet        Kind = 52
	VCardSet          Kind = 53
	TokenVoid         Kind = 54
	MessagePut        Kind = 60
	MessageTaken      Kind = 61
	SessionForget     Kind = 62
	MessageTrim       Kind = 63
	MessagePurge      Kind = 64
	SessionPut        Kind = 65
	SessionClaim      Kind = 66
	ArchivePrefs      Kind = 70
)

// KindInfo is a row of the kind table.
type KindInfo struct {
	Kind     Kind
	Name     string         // stable: "roster.set"
	Owner    string         // package that applies it, below the module root
	Log      Name           // the log that it is written to
	Since    ClusterVersion // lowest cluster version that may hold it
	Optional bool           // a node that does not know the kind may skip it
	Keyless  bool           // its handler recognises a retry itself: no idempotency key is invented, none is kept
}

var kinds = []KindInfo{
	{ClusterInit, "cluster.init", "fsm/cluster", Control, 1, false, false},
	{ClusterVersionSet, "cluster.version", "fsm/cluster", Control, 1, false, false},
	{NodeToken, "node.token", "fsm/cluster", Control, 1, false, false},
	{NodeJoin, "node.join", "fsm/cluster", Control, 1, false, false},
	{NodeRemove, "node.remove", "fsm/cluster", Control, 1, false, false},
	{NodeStart, "node.start", "fsm/cluster", Control, 1, false, false},
	{NodeDown, "node.down", "fsm/cluster", Control, 1, false, false},
	{NodeUpdate, "node.update", "fsm/cluster", Control, 1, false, false},
	{PublisherMove, "publisher.move", "fsm/cluster", Control, 1, false, false},
	{GroupPut, "group.put", "fsm/cluster", Control, 1, false, false},
	{GroupRemove, "group.remove", "fsm/cluster", Control, 1, false, false},
	{AssignMode, "assign.mode", "fsm/cluster", Control, 1, false, false},
	{AssignUsers, "assign.users", "fsm/cluster", Control, 1, false, false},
	{Rebalance, "assign.rebalance", "fsm/cluster", Control, 1, false, false},
	{SecretPut, "secret.put", "fsm/cluster", Control, 1, false, false},
	{ServiceSet, "service.set", "fsm/cluster", Control, 1, false, false},
	{GateOverride, "gate.override", "fsm/cluster", Control, 1, false, false},
	{HAFailover, "ha.failover", "fsm/cluster", Control, 1, false, false},
	{HAFallback, "ha.fallback", "fsm/cluster", Control, 1, false, false},
	{DomainAdd, "domain.add", "fsm/config", Control, 1, false, false},
	{DomainRemove, "domain.remove", "fsm/config", Control, 1, false, false},
	{SettingSet, "setting.set", "fsm/config", Control, 1, false, false},
	{SettingReset, "setting.reset", "fsm/config", Control, 1, false, false},
	{BalanceOrder, "assign.balance", "fsm/cluster", Control, 1, false, false},
	{UserCreate, "user.create", "fsm/user", Control, 1, false, false},
	{UserUpdate, "user.update", "fsm/user", Control, 1, false, false},
	{UserPassword, "user.password", "fsm/user", Control, 1, false, false},
	{UserDelete, "user.delete", "fsm/user", Control, 1, false, false},
	{RosterSet, "roster.set", "feature/roster/state", Control, 1, false, false},
	{RosterRemove, "roster.remove", "feature/roster/state", Control, 1, false, false},
	{Subscription, "roster.subscription", "feature/roster/state", Control, 1, false, false},
	{BlockAdd, "blocking.add", "feature/blocking/state", Control, 1, false, false},
	{BlockRemove, "blocking.remove", "feature/blocking/state", Control, 1, false, false},
	{PrivateSet, "private.set", "feature/private/state", Control, 1, false, false},
	{VCardSet, "vcard.set", "feature/vcard/state", Control, 1, false, false},
	{TokenVoid, "token.void", "fsm/token", Control, 1, false, false},
	{MessagePut, "message.put", "feature/message/state", Message, 1, false, true},
	{MessageTaken, "message.taken", "feature/message/state", Message, 1, false, true},
	{SessionForget, "session.forget", "feature/message/state", Message, 1, false, true},
	{MessageTrim, "message.trim", "feature/message/state", Message, 1, false, true},
	{MessagePurge, "message.purge", "feature/message/state", Message, 1, false, true},
	{SessionPut, "session.put", "feature/message/state", Message, 1, false, true},
	{SessionClaim, "session.claim", "feature/message/state", Message, 1, false, true},
	{ArchivePrefs, "archive.prefs", "feature/archive/state", Control, 1, false, false},
}

var byKind = func() map[Kind]*KindInfo {
	m := make(map[Kind]*KindInfo, len(kinds))
	for i := range kinds {
		m[kinds[i].Kind] = &kinds[i]
	}
	return m
}()

// Kinds returns the kind table in order of number.
func Kinds() []KindInfo { return append([]KindInfo(nil), kinds...) }

// Info returns the kind's row of the table.
func (k Kind) Info() (KindInfo, bool) {
	if i := byKind[k]; i != nil {
		return *i, true
	}
	return KindInfo{}, false
}

// String returns the kind's stable name.
func (k Kind) String() string {
	if i := byKind[k]; i != nil {
		return i.Name
	}
	return fmt.Sprintf("kind(%d)", uint16(k))
}
