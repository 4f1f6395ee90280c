package operate

import (
	"context"
	"errors"
	"sync"
	"time"

	"muster/edges/http"
	"muster/edges/http/adminapi"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
	"muster/router/hot"
	"muster/router/stanza"
)

// Settings implements http.Configuration.
func (o *Operator) Settings(ctx context.Context, node string) ([]adminapi.Setting, error) {
	var id uint32
	if node != "" {
		var err error
		if id, err = o.nodeID(node); err != nil {
			return nil, err
		}
	}
	o.current(ctx)
	var out []adminapi.Setting
	for _, d := range config.All() {
		value, source, _ := config.Effective(o.p.State, d.Name, id)
		out = append(out, adminapi.Setting{Declaration: d, Value: value, Source: source})
	}
	return out, nil
}

// scope returns the node of a setting's value; 0 for the cluster's.
func (o *Operator) scope(node string) (uint32, error) {
	if node == "" {
		return 0, nil
	}
	return o.nodeID(node)
}

// SetSetting implements http.Configuration.
func (o *Operator) SetSetting(ctx context.Context, name string, c adminapi.SettingChange) (adminapi.Done, error) {
	id, err := o.scope(c.Node)
	if err != nil {
		return adminapi.Done{}, err
	}
	if err := config.ValidateSetting(name, c.Value); err != nil {
		return adminapi.Done{}, err
	}
	return o.change(ctx, config.SetEntry(name, c.Value, id))
}

// ResetSetting implements http.Configuration.
func (o *Operator) ResetSetting(ctx context.Context, name, node string) (adminapi.Done, error) {
	id, err := o.scope(node)
	if err != nil {
		return adminapi.Done{}, err
	}
	return o.change(ctx, config.ResetEntry(name, id))
}

// Domains implements http.Configuration.
func (o *Operator) Domains(ctx context.Context) ([]string, error) {
	o.current(ctx)
	return config.Domains(o.p.State), nil
}

// AddDomain implements http.Configuration.
func (o *Operator) AddDomain(ctx context.Context, domain string) (adminapi.Done, error) {
	j, err := jid.Parse(domain)
	if err != nil || !j.IsDomain() {
		return adminapi.Done{}, fault.New(fault.BadRequest, "admin.domain", domain, domain+" is no domain name")
	}
	return o.change(ctx, config.AddDomainEntry(j.Domain))
}

// RemoveDomain implements http.Configuration.
func (o *Operator) RemoveDomain(ctx context.Context, domain string) (adminapi.Done, error) {
	return o.change(ctx, config.RemoveDomainEntry(domain))
}

// Nodes implements http.Membership.
func (o *Operator) Nodes(ctx context.Context) ([]adminapi.Node, error) {
	o.current(ctx)
	info, _ := cluster.Get(o.p.State)
	counts := cluster.Counts(o.p.State)
	var out []adminapi.Node
	for _, n := range cluster.Nodes(o.p.State) {
		out = append(out, adminapi.Node{ID: n.ID, Name: n.Name, Address: n.ClusterAddr, Listeners: n.Addrs, Publisher: n.ID == info.Publisher,
			Up: n.Up, Since: n.Since, Group: n.Group, Software: n.Software, Users: counts[n.ID]})
	}
	return out, nil
}

// NewToken implements http.Membership.
func (o *Operator) NewToken(ctx context.Context, life time.Duration) (adminapi.Token, error) {
	e, token := o.p.NewToken(life)
	if _, err := o.change(ctx, e); err != nil {
		return adminapi.Token{}, err
	}
	me, _ := cluster.NodeByID(o.p.State, o.p.Self)
	return adminapi.Token{Token: token.Reveal(), Expires: time.Now().Add(life).UTC(), Address: me.ClusterAddr}, nil
}

// Limits of a node's removal.
const (
	removeTime  = http.WriteTime - 2*time.Second
	releaseTime = removeTime / 2 // for all logs to take the node's votes before
)

// RemoveNode implements http.Membership. The node gives up its votes before it
// is removed: switched off with one, it could take a log's majority with it.
func (o *Operator) RemoveNode(ctx context.Context, name string) (adminapi.Done, error) {
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	o.current(ctx)
	id, err := o.nodeID(name)
	if err != nil {
		return adminapi.Done{}, err
	}
	e := cluster.RemoveEntry(id)
	if err := o.p.State.Check(e); err != nil {
		return adminapi.Done{}, err // it keeps its votes
	}
	first, end := context.WithTimeout(ctx, releaseTime)
	defer end()
	if err := o.release(first, id); err != nil {
		return adminapi.Done{}, &fault.Error{Code: fault.CodeOf(err), Op: "admin.node", Subject: name, Text: name + " is not removed: " + fault.Public(err), Err: err}
	}
	done, err := o.change(ctx, e)
	if err != nil || id == o.p.Self { // who is removed cannot ask any more
		return done, err
	}
	if err := o.release(ctx, id); err != nil { // a new leader, which did not know of it, may have given a vote back meanwhile
		return done, &fault.Error{Code: fault.CodeOf(err), Op: "admin.node", Subject: name,
			Text: name + " is removed, but may still have a vote; leave it running until it has stopped: " + fault.Public(err), Err: err}
	}
	return done, nil
}

// release has a node give up its vote in every log.
func (o *Operator) release(ctx context.Context, node uint32) error {
	logs := append([]Log{o.p.Replication}, o.p.Logs...)
	errs := make([]error, len(logs))
	var wg sync.WaitGroup
	for i, l := range logs {
		wg.Go(func() { errs[i] = l.Release(ctx, node) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// MovePublisher implements http.Membership.
func (o *Operator) MovePublisher(ctx context.Context, name string) (adminapi.Done, error) {
	return o.changeNode(ctx, name, cluster.PublisherEntry)
}

// Groups implements http.Assignment.
func (o *Operator) Groups(ctx context.Context) ([]adminapi.Group, error) {
	o.current(ctx)
	return o.groups(), nil
}

func (o *Operator) groups() []adminapi.Group {
	names := o.names()
	var out []adminapi.Group
	for _, g := range cluster.Groups(o.p.State) {
		shown := adminapi.Group{Name: g.Name, HA: g.HA, Nodes: []string{}}
		for _, id := range g.Nodes {
			shown.Nodes = append(shown.Nodes, names[id])
		}
		out = append(out, shown)
	}
	return out
}

// PutGroup implements http.Assignment.
func (o *Operator) PutGroup(ctx context.Context, g adminapi.Group) (adminapi.Done, error) {
	row := cluster.Group{Name: g.Name, HA: g.HA}
	for _, name := range g.Nodes {
		id, err := o.nodeID(name)
		if err != nil {
			return adminapi.Done{}, err
		}
		row.Nodes = append(row.Nodes, id)
	}
	return o.change(ctx, cluster.GroupEntry(row))
}

// RemoveGroup implements http.Assignment.
func (o *Operator) RemoveGroup(ctx context.Context, name string) (adminapi.Done, error) {
	return o.change(ctx, cluster.GroupRemoveEntry(name))
}

// SetMode implements http.Assignment.
func (o *Operator) SetMode(ctx context.Context, mode string) (adminapi.Done, error) {
	return o.change(ctx, cluster.ModeEntry(mode))
}

// AssignUsers implements http.Assignment.
func (o *Operator) AssignUsers(ctx context.Context, a adminapi.Assign) (adminapi.Done, error) {
	users := make([]string, 0, len(a.Users))
	for _, s := range a.Users {
		u, err := o.find(ctx, s)
		if err != nil {
			return adminapi.Done{}, err
		}
		users = append(users, u.Name)
	}
	if a.Unassign {
		return o.change(ctx, cluster.UnassignEntry(users))
	}
	id, err := o.scope(a.Node)
	if err != nil {
		return adminapi.Done{}, err
	}
	return o.change(ctx, cluster.AssignEntry(users, id))
}

// Rebalance implements http.Assignment: it gives the order, or calls it off; the leader moves the users.
func (o *Operator) Rebalance(ctx context.Context, stop bool) (adminapi.Done, error) {
	done, err := o.change(ctx, cluster.BalanceEntry(stop))
	done.Count = cluster.Unbalanced(o.p.State)
	return done, err
}

// Services implements http.Control.
func (o *Operator) Services(context.Context) (adminapi.Services, error) {
	out := adminapi.Services{Node: o.p.Name, Alarms: o.p.Alarms.Active()}
	for _, s := range o.p.Runner.Report() {
		out.Services = append(out.Services, adminapi.Service{Name: s.Name, State: string(s.State), Reason: s.Reason,
			Since: s.Since, Needs: s.Needs, Essential: s.Name == Essential})
	}
	return out, nil
}

// SetService implements http.Control.
func (o *Operator) SetService(ctx context.Context, name, node string, run bool) (adminapi.Done, error) {
	id, err := o.nodeID(node)
	if err != nil {
		return adminapi.Done{}, err
	}
	known := false
	for _, s := range o.p.Runner.Report() {
		known = known || s.Name == name
	}
	switch {
	case !known:
		return adminapi.Done{}, fault.New(fault.NotFound, "admin.service", name, "no service is called "+name+"; muster services lists them")
	case name == Essential:
		return adminapi.Done{}, fault.New(fault.NotAllowed, "admin.service", name, name+" cannot be stopped by itself; stop the services above it, or the node")
	}
	return o.change(ctx, cluster.ServiceEntry(id, name, !run))
}

// Override implements http.Control. A life of 0 ends an override. It needs a
// majority, as every change; a publisher without one starts by its own timeout.
func (o *Operator) Override(ctx context.Context, node, reason string, life time.Duration) (adminapi.Done, error) {
	id, err := o.nodeID(node)
	if err != nil {
		return adminapi.Done{}, err
	}
	return o.change(ctx, cluster.OverrideEntry(id, time.Now().Add(life), reason))
}

// Alarms implements http.Control.
func (o *Operator) Alarms(context.Context) (adminapi.Alarms, error) {
	return adminapi.Alarms{Node: o.p.Name, Active: o.p.Alarms.Active(), History: o.p.Alarms.History()}, nil
}

// Sessions implements http.Control.
func (o *Operator) Sessions(_ context.Context, who string, limit int) (adminapi.Sessions, error) {
	out := adminapi.Sessions{Sessions: []adminapi.Session{}}
	names := o.names()
	add := func(r hot.Row) bool {
		if len(out.Sessions) == limit {
			out.More = true
			return false
		}
		out.Sessions = append(out.Sessions, session(r, names))
		return true
	}
	if who != "" {
		j, err := bare(who)
		if err != nil {
			return out, err
		}
		for _, r := range o.p.Presence.Rows(j) {
			add(r)
		}
		return out, nil
	}
	for id := range names {
		o.p.Presence.Each(id, add)
	}
	return out, nil
}

func session(r hot.Row, names map[uint32]string) adminapi.Session {
	return adminapi.Session{JID: r.User.WithResource(r.Resource).String(), Node: names[r.Node], Since: r.Since, Priority: int(r.Priority)}
}

// EndSessions implements http.Control.
func (o *Operator) EndSessions(ctx context.Context, address string) (adminapi.Done, error) {
	j, err := jid.Parse(address)
	if err != nil {
		return adminapi.Done{}, err
	}
	if _, err := o.find(ctx, j.Bare().String()); err != nil {
		return adminapi.Done{}, err
	}
	o.p.Router.EndSessions(j.Bare(), j.Resource, stanza.StreamReset, "ended by an administrator")
	return adminapi.Done{}, nil
}

// ReloadCertificates implements http.Control.
func (o *Operator) ReloadCertificates(context.Context) ([]adminapi.Certificate, error) {
	if err := o.p.Reload(); err != nil {
		return nil, err
	}
	return o.certificates(), nil
}

func (o *Operator) certificates() []adminapi.Certificate {
	s := o.p.Certificates.Status(time.Now())
	c := adminapi.Certificate{Names: s.Names, NotAfter: s.NotAfter, Problem: s.Error}
	if c.Problem == "" {
		c.Problem = s.Warning
	}
	return []adminapi.Certificate{c}
}

// changeNode proposes a change of the named node.
func (o *Operator) changeNode(ctx context.Context, name string, entry func(uint32) *log.Entry) (adminapi.Done, error) {
	o.current(ctx)
	id, err := o.nodeID(name)
	if err != nil {
		return adminapi.Done{}, err
	}
	return o.change(ctx, entry(id))
}
