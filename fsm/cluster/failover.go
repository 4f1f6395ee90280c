package cluster

import (
	"encoding/binary"
	"slices"
	"time"

	"muster/fsm"
	"muster/fsm/cluster/clusterpb"
	"muster/internal/fault"
	"muster/log"
)

// Slots is the number of parts into which the users of a node are divided, by
// a hash of their address, so that they can come home part by part (ADR 11).
const Slots = 256

// MaxHistory is how many transitions the log's state keeps.
const MaxHistory = 32

// maxDetail bounds the words about a failover, in bytes.
const maxDetail = 512

var historyTable = fsm.NewTable("cluster.history") // number → transition

// Cause says why users moved between their home and their backups.
type Cause uint8

// The causes. Their numbers stand in the log: append only.
const (
	NoCause       Cause = iota
	OnRequest           // an administrator wanted it
	ServiceDown         // a critical service of the home is down
	PeerDown            // the home fell silent
	PeerShutdown        // the home was stopped in order
	Automatic           // the home has been well for ha.fallback_delay
	BackupDown          // no backup is in service any more
	BackupService       // a critical service of the backup is down
	SwitchedOff         // high availability of the group was switched off
	lastCause
)

var causeNames = [...]string{
	NoCause: "", OnRequest: "On Admin Request", ServiceDown: "Critical Service Down", PeerDown: "Peer Down", PeerShutdown: "Peer Shutdown",
	Automatic: "Automatic Fallback", BackupDown: "Backup Down", BackupService: "Critical Service Down on Backup", SwitchedOff: "High Availability Switched Off",
}

// String returns the cause in the words of the reference product, where it has some.
func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	return "Unknown"
}

// Failover says that the users of a node are, or may be, with their backups although the node is up.
type Failover struct {
	Away   int       // users whose slot is lower are with their backups, if those are up; 1 to Slots
	Cause  Cause     // why they went
	By     string    // who brought that about: the actor of the entry
	Since  time.Time // when they went
	Detail string    // more about the cause; may be empty
	Back   []uint32  // backups that were down meanwhile: their part of the users is at home

	Fallback      Cause // why they come home; NoCause while no fallback is under way
	FallbackBy    string
	FallbackSince time.Time
}

// holds reports whether a user with that assignment belongs to its backup for now.
func (f *Failover) holds(a Assignment) bool {
	return f != nil && int(a.Slot) < f.Away && !slices.Contains(f.Back, a.Backup)
}

// Slot returns the part that a user belongs to. It is the same for ever: it is
// FNV-1a (32 bits), folded.
func Slot(user string) uint8 {
	h := uint32(2166136261)
	for i := range len(user) {
		h = (h ^ uint32(user[i])) * 16777619
	}
	h ^= h >> 16
	return uint8(h ^ h>>8)
}

// Event is a kind of transition.
type Event uint8

// The events. Their numbers stand in the log: append only.
const (
	FailedOver    Event = iota + 1 // the node's users went to their backups
	StartedAgain                   // the node is up again; its users are still with their backups
	FallbackBegun                  // they begin to come home
	Returned                       // all are at home
)

var eventNames = [...]string{FailedOver: "failed over", StartedAgain: "started again", FallbackBegun: "falling back", Returned: "returned"}

// String returns the event's name as JSON and people see it.
func (e Event) String() string {
	if int(e) < len(eventNames) && eventNames[e] != "" {
		return eventNames[e]
	}
	return "unknown"
}

// Transition is a line of the history of failovers.
type Transition struct {
	At     time.Time
	Node   uint32
	Name   string // that the node had
	Event  Event
	Cause  Cause
	By     string
	Detail string
}

// History returns the latest transitions, oldest first; at most MaxHistory.
func History(r fsm.Reader) []Transition {
	var out []Transition
	r.Scan(historyTable, nil, nil, func(_, v []byte) bool {
		out = append(out, decodeTransition(v))
		return true
	})
	return out
}

// DecodeTransition returns the transition that a change adds to the history; ok is false for any other change.
func DecodeTransition(c fsm.Change) (t Transition, ok bool) {
	if c.Table != historyTable || c.After == nil {
		return Transition{}, false
	}
	return decodeTransition(c.After), true
}

func decodeTransition(v []byte) Transition {
	var row clusterpb.TransitionRow
	fsm.Decode(historyTable, v, &row)
	return Transition{At: time.Unix(0, row.At).UTC(), Node: row.Node, Name: row.Name, Event: Event(row.Event),
		Cause: Cause(row.Cause), By: row.By, Detail: row.Detail}
}

// Reserves returns the nodes that may be the backup of a node's users: the
// other one of its group, or for a node that is alone in its group all others
// (ADR 4); none if high availability is off for the group.
func Reserves(r fsm.Reader, n Node) []Node {
	g, ok := GroupByName(r, n.Group)
	if !ok || !g.HA {
		return nil
	}
	alone := len(without(g.Nodes, n.ID)) == 0
	var out []Node
	for _, other := range Nodes(r) {
		if other.ID != n.ID && (alone || slices.Contains(g.Nodes, other.ID)) {
			out = append(out, other)
		}
	}
	return out
}

func decodeFailover(row *clusterpb.FailoverRow) *Failover {
	if row == nil {
		return nil
	}
	f := &Failover{Away: int(row.Away), Cause: Cause(row.Cause), By: row.By, Since: time.Unix(0, row.Since).UTC(), Detail: row.Detail,
		Back: row.Back, Fallback: Cause(row.Fallback), FallbackBy: row.FallbackBy}
	if f.Fallback != NoCause {
		f.FallbackSince = time.Unix(0, row.FallbackSince).UTC()
	}
	return f
}

// record adds a line to the history and drops the oldest one of too many.
func record(tx *fsm.Tx, id uint32, name string, event Event, cause Cause, by, detail string) {
	old := keys(tx, historyTable, nil)
	number := uint64(1)
	if n := len(old); n > 0 {
		number = binary.BigEndian.Uint64(old[n-1]) + 1
	}
	for len(old) >= MaxHistory {
		tx.Delete(historyTable, old[0])
		old = old[1:]
	}
	tx.Save(historyTable, binary.BigEndian.AppendUint64(nil, number), &clusterpb.TransitionRow{
		At: tx.Time().UnixNano(), Node: id, Name: name, Event: uint32(event), Cause: uint32(cause), By: by, Detail: detail})
}

// leaveHome has a node's users go to their backups. The caller saves the row.
func leaveHome(tx *fsm.Tx, id uint32, row *clusterpb.NodeRow, cause Cause, by, detail string) {
	row.Failover = &clusterpb.FailoverRow{Away: Slots, Cause: uint32(cause), By: by, Since: tx.Time().UnixNano(), Detail: detail}
	row.Revision = tx.Index()
	record(tx, id, row.Name, FailedOver, cause, by, detail)
}

// comeHome ends a failover. It saves the row.
func comeHome(tx *fsm.Tx, id uint32, row *clusterpb.NodeRow, cause Cause, by string) {
	row.Failover, row.Revision = nil, tx.Index()
	tx.Save(NodeTable, nodeKey(id), row)
	record(tx, id, row.Name, Returned, cause, by, "")
}

// wentDown notes that a node's process is over. A failover that an
// administrator ordered stays one; any other begins anew. The caller saves the row.
func wentDown(tx *fsm.Tx, id uint32, row *clusterpb.NodeRow, cause Cause, by string) {
	f := row.Failover
	if f != nil && Cause(f.Cause) == OnRequest && f.Fallback == 0 {
		f.Away, f.Back = Slots, nil
		return
	}
	if n, _ := NodeByID(tx, id); len(Reserves(tx, n)) > 0 {
		leaveHome(tx, id, row, cause, by, "")
	}
}

// settle makes the failovers fit what changed of nodes and groups: users are
// at home where no backup is in service, or where none has been since they
// went. They do not go away again when that backup comes back.
func settle(tx *fsm.Tx, by string) {
	for _, n := range Nodes(tx) {
		settleNode(tx, n, by)
	}
}

func settleNode(tx *fsm.Tx, n Node, by string) {
	reserves := Reserves(tx, n)
	row, _ := loadNode(tx, "settle", n.ID)
	switch {
	case n.Failover == nil && !n.Up && n.Incarnation > 0 && len(reserves) > 0: // high availability was switched on meanwhile
		leaveHome(tx, n.ID, row, PeerDown, by, "")
		tx.Save(NodeTable, nodeKey(n.ID), row)
		return
	case n.Failover == nil:
		return
	case len(reserves) == 0:
		cause := BackupDown
		if g, _ := GroupByName(tx, n.Group); !g.HA {
			cause = SwitchedOff
		}
		comeHome(tx, n.ID, row, cause, by)
		return
	case !n.Up:
		return // all is with the backups, whichever are up
	}
	var back []uint32
	for _, b := range reserves {
		if !b.Up || slices.Contains(n.Failover.Back, b.ID) {
			back = append(back, b.ID)
		}
	}
	switch {
	case len(back) == len(reserves):
		comeHome(tx, n.ID, row, BackupDown, by)
	case !slices.Equal(back, n.Failover.Back):
		row.Failover.Back, row.Revision = back, tx.Index()
		tx.Save(NodeTable, nodeKey(n.ID), row)
	}
}

func failOver(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Failover
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	row, err := loadNode(tx, "ha.failover", body.Node)
	if err != nil {
		return err
	}
	if err := fsm.CheckRevision(e, row.Revision); err != nil {
		return err
	}
	if len(body.Detail) > maxDetail {
		return fault.New(fault.NotAcceptable, "ha.failover", row.Name, "the detail is too long")
	}
	n, _ := NodeByID(tx, body.Node)
	back, err := checkFailover(tx, n, body.Critical)
	if err != nil {
		return err
	}
	if f := row.Failover; f != nil && f.Fallback == 0 { // they are away already: from now on because an administrator wants it
		f.Cause, f.By, f.Detail = uint32(OnRequest), e.Actor, body.Detail
		tx.Save(NodeTable, nodeKey(n.ID), row)
		record(tx, n.ID, n.Name, FailedOver, OnRequest, e.Actor, body.Detail)
		return nil
	}
	cause := OnRequest
	if body.Critical {
		cause = ServiceDown
	}
	leaveHome(tx, n.ID, row, cause, e.Actor, body.Detail)
	row.Failover.Back = back
	tx.Save(NodeTable, nodeKey(n.ID), row)
	return nil
}

// checkFailover says why a node cannot fail over now, or which backups take no part in it.
func checkFailover(tx *fsm.Tx, n Node, critical bool) (back []uint32, err error) {
	refuse := func(code fault.Code, text string) error { return fault.New(code, "ha.failover", n.Name, text) }
	g, _ := GroupByName(tx, n.Group)
	reserves := Reserves(tx, n)
	switch f := n.Failover; {
	case !g.HA:
		return nil, refuse(fault.NotAllowed, "high availability is off for the group "+g.Name+": switch it on with `muster group put`")
	case len(reserves) == 0:
		return nil, refuse(fault.NotAllowed, "there is no other node that could take the users of "+n.Name)
	case !n.Up:
		return nil, refuse(fault.Conflict, n.Name+" is down: its users are with their backups already, where those are up")
	case f != nil && f.Fallback == NoCause && (critical || f.Cause == OnRequest):
		return nil, refuse(fault.Conflict, n.Name+" is failed over already")
	case f != nil && f.Fallback == NoCause:
		return f.Back, nil
	}
	text := ""
	for _, b := range reserves {
		switch {
		case !b.Up:
			back, text = append(back, b.ID), b.Name+" is down: start musterd there first"
		case b.Failover != nil:
			back, text = append(back, b.ID), b.Name+" is failed over itself: run `muster ha fallback "+b.Name+"` first"
		}
	}
	if len(back) == len(reserves) {
		return nil, refuse(fault.Unavailable, "no backup can take the users of "+n.Name+": "+text)
	}
	return back, nil
}

func fallBack(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Fallback
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	row, err := loadNode(tx, "ha.fallback", body.Node)
	if err != nil {
		return err
	}
	if err := fsm.CheckRevision(e, row.Revision); err != nil {
		return err
	}
	f := row.Failover
	switch {
	case body.Away > Slots || body.Cause >= uint32(lastCause):
		return fault.New(fault.BadRequest, "ha.fallback", row.Name, "no such step or cause")
	case f == nil:
		return fault.New(fault.Conflict, "ha.fallback", row.Name, "there is nothing to do: the users of "+row.Name+" are at home")
	case !row.Up:
		return fault.New(fault.Unavailable, "ha.fallback", row.Name, row.Name+" is down: start musterd there first")
	}
	if f.Fallback == 0 {
		f.Fallback = body.Cause
		if body.Cause == 0 {
			f.Fallback = uint32(OnRequest)
		}
		f.FallbackBy, f.FallbackSince = e.Actor, tx.Time().UnixNano()
		record(tx, body.Node, row.Name, FallbackBegun, Cause(f.Fallback), e.Actor, "")
	}
	if body.Away == 0 {
		comeHome(tx, body.Node, row, Cause(f.Fallback), f.FallbackBy)
		return nil
	}
	if body.Away < f.Away {
		f.Away, row.Revision = body.Away, tx.Index()
	}
	tx.Save(NodeTable, nodeKey(body.Node), row)
	return nil
}
