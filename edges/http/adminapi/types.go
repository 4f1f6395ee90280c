// Package adminapi is the contract of a node's administrative socket: the JSON
// shapes, and the client that the operator CLI uses.
//
// Callers: edges/http serves it, internal/node/operate does the work behind
// it, cmd/muster and internal/demo are its clients. Invariants: fields are only
// ever added; durations are in milliseconds and their names say so; a password
// travels over the socket only, which its owner alone can open, and is never
// in an answer.
package adminapi

import (
	"time"

	"muster/fsm/config"
	"muster/monitor"
)

// SocketName is the socket's file name in the data folder.
const SocketName = "admin.sock"

// MaxBatch is how many users or contacts one request may bring.
const MaxBatch = 500

// Error is the body of every answer that is not 2xx.
type Error struct {
	Code string `json:"code"` // name of a fault code, "not-found"
	Text string `json:"text"` // what is wrong and what to do
}

// Done is the answer of a change.
type Done struct {
	Index uint64 `json:"index,omitempty"` // log index of the change; this node has applied it
	Count int    `json:"count,omitempty"` // how many subjects changed, where that is of interest
}

// Verifier is a SCRAM verifier (RFC 5802 section 3).
type Verifier struct {
	Iterations int    `json:"iterations"`
	Salt       []byte `json:"salt"`
	StoredKey  []byte `json:"stored_key"`
	ServerKey  []byte `json:"server_key"`
}

// NewUser is a user to create, with a password or with both verifiers.
type NewUser struct {
	JID         string    `json:"jid"`
	Password    string    `json:"password,omitempty"`
	SHA256      *Verifier `json:"sha256,omitempty"`
	SHA1        *Verifier `json:"sha1,omitempty"`
	DisplayName string    `json:"display_name,omitempty"`
	Email       string    `json:"email,omitempty"`
	Admin       bool      `json:"admin,omitempty"`
	Disabled    bool      `json:"disabled,omitempty"` // neither IM nor presence
}

// Outcome is what became of one subject of a batch, in the order of the request.
type Outcome struct {
	Subject string `json:"subject"`
	Code    string `json:"code,omitempty"` // "" for success, else a fault code's name: "conflict" exists already
	Text    string `json:"text,omitempty"`
}

// User is one user as shown.
type User struct {
	JID         string    `json:"jid"`
	DisplayName string    `json:"display_name,omitempty"`
	Email       string    `json:"email,omitempty"`
	IM          bool      `json:"im"`
	Presence    bool      `json:"presence"`
	Admin       bool      `json:"admin"`
	Created     time.Time `json:"created"`
	Home        string    `json:"home,omitempty"`   // node name
	Backup      string    `json:"backup,omitempty"` // node name
	Sessions    []Session `json:"sessions,omitempty"`
}

// UserPage is a page of users in order of address.
type UserPage struct {
	Users []User `json:"users"`
	Next  string `json:"next,omitempty"` // pass as after for the next page; "" at the end
}

// UserChange changes what is not nil.
type UserChange struct {
	IM          *bool   `json:"im,omitempty"`
	Presence    *bool   `json:"presence,omitempty"`
	Admin       *bool   `json:"admin,omitempty"`
	DisplayName *string `json:"display_name,omitempty"`
	Email       *string `json:"email,omitempty"`
	Password    *string `json:"password,omitempty"`
}

// Pair is a mutual contact to create: each in the other's roster, both subscribed.
type Pair struct {
	User    string `json:"user"`
	Contact string `json:"contact"`
}

// Setting is a setting with its declaration.
type Setting struct {
	config.Declaration
	Value  string `json:"value"`
	Source string `json:"source"` // "default", "cluster" or "node"
}

// SettingChange sets a setting's value, for one node or (Node "") the cluster.
type SettingChange struct {
	Value string `json:"value"`
	Node  string `json:"node,omitempty"`
}

// Group is a presence redundancy group.
type Group struct {
	Name  string   `json:"name"`
	Nodes []string `json:"nodes"`
	HA    bool     `json:"ha"` // users have a backup node
}

// Assign names users and the node that shall be their home; "" lets the mode choose.
type Assign struct {
	Users    []string `json:"users"`
	Node     string   `json:"node,omitempty"`
	Unassign bool     `json:"unassign,omitempty"`
}

// Token is an invitation for a new node.
type Token struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	Address string    `json:"address"` // cluster port to join at
}

// Node is a member of the cluster.
type Node struct {
	ID        uint32            `json:"id"`
	Name      string            `json:"name"`
	Address   string            `json:"address"` // of the cluster port
	Listeners map[string]string `json:"listeners,omitempty"`
	Publisher bool              `json:"publisher"`
	Up        bool              `json:"up"`
	Since     time.Time         `json:"since"`
	Group     string            `json:"group,omitempty"`
	Software  string            `json:"software,omitempty"`
	Users     int               `json:"users"` // whose home it is
}

// Service is the state of one service of the node that answers.
type Service struct {
	Name      string         `json:"name"`
	State     string         `json:"state"`
	Reason    string         `json:"reason,omitempty"`
	Since     time.Time      `json:"since"`
	Needs     []monitor.Gate `json:"needs,omitempty"`
	Essential bool           `json:"essential"` // cannot be stopped
}

// Services is the state of a node's services.
type Services struct {
	Node     string          `json:"node"`
	Services []Service       `json:"services"`
	Alarms   []monitor.Alarm `json:"alarms,omitempty"`
}

// Alarms is a node's active alarms and recent history.
type Alarms struct {
	Node    string          `json:"node"`
	Active  []monitor.Alarm `json:"active"`
	History []monitor.Event `json:"history"`
}

// Session is one connected client.
type Session struct {
	JID      string    `json:"jid"` // full
	Node     string    `json:"node"`
	Since    time.Time `json:"since"`
	Priority int       `json:"priority"`
}

// Sessions are the available sessions of the cluster as this node knows them.
type Sessions struct {
	Sessions []Session `json:"sessions"`
	More     bool      `json:"more,omitempty"` // there are more than were asked for
}

// Status is a summary of the cluster as one node sees it.
type Status struct {
	Node      string            `json:"node"`
	Version   string            `json:"version"`
	Cluster   string            `json:"cluster"`
	ClusterID string            `json:"cluster_id"`
	Ready     bool              `json:"ready"`
	Reason    string            `json:"reason,omitempty"` // why it is not ready
	Complete  bool              `json:"complete"`         // all nodes run one release and have caught up
	Missing   string            `json:"missing,omitempty"`
	Domains   []string          `json:"domains"`
	Users     int               `json:"users"`
	Sessions  int               `json:"sessions"` // available, in the cluster
	Mode      string            `json:"mode"`     // of user assignment
	Groups    []Group           `json:"groups"`
	Nodes     []ReplicationNode `json:"nodes"` // as to the control log
	Logs      []LogReplication  `json:"logs"`  // the logs beside the control log
	Certs     []Certificate     `json:"certificates"`
	Alarms    []monitor.Alarm   `json:"alarms"`
}

// Certificate is a certificate in use.
type Certificate struct {
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after"`
	Problem  string    `json:"problem,omitempty"`
}

// ReplicationNode is one node's replication health, as to one log.
type ReplicationNode struct {
	ID            uint32    `json:"id"`
	Name          string    `json:"name"`
	Address       string    `json:"address"`
	Publisher     bool      `json:"publisher"`
	Up            bool      `json:"up"` // as the control log says
	Role          string    `json:"role"`
	Voter         bool      `json:"voter"`
	Term          uint64    `json:"term"`
	Commit        uint64    `json:"commit"`
	Applied       uint64    `json:"applied"`
	Lag           uint64    `json:"lag"`             // entries that the cluster has committed and this node has not applied
	LastContactMS float64   `json:"last_contact_ms"` // since it heard the leader
	PingMS        float64   `json:"ping_ms"`
	DigestIndex   uint64    `json:"digest_index"`
	Digest        string    `json:"digest"` // over all tables at DigestIndex
	Version       string    `json:"version"`
	DiskP99MS     float64   `json:"disk_p99_ms"`
	DiskBytes     int64     `json:"disk_bytes"` // of the log's folder: log, state, snapshots; measured every 10 s
	SnapshotIndex uint64    `json:"snapshot_index"`
	Reachable     bool      `json:"reachable"`
	Monitor       bool      `json:"monitor"` // its replication reports nothing wrong
	State         int       `json:"state"`   // 0 to 4, the reference product's Replicate_State
	Detail        string    `json:"detail"`  // what State means
	Reason        string    `json:"reason,omitempty"`
	Since         time.Time `json:"since,omitzero"`
}

// Replication is the replication health of the cluster as one node sees it.
type Replication struct {
	Time    time.Time         `json:"time"`
	Node    string            `json:"node"`
	Cluster string            `json:"cluster"`
	Version string            `json:"version"`
	Leader  string            `json:"leader,omitempty"`
	State   int               `json:"state"` // the worst of the nodes', over all logs
	Tables  int               `json:"tables"`
	Equal   bool              `json:"equal"` // all digests that could be compared agree
	Differ  []string          `json:"differ,omitempty"`
	Nodes   []ReplicationNode `json:"nodes"` // as to the control log, as are leader and tables
	Logs    []LogReplication  `json:"logs"`  // the logs beside the control log
}

// LogReplication is the replication health of one log beside the control log.
type LogReplication struct {
	Log    string            `json:"log"` // "message"
	Leader string            `json:"leader,omitempty"`
	Tables int               `json:"tables"`
	Equal  bool              `json:"equal"`
	Differ []string          `json:"differ,omitempty"`
	Nodes  []ReplicationNode `json:"nodes"`
}

// Digests compares all tables of a log of all nodes at one index.
type Digests struct {
	Log     string        `json:"log"`
	Index   uint64        `json:"index"`
	Equal   bool          `json:"equal"`
	Missing []string      `json:"missing,omitempty"` // nodes that gave no answer
	Tables  []TableDigest `json:"tables"`
	Logs    []Digests     `json:"logs,omitempty"` // of the control log's answer: the other logs
}

// TableDigest is one table of Digests.
type TableDigest struct {
	Table   string            `json:"table"`
	Equal   bool              `json:"equal"`
	Digests map[string]string `json:"digests"` // node name → digest
}

// HA is the state of high availability as one node sees it, and how it came to be.
type HA struct {
	Time      time.Time                   `json:"time"`
	Node      string                      `json:"node"`
	Unheard   string                      `json:"unheard,omitempty"` // why all this may be outdated
	Groups    []monitor.GroupAvailability `json:"groups"`
	Nodes     []monitor.NodeAvailability  `json:"nodes"`
	Rebalance *Rebalance                  `json:"rebalance,omitempty"` // the standing order; nil: there is none
	History   []HATransition              `json:"history"`             // the latest transitions, oldest first
}

// HATransition is a line of the history of failovers.
type HATransition struct {
	At     time.Time `json:"at"`
	Node   string    `json:"node"`
	Event  string    `json:"event"` // "failed over", "started again", "falling back", "returned"
	Reason string    `json:"reason"`
	By     string    `json:"by,omitempty"` // actor
	Detail string    `json:"detail,omitempty"`
}

// Rebalance is a rebalancing in the background.
type Rebalance struct {
	Left  int       `json:"left"` // users to move
	Rate  int       `json:"rate"` // at most, users a second
	Since time.Time `json:"since"`
	By    string    `json:"by,omitempty"`
}

// BackupRequest asks for a backup; the answer is the encrypted stream.
type BackupRequest struct {
	Passphrase string `json:"passphrase"`
	NoMessages bool   `json:"no_messages,omitempty"` // leave archives and waiting messages out
}
