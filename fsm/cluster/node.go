package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"regexp"
	"strconv"
	"time"

	"muster/fsm"
	"muster/fsm/cluster/clusterpb"
	"muster/internal/fault"
	"muster/log"
)

var (
	nodeName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	groupName   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)
	serviceName = regexp.MustCompile(`^[a-z0-9][a-z0-9._/-]{0,63}$`)
	clusterID   = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

func initCluster(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Init
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if err := checkInit(tx, &body); err != nil {
		return err
	}
	var row clusterpb.InfoRow
	if fsm.Load(tx, InfoTable, nil, &row) {
		forgetNodes(tx)
	}
	row.Id, row.Name, row.CaCert, row.Version = body.Id, body.Name, body.CaCert, body.Version
	row.Created, row.Balance = tx.Time().UnixNano(), nil
	row.LastNode++
	row.Publisher = row.LastNode
	tx.Save(InfoTable, nil, &row)
	tx.SetVersion(log.ClusterVersion(body.Version))
	admit(tx, row.LastNode, body.Node)
	homeless(tx) // nobody is failed over: no node has started
	tx.SetResult(nodeKey(row.LastNode))
	return nil
}

func checkInit(tx *fsm.Tx, body *clusterpb.Init) error {
	refuse := func(code fault.Code, text string) error { return fault.New(code, "cluster.init", body.Id, text) }
	info, exists := Get(tx)
	switch {
	case exists && (body.Replaces == "" || body.Replaces != info.ID):
		return refuse(fault.Conflict, "there is a cluster already")
	case !exists && body.Replaces != "":
		return refuse(fault.NotFound, "there is no restored state to take over")
	case !clusterID.MatchString(body.Id) || exists && body.Id == info.ID:
		return refuse(fault.BadRequest, "a cluster needs a new id of letters, digits and hyphens")
	case len(body.Name) > 128:
		return refuse(fault.NotAcceptable, "the name is longer than 128 bytes")
	case len(body.CaCert) > maxCA:
		return refuse(fault.TooLarge, "the CA certificate is too large")
	case body.Version < uint32(max(log.OldestVersion, tx.Version())) || body.Version > body.Node.GetNewestVersion():
		return refuse(fault.NotAcceptable, "the node cannot run this cluster version")
	}
	return checkMember("cluster.init", body.Node)
}

func checkMember(op string, m *clusterpb.Member) error {
	if m == nil || !nodeName.MatchString(m.Name) {
		return fault.New(fault.BadRequest, op, m.GetName(), "a node name is 1 to 128 letters, digits, dots, hyphens and underscores")
	}
	if m.ClusterAddr == "" || len(m.ClusterAddr) > maxAddr || len(m.Software) > maxReason {
		return fault.New(fault.BadRequest, op, m.Name, "a node needs a cluster address")
	}
	return checkAddrs(op, m.Name, m.Addrs)
}

func checkAddrs(op, subject string, addrs []*clusterpb.Addr) error {
	if len(addrs) > maxAddrs {
		return fault.New(fault.TooLarge, op, subject, "too many addresses")
	}
	for _, a := range addrs {
		if len(a.Name) > maxAddr || len(a.Addr) > maxAddr {
			return fault.New(fault.NotAcceptable, op, subject, "an address is too long")
		}
	}
	return nil
}

// forgetNodes ends all memberships at once, for restored state: nothing of the old cluster's machines stays.
func forgetNodes(tx *fsm.Tx) {
	for _, t := range []*fsm.Table{NodeTable, GroupTable, TokenTable, StoppedTable, OverrideTable, SecretTable, holderTable, countTable, historyTable} {
		for _, k := range keys(tx, t, nil) {
			tx.Delete(t, k)
		}
	}
	for _, k := range keys(tx, AssignmentTable, nil) {
		tx.Save(AssignmentTable, k, &clusterpb.AssignmentRow{Revision: tx.Index()})
		bump(tx, 0, 1, 0)
	}
}

// homeless gives a home to every user that has none, after a restore; in mode manual to the one node there is, too.
func homeless(tx *fsm.Tx) {
	for _, k := range keys(tx, AssignmentTable, nil) {
		place(tx, string(k), choose(tx))
	}
}

func keys(r fsm.Reader, t *fsm.Table, prefix []byte) [][]byte {
	var out [][]byte
	r.Scan(t, prefix, nil, func(k, _ []byte) bool {
		out = append(out, append([]byte(nil), k...))
		return true
	})
	return out
}

// admit writes a new member and puts it into a redundancy group: the first that
// has one node, else the first that has none, else a new one.
func admit(tx *fsm.Tx, id uint32, m *clusterpb.Member) {
	g := groupForNewNode(tx)
	now := tx.Time().UnixNano()
	tx.Save(NodeTable, nodeKey(id), &clusterpb.NodeRow{
		Name: m.Name, ClusterAddr: m.ClusterAddr, Addrs: m.Addrs, Group: g.Name, Revision: tx.Index(),
		Software: m.Software, NewestVersion: m.NewestVersion, Joined: now, Since: now,
	})
	g.Nodes = append(g.Nodes, id)
	saveGroup(tx, g)
	for _, member := range g.Nodes {
		repairBackups(tx, member)
	}
}

func groupForNewNode(tx *fsm.Tx) Group {
	groups := Groups(tx)
	for members := 1; members >= 0; members-- {
		for _, g := range groups {
			if len(g.Nodes) == members {
				return g
			}
		}
	}
	for i := 1; ; i++ {
		name := "group-" + strconv.Itoa(i)
		if _, taken := tx.Get(GroupTable, []byte(name)); !taken {
			return Group{Name: name, HA: true}
		}
	}
}

func saveGroup(tx *fsm.Tx, g Group) {
	tx.Save(GroupTable, []byte(g.Name), &clusterpb.GroupRow{Nodes: g.Nodes, Ha: g.HA})
}

func setVersion(tx *fsm.Tx, e *log.Entry) error {
	var (
		body clusterpb.VersionSet
		row  clusterpb.InfoRow
	)
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if !fsm.Load(tx, InfoTable, nil, &row) {
		return noCluster("cluster.version")
	}
	if body.Version <= row.Version {
		return fault.New(fault.Conflict, "cluster.version", "", "the cluster version is "+strconv.Itoa(int(row.Version))+" already and never falls")
	}
	for _, n := range Nodes(tx) {
		if uint32(n.NewestVersion) < body.Version {
			return fault.New(fault.NotAcceptable, "cluster.version", n.Name, "this node cannot run that version; upgrade it first")
		}
	}
	row.Version = body.Version
	tx.Save(InfoTable, nil, &row)
	tx.SetVersion(log.ClusterVersion(body.Version))
	return nil
}

func noCluster(op string) error {
	return fault.New(fault.NotFound, op, "", "there is no cluster yet; run `muster cluster init`")
}

func noNode(op string, id uint32) error {
	return fault.New(fault.NotFound, op, strconv.FormatUint(uint64(id), 10), "no such node")
}

func addToken(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Token
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if len(body.Hash) != sha256.Size || body.Expires <= tx.Time().UnixNano() {
		return fault.New(fault.BadRequest, "node.token", "", "a token needs a SHA-256 hash and an expiry to come")
	}
	count := 0
	for _, k := range keys(tx, TokenTable, nil) {
		var row clusterpb.TokenRow
		fsm.Load(tx, TokenTable, k, &row)
		if row.Expires <= tx.Time().UnixNano() {
			tx.Delete(TokenTable, k)
		} else {
			count++
		}
	}
	if count >= MaxTokens {
		return fault.New(fault.TooLarge, "node.token", "", "too many join tokens are valid; wait until some expire")
	}
	tx.Save(TokenTable, body.Hash, &clusterpb.TokenRow{Expires: body.Expires})
	return nil
}

func joinNode(tx *fsm.Tx, e *log.Entry) error {
	var (
		body  clusterpb.Join
		row   clusterpb.InfoRow
		token clusterpb.TokenRow
	)
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if err := checkMember("node.join", body.Node); err != nil {
		return err
	}
	refuse := func(code fault.Code, text string) error { return fault.New(code, "node.join", body.Node.Name, text) }
	switch {
	case !fsm.Load(tx, InfoTable, nil, &row):
		return noCluster("node.join")
	case !fsm.Load(tx, TokenTable, body.TokenHash, &token):
		return refuse(fault.Unauthorized, "the join token is unknown or used up; make a new one with `muster node token`")
	case token.Expires <= tx.Time().UnixNano():
		return refuse(fault.Unauthorized, "the join token has expired; make a new one with `muster node token`")
	case body.Node.NewestVersion < row.Version:
		return refuse(fault.NotSupported, "the node's release is too old for this cluster; install a newer one")
	}
	nodes := Nodes(tx)
	for _, n := range nodes {
		if n.Name == body.Node.Name {
			return refuse(fault.Conflict, "a member has this name; choose another, or remove that node first")
		}
	}
	if len(nodes) >= MaxNodes {
		return refuse(fault.TooLarge, "the cluster has all the nodes that it may have")
	}
	tx.Delete(TokenTable, body.TokenHash)
	row.LastNode++
	tx.Save(InfoTable, nil, &row)
	admit(tx, row.LastNode, body.Node)
	settle(tx, e.Actor)
	tx.SetResult(nodeKey(row.LastNode))
	return nil
}

func removeNode(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Remove
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	info, ok := Get(tx)
	if !ok {
		return noCluster("node.remove")
	}
	n, ok := NodeByID(tx, body.Node)
	if !ok {
		return noNode("node.remove", body.Node)
	}
	if info.Publisher == n.ID {
		return fault.New(fault.NotAllowed, "node.remove", n.Name, "the publisher cannot be removed; run `muster publisher move` first")
	}
	retire(tx, n.ID, e.Actor)
	tx.Delete(NodeTable, nodeKey(n.ID))
	tx.Delete(OverrideTable, nodeKey(n.ID))
	for _, k := range keys(tx, StoppedTable, nodeKey(n.ID)) {
		tx.Delete(StoppedTable, k)
	}
	leaveGroup(tx, n)
	evict(tx, n.ID)
	settle(tx, e.Actor)
	return nil
}

// retire sends the users whom a node serves as their backup home before it is removed.
func retire(tx *fsm.Tx, id uint32, by string) {
	row, _ := loadNode(tx, "node.remove", id)
	row.Up, row.Failover, row.Incarnation = false, nil, 0 // it has no failover of its own to settle
	tx.Save(NodeTable, nodeKey(id), row)
	settle(tx, by)
}

func leaveGroup(tx *fsm.Tx, n Node) {
	if g, ok := GroupByName(tx, n.Group); ok {
		g.Nodes = without(g.Nodes, n.ID)
		saveGroup(tx, g)
	}
}

func without(ids []uint32, id uint32) []uint32 {
	var out []uint32
	for _, have := range ids {
		if have != id {
			out = append(out, have)
		}
	}
	return out
}

// loadNode decodes a node's row for a change of it.
func loadNode(tx *fsm.Tx, op string, id uint32) (*clusterpb.NodeRow, error) {
	var row clusterpb.NodeRow
	if !fsm.Load(tx, NodeTable, nodeKey(id), &row) {
		return nil, noNode(op, id)
	}
	return &row, nil
}

func startNode(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Start
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	row, err := loadNode(tx, "node.start", body.Node)
	if err != nil {
		return err
	}
	if info, _ := Get(tx); body.NewestVersion < uint32(info.Version) {
		return fault.New(fault.NotSupported, "node.start", row.Name, "the node's release is too old for this cluster; install a newer one")
	}
	if len(body.Software) > maxReason {
		return fault.New(fault.BadRequest, "node.start", row.Name, "the release name is too long")
	}
	wasUp := row.Up
	if !wasUp {
		row.Since = tx.Time().UnixNano()
	}
	// Two starts in one record share the index: the second must differ all the same.
	row.Incarnation = max(tx.Index(), row.Incarnation+1)
	row.Up, row.Revision = true, tx.Index()
	row.Software, row.NewestVersion = body.Software, body.NewestVersion
	tx.Save(NodeTable, nodeKey(body.Node), row)
	settle(tx, e.Actor)
	if n, _ := NodeByID(tx, body.Node); n.Failover != nil && !wasUp {
		record(tx, n.ID, n.Name, StartedAgain, n.Failover.Cause, e.Actor, "")
	}
	tx.SetResult(binary.BigEndian.AppendUint64(nil, row.Incarnation))
	return nil
}

func downNode(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Down
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	row, err := loadNode(tx, "node.down", body.Node)
	if err != nil {
		return err
	}
	if row.Incarnation != body.Incarnation {
		return fault.New(fault.Stale, "node.down", row.Name, "the node has started again since")
	}
	if !row.Up {
		return nil
	}
	cause := PeerDown
	if e.Node == body.Node { // its own farewell
		cause = PeerShutdown
	}
	row.Up, row.Revision, row.Since = false, tx.Index(), tx.Time().UnixNano()
	wentDown(tx, body.Node, row, cause, e.Actor)
	tx.Save(NodeTable, nodeKey(body.Node), row)
	settle(tx, e.Actor)
	return nil
}

func updateNode(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Update
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	row, err := loadNode(tx, "node.update", body.Node)
	if err != nil {
		return err
	}
	if len(body.ClusterAddr) > maxAddr {
		return fault.New(fault.NotAcceptable, "node.update", row.Name, "the address is too long")
	}
	if err := checkAddrs("node.update", row.Name, body.Addrs); err != nil {
		return err
	}
	if body.ClusterAddr != "" {
		row.ClusterAddr = body.ClusterAddr
	}
	row.Addrs = body.Addrs
	tx.Save(NodeTable, nodeKey(body.Node), row)
	return nil
}

func movePublisher(tx *fsm.Tx, e *log.Entry) error {
	var (
		body clusterpb.Publisher
		row  clusterpb.InfoRow
	)
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if !fsm.Load(tx, InfoTable, nil, &row) {
		return noCluster("publisher.move")
	}
	if _, ok := NodeByID(tx, body.Node); !ok {
		return noNode("publisher.move", body.Node)
	}
	row.Publisher = body.Node
	tx.Save(InfoTable, nil, &row)
	return nil
}

// setOverride, setService and putSecret are small facts about nodes and the cluster.

func setOverride(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Override
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if _, err := loadNode(tx, "gate.override", body.Node); err != nil {
		return err
	}
	if len(body.Reason) > maxReason {
		return fault.New(fault.NotAcceptable, "gate.override", "", "the reason is too long")
	}
	if time.Unix(0, body.Until).After(tx.Time()) {
		tx.Save(OverrideTable, nodeKey(body.Node), &clusterpb.OverrideRow{Until: body.Until, Reason: body.Reason})
	} else {
		tx.Delete(OverrideTable, nodeKey(body.Node))
	}
	return nil
}

func setService(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Service
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if _, err := loadNode(tx, "service.set", body.Node); err != nil {
		return err
	}
	if !serviceName.MatchString(body.Service) {
		return fault.New(fault.BadRequest, "service.set", body.Service, "malformed service name")
	}
	key := append(nodeKey(body.Node), body.Service...)
	if !body.Stopped {
		tx.Delete(StoppedTable, key)
		return nil
	}
	if len(keys(tx, StoppedTable, nodeKey(body.Node))) >= maxStopped {
		return fault.New(fault.TooLarge, "service.set", body.Service, "too many services are stopped on this node")
	}
	tx.Put(StoppedTable, key, nil)
	return nil
}

func putSecret(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Secret
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if !nodeName.MatchString(body.Name) {
		return fault.New(fault.BadRequest, "secret.put", body.Name, "malformed name of a secret")
	}
	if len(body.Sealed) == 0 {
		tx.Delete(SecretTable, []byte(body.Name))
		return nil
	}
	_, have := Secret(tx, body.Name)
	if len(body.Sealed) > MaxSecret || !have && len(keys(tx, SecretTable, nil)) >= MaxSecrets {
		return fault.New(fault.TooLarge, "secret.put", body.Name, "the secret is too large, or there are too many")
	}
	tx.Put(SecretTable, []byte(body.Name), body.Sealed)
	return nil
}
