package cluster

import (
	"slices"
	"time"

	"muster/fsm"
	"muster/fsm/cluster/clusterpb"
	"muster/internal/fault"
	"muster/log"
)

// AssignNew gives a new user a home and a backup as the mode says. It is for
// fsm/user, within the entry that creates the user.
func AssignNew(tx *fsm.Tx, user string) {
	tx.Save(AssignmentTable, []byte(user), &clusterpb.AssignmentRow{Revision: tx.Index()})
	bump(tx, 0, 1, 0)
	if Mode(tx) != Manual {
		place(tx, user, choose(tx))
	}
}

// Unassign forgets a user, within the entry that deletes it.
func Unassign(tx *fsm.Tx, user string) {
	if a, ok := assignment(tx, user); ok {
		hold(tx, user, a, Assignment{}, false)
		tx.Delete(AssignmentTable, []byte(user))
	}
}

// place moves a user to a home, keeps or chooses its backup, and leaves an
// assignment that stays the same untouched. home 0 leaves it without any.
func place(tx *fsm.Tx, user string, home uint32) {
	old, ok := assignment(tx, user)
	if !ok {
		return
	}
	next := Assignment{Home: home, Revision: tx.Index()}
	if home != 0 {
		next.Backup = backupFor(tx, home, old.Backup)
	}
	if next.Home == old.Home && next.Backup == old.Backup {
		return
	}
	hold(tx, user, old, next, true)
	tx.Save(AssignmentTable, []byte(user), &clusterpb.AssignmentRow{Home: next.Home, Backup: next.Backup, Revision: next.Revision})
}

// hold keeps the counts and the index by node in step with an assignment. stays is false if the user goes.
func hold(tx *fsm.Tx, user string, old, next Assignment, stays bool) {
	bump(tx, old.Home, -1, 0)
	if old.Home != 0 {
		tx.Delete(holderTable, holderKey('h', old.Home, user))
	}
	if old.Backup != 0 {
		bump(tx, old.Backup, 0, -1)
		tx.Delete(holderTable, holderKey('b', old.Backup, user))
	}
	if !stays {
		return
	}
	bump(tx, next.Home, 1, 0)
	if next.Home != 0 {
		tx.Put(holderTable, holderKey('h', next.Home, user), nil)
	}
	if next.Backup != 0 {
		bump(tx, next.Backup, 0, 1)
		tx.Put(holderTable, holderKey('b', next.Backup, user), nil)
	}
}

// bump changes a node's counts; a row with nothing in it goes.
func bump(tx *fsm.Tx, node uint32, homes, backups int64) {
	row := count(tx, node)
	row.Homes += uint64(homes)
	row.Backups += uint64(backups)
	if row.Homes == 0 && row.Backups == 0 {
		tx.Delete(countTable, nodeKey(node))
		return
	}
	tx.Save(countTable, nodeKey(node), row)
}

func count(r fsm.Reader, node uint32) *clusterpb.CountRow {
	var row clusterpb.CountRow
	fsm.Load(r, countTable, nodeKey(node), &row)
	return &row
}

// choose picks the home of a user: the group with the fewest users per node
// that may be a home, then the node with the fewest users in it; 0 if there is no node.
func choose(r fsm.Reader) uint32 {
	var (
		best             uint32
		bestSum, bestLen uint64
	)
	mode := Mode(r)
	for _, g := range Groups(r) {
		sum, node, n := groupLoad(r, candidates(g, mode))
		if n > 0 && (best == 0 || sum*bestLen < bestSum*n) {
			best, bestSum, bestLen = node, sum, n
		}
	}
	return best
}

// candidates are the nodes of a group that may be homes: in mode active-standby only the first.
func candidates(g Group, mode string) []uint32 {
	if mode == ActiveStandby && len(g.Nodes) > 1 {
		return g.Nodes[:1]
	}
	return g.Nodes
}

// groupLoad sums the users of nodes and names the one with the fewest; ties go to the one listed first.
func groupLoad(r fsm.Reader, nodes []uint32) (sum uint64, least uint32, n uint64) {
	var fewest uint64
	for _, id := range nodes {
		homes := count(r, id).Homes
		if least == 0 || homes < fewest {
			least, fewest = id, homes
		}
		sum += homes
	}
	return sum, least, uint64(len(nodes))
}

// backupFor returns the backup of the users of home: the group's other node,
// or for a node that is alone in its group one that is borrowed from another
// group: the present one if it is still a member, else the least loaded.
func backupFor(r fsm.Reader, home, present uint32) uint32 {
	n, _ := NodeByID(r, home)
	g, ok := GroupByName(r, n.Group)
	if !ok || !g.HA {
		return 0
	}
	for _, id := range g.Nodes {
		if id != home {
			return id
		}
	}
	var (
		best   uint32
		bestUp bool
		load   uint64
	)
	for _, other := range Nodes(r) {
		if other.ID == home {
			continue
		}
		if other.ID == present {
			return present
		}
		c := count(r, other.ID)
		sum := c.Homes + c.Backups
		if best == 0 || other.Up && !bestUp || other.Up == bestUp && sum < load {
			best, bestUp, load = other.ID, other.Up, sum
		}
	}
	return best
}

// repairBackups gives the users of home the backup that the groups now say.
func repairBackups(tx *fsm.Tx, home uint32) {
	var users []string
	HomeOf(tx, home, func(user string) bool {
		users = append(users, user)
		return true
	})
	for _, user := range users {
		place(tx, user, home)
	}
}

// evict moves a removed node's users: to their backup, which knows them
// already, else to the node that a new user would get. Its backups are replaced.
func evict(tx *fsm.Tx, node uint32) {
	var homes, backups []string
	HomeOf(tx, node, func(user string) bool { homes = append(homes, user); return true })
	BackupOf(tx, node, func(user string) bool { backups = append(backups, user); return true })
	for _, user := range homes {
		a, _ := assignment(tx, user)
		home := a.Backup
		if _, ok := NodeByID(tx, home); !ok {
			home = choose(tx)
		}
		place(tx, user, home)
	}
	for _, user := range backups {
		a, _ := assignment(tx, user)
		place(tx, user, a.Home)
	}
}

func putGroup(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.GroupPut
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if err := checkGroup(tx, &body); err != nil {
		return err
	}
	affected := slices.Clone(body.Nodes)
	for _, id := range body.Nodes {
		row, _ := loadNode(tx, "group.put", id)
		if row.Group != body.Name {
			n, _ := NodeByID(tx, id)
			left, _ := GroupByName(tx, n.Group)
			affected = append(affected, left.Nodes...)
			leaveGroup(tx, n)
			row.Group = body.Name
			tx.Save(NodeTable, nodeKey(id), row)
		}
	}
	saveGroup(tx, Group{Name: body.Name, Nodes: body.Nodes, HA: body.Ha})
	slices.Sort(affected)
	for _, id := range slices.Compact(affected) {
		repairBackups(tx, id)
	}
	settle(tx, e.Actor)
	return nil
}

func checkGroup(tx *fsm.Tx, body *clusterpb.GroupPut) error {
	refuse := func(code fault.Code, text string) error { return fault.New(code, "group.put", body.Name, text) }
	if !groupName.MatchString(body.Name) {
		return refuse(fault.BadRequest, "a group name is 1 to 128 letters, digits, hyphens and underscores")
	}
	if len(body.Nodes) > MaxGroup || len(body.Nodes) == 2 && body.Nodes[0] == body.Nodes[1] {
		return refuse(fault.NotAcceptable, "a group has one or two different nodes")
	}
	for _, id := range body.Nodes {
		if _, err := loadNode(tx, "group.put", id); err != nil {
			return err
		}
	}
	old, exists := GroupByName(tx, body.Name)
	if !exists && len(Groups(tx)) >= MaxGroups {
		return refuse(fault.TooLarge, "too many groups; remove an empty one")
	}
	for _, id := range old.Nodes {
		if len(without(body.Nodes, id)) == len(body.Nodes) {
			return refuse(fault.Conflict, "a node would be in no group; put it into another group instead")
		}
	}
	return nil
}

func removeGroup(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.GroupRemove
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	g, ok := GroupByName(tx, body.Name)
	if !ok {
		return fault.New(fault.NotFound, "group.remove", body.Name, "no such group")
	}
	if len(g.Nodes) > 0 {
		return fault.New(fault.Conflict, "group.remove", body.Name, "the group has nodes; put them into another group first")
	}
	tx.Delete(GroupTable, []byte(body.Name))
	return nil
}

func setMode(tx *fsm.Tx, e *log.Entry) error {
	var (
		body clusterpb.Mode
		row  clusterpb.InfoRow
	)
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if !fsm.Load(tx, InfoTable, nil, &row) {
		return noCluster("assign.mode")
	}
	if body.Mode != Balanced && body.Mode != Manual && body.Mode != ActiveStandby {
		return fault.New(fault.NotAcceptable, "assign.mode", body.Mode, "the modes are balanced, manual and active-standby")
	}
	row.Mode = body.Mode
	tx.Save(InfoTable, nil, &row)
	return nil
}

func assignUsers(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Assign
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if len(body.Users) == 0 || len(body.Users) > MaxAssign {
		return fault.New(fault.TooLarge, "assign.users", "", "name 1 to 10000 users at a time")
	}
	if body.Node != 0 {
		if _, err := loadNode(tx, "assign.users", body.Node); err != nil {
			return err
		}
	}
	for _, user := range body.Users {
		if _, ok := assignment(tx, user); !ok {
			return fault.New(fault.NotFound, "assign.users", user, "no such user")
		}
		home := body.Node
		if home == 0 && !body.Unassign {
			if home = choose(tx); home == 0 {
				return noCluster("assign.users")
			}
		}
		if body.Unassign {
			home = 0
		}
		place(tx, user, home)
	}
	return nil
}

func rebalance(tx *fsm.Tx, e *log.Entry) error {
	var body clusterpb.Rebalance
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if body.Most == 0 || body.Most > MaxAssign {
		return fault.New(fault.BadRequest, "assign.rebalance", "", "move 1 to 10000 users at a time")
	}
	plan := newPlan(tx, int(body.Most))
	moved := 0
	for ; moved < int(body.Most); moved++ {
		user, to, ok := plan.next()
		if !ok {
			break
		}
		place(tx, user, to)
	}
	if moved == 0 {
		endBalance(tx)
	}
	tx.SetResult(nodeKey(uint32(moved)))
	return nil
}

// Balance is an order to rebalance, until nothing is left to move.
type Balance struct {
	Since time.Time
	By    string // actor of the entry
}

// BalanceOrdered returns the standing order to rebalance; ok is false if there is none.
func BalanceOrdered(r fsm.Reader) (Balance, bool) {
	var row clusterpb.InfoRow
	if !fsm.Load(r, InfoTable, nil, &row) || row.Balance == nil {
		return Balance{}, false
	}
	return Balance{time.Unix(0, row.Balance.Since).UTC(), row.Balance.By}, true
}

// Unbalanced returns how many users a rebalancing would move now.
func Unbalanced(r fsm.Reader) int {
	p, moves := newPlan(r, 0), 0
	for {
		from, into := p.pick()
		if from == nil {
			return moves
		}
		from.homes--
		into.homes++
		moves++
	}
}

func orderBalance(tx *fsm.Tx, e *log.Entry) error {
	var (
		body clusterpb.Balance
		row  clusterpb.InfoRow
	)
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if !fsm.Load(tx, InfoTable, nil, &row) {
		return noCluster("assign.balance")
	}
	if body.Stop == (row.Balance == nil) {
		return nil // stopped already, or ordered: the first order stands
	}
	row.Balance = nil
	if !body.Stop {
		row.Balance = &clusterpb.BalanceRow{Since: tx.Time().UnixNano(), By: e.Actor}
	}
	tx.Save(InfoTable, nil, &row)
	return nil
}

// endBalance forgets the order to rebalance: nothing is left to move.
func endBalance(tx *fsm.Tx) {
	var row clusterpb.InfoRow
	if fsm.Load(tx, InfoTable, nil, &row) && row.Balance != nil {
		row.Balance = nil
		tx.Save(InfoTable, nil, &row)
	}
}

// plan chooses the moves of a rebalancing without reading the counts again after each.
type plan struct {
	r     fsm.Reader
	most  int
	nodes []load
	users map[uint32][]string // those that may still leave a node; read when first needed
}

type load struct {
	id    uint32
	homes int
	may   bool // may be a home in this mode
}

func newPlan(r fsm.Reader, most int) *plan {
	p := &plan{r: r, most: most, users: map[uint32][]string{}}
	mode := Mode(r)
	may := map[uint32]bool{}
	for _, g := range Groups(r) {
		for _, id := range candidates(g, mode) {
			may[id] = true
		}
	}
	for _, n := range Nodes(r) {
		p.nodes = append(p.nodes, load{n.ID, int(count(r, n.ID).Homes), may[n.ID]})
	}
	return p
}

// next returns the next user to move.
func (p *plan) next() (user string, to uint32, ok bool) {
	from, into := p.pick()
	if from == nil {
		return "", 0, false
	}
	user, ok = p.take(from.id)
	from.homes--
	into.homes++
	return user, into.id, ok
}

// pick returns the nodes of the next move: away from nodes that may not be homes,
// then from the fullest to the emptiest until they differ by at most one; nil if nothing is left to move.
func (p *plan) pick() (from, into *load) {
	for i := range p.nodes {
		n := &p.nodes[i]
		if n.homes > 0 && (from == nil || from.may && !n.may || from.may == n.may && n.homes > from.homes) {
			from = n
		}
		if n.may && (into == nil || n.homes < into.homes) {
			into = n
		}
	}
	if from == nil || into == nil || from.may && from.homes-into.homes <= 1 {
		return nil, nil
	}
	return from, into
}

func (p *plan) take(node uint32) (string, bool) {
	list, read := p.users[node]
	if !read {
		HomeOf(p.r, node, func(user string) bool {
			list = append(list, user)
			return len(list) < p.most
		})
	}
	if len(list) == 0 {
		return "", false
	}
	p.users[node] = list[1:]
	return list[0], true
}
