package node

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"errors"

	"muster/edges/http"
	"muster/edges/http/adminapi"
	"muster/edges/xmpp"
	"muster/feature/register"
	"muster/fsm/token"
	"muster/internal/fault"
	"muster/internal/node/operate"
	"muster/log"
	"muster/monitor"
	"muster/router"
)

// routerService is the name of the service below all others; it cannot be stopped by itself.
const routerService = operate.Essential

// openServices makes the edges and the runner that decides when they run.
func (n *Node) openServices() (err error) {
	key, err := hkdf.Key(sha256.New, n.identity.ClusterKey, nil, "muster client edge", 32)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "node.open", "client key")
	}
	n.clients, err = xmpp.New(xmpp.Options{
		Node: n.identity.NodeID, StartTLS: addresses(n.o.Config.ClientListen), DirectTLS: addresses(n.o.Config.ClientTLSListen),
		Certs: n.certs, Router: xmpp.ForRouter(n.router), State: n.machine, Live: n.live, Key: key, VoidTokens: n.voidTokens,
		Registrar: register.NewRegistrar(n.machine, n.live, proposer{n}), Listen: n.o.Listen, Logger: n.logger,
	})
	if err != nil {
		return err
	}
	n.runner = monitor.NewRunner(monitor.Options{
		Source: source{n}, Alarms: n.alarms, Logger: n.logger, Timing: n.o.Monitor,
		Oldest: uint32(log.OldestVersion), Newest: uint32(log.NewestVersion),
		Services: []monitor.Service{
			&monitor.Func{Label: routerService, Gates: monitor.FeatureGates(), StartFn: n.startRouter, StopFn: n.router.Stop, HealthFn: n.routerHealth},
			gated{n.clients, []monitor.Gate{monitor.Running(routerService)}},
		},
	})
	return nil
}

// voidTokens implements xmpp.VoidTokens.
func (n *Node) voidTokens(ctx context.Context, voids ...token.Void) error {
	entries := make([]*log.Entry, len(voids))
	for i, v := range voids {
		entries[i] = token.VoidEntry(v)
	}
	results, err := proposer{n}.Propose(ctx, entries...)
	if err != nil {
		return err
	}
	for _, r := range results {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

func addresses(one string) []string {
	if one == "" {
		return nil
	}
	return []string{one}
}

// gated is a service that waits for more gates than it knows of itself.
type gated struct {
	monitor.Service
	more []monitor.Gate
}

// Needs implements monitor.Service.
func (g gated) Needs() []monitor.Gate {
	return append(append([]monitor.Gate{}, g.more...), g.Service.Needs()...)
}

// startRouter makes this node a home: its start is committed, so that all that
// was committed before is applied here, then the router begins. A publisher
// that starts in spite of a closed gate has no quorum to commit to: it serves
// what its last incarnation left, read-only, and starts anew when the leader is heard.
func (n *Node) startRouter(ctx context.Context) error {
	err := n.proposeStart(ctx)
	switch {
	case err == nil:
	case n.controlProgress.caughtUp() || n.incarnation() == 0:
		return err
	default:
		n.logger.Warn("router_starts_read_only", "error", err)
		n.onFenced()
	}
	n.routing.Store(true) // from here on the router hears of changes; what was before it reads itself
	return n.router.Start()
}

// routerHealth shows why the router serves less than everything.
func (n *Node) routerHealth() monitor.Health {
	h := monitor.Health{State: monitor.Started}
	if n.group.LeaderContact() > router.IsolationAfter {
		h.Reason = "no contact with the control log's leader: read-only"
	}
	return h
}

// serve opens the health pages and the administrative socket; both answer while services wait.
func (n *Node) serve() error {
	if address := n.o.Config.HTTPSListen; address != "" {
		ln, err := n.o.Listen(address)
		if err != nil {
			return &fault.Error{Code: fault.Unavailable, Op: "node.start", Subject: address,
				Text: "cannot listen on " + address + " (https.listen): is another server there?", Err: err}
		}
		n.servers = append(n.servers, http.Serve(ln, http.Public(pages{n}, n.samples), &tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: n.certs.GetCertificate}, n.logger))
	}
	if n.o.NoAdmin {
		return nil
	}
	ln, err := http.ListenSocket(n.o.Config.Data)
	if err != nil {
		return err
	}
	n.servers = append(n.servers, http.Serve(ln, http.Admin(n.Operator()), nil, n.logger))
	return nil
}

// HTTPS returns the address of the health pages; "" if there are none.
func (n *Node) HTTPS() string {
	if n.o.Config.HTTPSListen == "" || len(n.servers) == 0 {
		return ""
	}
	return n.servers[0].Addr().String()
}

// Operator returns what an administrator of this node can do.
func (n *Node) Operator() *operate.Operator {
	return operate.New(operate.Parts{
		Self: n.identity.NodeID, Name: n.identity.Name, Release: n.o.Release, State: n.machine, Proposer: proposer{n}, Replication: n.group, Logs: []operate.Log{n.messages},
		Router: n.router, Presence: n.hot, Runner: served{n.runner, n}, Alarms: n.alarms, Certificates: n.certs, Reload: n.ReloadCertificates,
		NewToken: n.keeper.NewToken, Backup: n.backup, Liveness: n.liveness,
	})
}

var _ http.Operator = (*operate.Operator)(nil)

// pages is what the health pages show.
type pages struct{ n *Node }

var _ http.Health = pages{}

// Live implements http.Health.
func (p pages) Live() error { return errors.Join(p.n.machine.Halted(), p.n.messageMachine.Halted()) }

// Ready implements http.Health.
func (p pages) Ready() (bool, string) { return p.n.ready() }

// Replication implements http.Health.
func (p pages) Replication(ctx context.Context) (adminapi.Replication, error) {
	return p.n.Operator().Replication(ctx)
}
