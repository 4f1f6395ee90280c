// Package xmpp is the client edge: it accepts XMPP clients over TCP (RFC 6120),
// secures, authenticates and binds them, and moves stanzas between them and
// the router. It decides nothing about a stanza beyond its form and sender.
//
// A stream is one connection; a session is what it binds, and outlives it
// where stream management (XEP-0198) lets another stream resume it. A stream's
// input is handled by one goroutine at a time; a session's output is queued,
// bounded, and written by a goroutine that exists only while there is output.
// On Linux a TCP connection with nothing to read holds no goroutine at all.
// cmd makes a Server; the data monitor starts and stops it as a service.
//
// Invariants: nothing but STARTTLS before TLS, nothing but SASL
// (and registration, where it is allowed) before login, nothing but binding and resumption before a session; every stanza that
// reaches the router carries the session's own full address; a stanza taken
// from the router is written, kept for resumption, or handed back when the
// session ends; all that a client can make grow has a limit.
package xmpp

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"muster/edges/xmpp/sasl"
	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/monitor"
	"muster/router"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// ServiceName is the name of this service in the data monitor.
const ServiceName = "client-connections"

// Certificates hands out the server's certificate; *certs.Source is one.
type Certificates interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Session is what the router gives for a bound client; *router.Session is one.
type Session interface {
	JID() jid.JID
	ID() uint64
	Receive(ctx context.Context, p *stanza.Packet) error
	Skip()
	Taken(ps []*stanza.Packet)
	Record(rec router.Record)
	Location() string
	Confirm(input uint64)
	Suspend() bool
	Moved() bool
	End(clean bool, undelivered []*stanza.Packet)
}

// Binder is what the edge needs of the router; ForRouter makes one.
type Binder interface {
	// Bind makes a session whose stanzas go to sink.
	Bind(ctx context.Context, b BindRequest) (Session, error)
	// Resume makes a session that is on record in the cluster one whose stanzas go to q.Sink.
	Resume(ctx context.Context, q router.ResumeRequest) (Session, router.Resumed, error)
	// StreamFeatures returns what the features add to the stream features after login, canonical.
	StreamFeatures() []byte
	// BindFeatures returns the namespaces of the features that a client can turn on while it binds.
	BindFeatures() []string
}

// Options are what a Server needs.
type Options struct {
	Node       uint32                                     // this node's id; resumption ids carry it
	StartTLS   []string                                   // addresses for STARTTLS, usually ":5222"
	DirectTLS  []string                                   // addresses for direct TLS (XEP-0368), usually ":5223"
	Certs      Certificates                               //
	Router     Binder                                     //
	State      fsm.Reader                                 // served domains
	Live       *config.Live                               // settings
	Accounts   sasl.Directory                             // who may log in; nil: the users in State
	Registrar  Registrar                                  // makes accounts for clients that have none; nil: nobody does
	Key        []byte                                     // the cluster's secret: salts of unknown users, resumption ids, resources and tokens derive from it
	VoidTokens VoidTokens                                 // nil: no client gets a token (XEP-0484)
	Iterations func(user string) int                      // of the password that an unknown user seems to have; nil: as its neighbour in State
	Listen     func(address string) (net.Listener, error) // nil: TCP
	Logger     *slog.Logger                               // nil: slog.Default
}

// Server serves XMPP clients on one node. It can be started again after Stop.
type Server struct {
	o         Options
	auth      *sasl.Authenticator
	guard     *guard
	tokens    *tokens
	counters  counters
	workers   *workers
	startTLS  *tls.Config
	directTLS *tls.Config
	before    *xmltok.Options // limits before login
	after     *xmltok.Options // and after
	redirect  atomic.Pointer[string]
	free      unlimited

	resumeWait time.Duration // resumeWait, but in tests

	mu      sync.Mutex
	run     *run    // nil: not started
	last    *run    // the present run or the one before
	earlier traffic // of the runs before last
	started time.Time
}

var _ monitor.Service = (*Server)(nil)

// run is one life of the server, between Start and Stop.
type run struct {
	srv       *Server
	ctx       context.Context
	cancel    context.CancelFunc
	listeners []net.Listener
	gate      *gate
	turns     turns
	streams   *streamSet
	resumable *resumables
	poller    *poller // nil where connections cannot be parked
	done      sync.WaitGroup
	stopping  atomic.Bool
}

// New returns a server that is not started. The error is a fault with code BadRequest that says what is missing.
func New(o Options) (*Server, error) {
	switch {
	case o.Certs == nil, o.Router == nil, o.State == nil, o.Live == nil:
		return nil, fault.New(fault.BadRequest, "xmpp.new", "", "certificates, router, state and settings are needed")
	case len(o.Key) < minKey:
		return nil, fault.New(fault.BadRequest, "xmpp.new", "", "the key has less than 16 bytes")
	}
	o.complete()
	s := &Server{o: o, guard: newGuard(), workers: newWorkers(), resumeWait: resumeWait}
	s.tokens = newTokens(s)
	s.auth = sasl.NewAuthenticator(sasl.Options{
		Directory: o.Accounts, Guard: guardLog{s}, FakeKey: o.Key, Iterations: o.Iterations, Workers: cores(), Tokens: s.tokens,
	})
	s.startTLS = s.tlsConfig()
	s.directTLS = s.tlsConfig("xmpp-client")
	s.before = xmltok.Options{MaxBytes: xmltok.UnauthenticatedMaxBytes, MaxDepth: maxDepthBefore, MaxElements: maxElementsBefore}.WithDefaults()
	s.after = xmltok.Options{MaxBytes: MaxStanzaBytes}.WithDefaults()
	return s, nil
}

// Name implements monitor.Service.
func (s *Server) Name() string { return ServiceName }

// Needs implements monitor.Service.
func (s *Server) Needs() []monitor.Gate { return monitor.FeatureGates() }

// Health implements monitor.Service.
func (s *Server) Health() monitor.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return monitor.Health{State: monitor.Stopped, Since: s.started}
	}
	return monitor.Health{State: monitor.Started, Since: s.started}
}

// Start opens the listeners and returns. The error is a fault that names the address.
func (s *Server) Start(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != nil {
		return fault.New(fault.Conflict, "xmpp.start", "", "started already")
	}
	r := &run{srv: s, gate: newGate(), streams: newStreamSet(), resumable: newResumables()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	var err error
	if r.poller, err = newPoller(s.workers); err == nil {
		err = r.listen()
	}
	if err != nil {
		r.close()
		return err
	}
	r.done.Go(r.sweep)
	r.done.Go(func() { s.tokens.write(r.ctx) })
	if s.last != nil {
		in, out := s.last.streams.carried()
		s.earlier.in, s.earlier.out = s.earlier.in+in, s.earlier.out+out
	}
	s.run, s.last, s.started = r, r, time.Now()
	return nil
}

// Redirect sends new streams to another host from now on ("" ends it): they get <see-other-host/> after TLS.
// host is a name or address, with a port if it is not the usual one; an IPv6 address stands in brackets.
func (s *Server) Redirect(host string) { s.redirect.Store(&host) }

// Drain redirects new streams to host ("" means none) and closes the present ones
// with <see-other-host/> (or <system-shutdown/>) evenly over the time given. It returns when all have been told or ctx ends.
func (s *Server) Drain(ctx context.Context, host string, over time.Duration) error {
	r := s.running()
	if r == nil {
		return nil
	}
	s.Redirect(host)
	all := r.streams.all()
	pause := time.NewTicker(max(over/time.Duration(max(len(all), 1)), time.Microsecond))
	defer pause.Stop()
	for _, st := range all {
		if host != "" {
			st.end(stanza.StreamSeeOtherHost, host, nil)
		} else {
			st.end(stanza.StreamSystemShutdown, "this node is being drained", nil)
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Stop closes the listeners, tells every client <system-shutdown/>, ends all sessions and waits until they are gone or ctx ends.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	r := s.run
	s.run, s.started = nil, time.Now()
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	r.shutdown(ctx)
	return nil
}

func (s *Server) running() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run
}

// Addresses returns where the server listens now, STARTTLS addresses first; for port 0 the port that was given.
func (s *Server) Addresses() []net.Addr {
	r := s.running()
	if r == nil {
		return nil
	}
	out := make([]net.Addr, len(r.listeners))
	for i, l := range r.listeners {
		out[i] = l.Addr()
	}
	return out
}
