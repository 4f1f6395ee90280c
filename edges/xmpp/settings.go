package xmpp

import (
	"errors"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"muster/fsm/config"
	"muster/fsm/token"
)

// Fixed limits of a stream. MaxStanzaBytes is advertised (XEP-0478).
const (
	MaxStanzaBytes    = 256 << 10        // of one stanza on the wire, as other servers
	maxDepthBefore    = 8                // open elements before login: SASL needs 2
	maxElementsBefore = 32               // elements of one item before login: all that can be asked for at login makes 15
	maxBytesBefore    = 64 << 10         // of all that one connection sends before login; five tries need 5 KiB
	maxTries          = 5                // logins tried on one connection (RFC 6120 section 6.4.5 allows 2 to 5)
	maxRounds         = 4                // messages of one login attempt; SCRAM needs 2
	maxBinds          = 5                // failed bind requests on one stream
	partialTimeout    = 2 * time.Minute  // for a stanza that has begun to arrive: 256 KiB at 2 KiB/s
	closeTimeout      = 5 * time.Second  // for the last bytes of a stream that the server ends
	bindTimeout       = 20 * time.Second // for the router to attach a session
	hangUpAfter       = time.Second      // a connection that waited for so long is looked at before its handshake: its client may have given up
	minKey            = 16               // bytes of the cluster's secret
)

// The settings of client connections.
var (
	setUnlimited = config.String("c2s.unlimited_networks", "", checkNetworks, config.Node,
		"Networks (CIDR, separated by commas) whose clients are free of connection limits, rate limits and address lock-out: proxies, NAT gateways, load tests.")
	setPerAddress = config.Int("c2s.unauthenticated_per_address", 100, 1, 1_000_000, config.Node,
		"Connections of one client address that have not logged in, at once.")
	setUnauthenticated = config.Int("c2s.unauthenticated", 5_000, 1, 1_000_000, config.Node,
		"Connections to a node that have not logged in, at once.")
	setRatePerAddress = config.Int("c2s.connection_rate_per_address", 50, 1, 1_000_000, config.Node,
		"New connections of one client address, per second; four times as many at once.")
	setRate = config.Int("c2s.connection_rate", 2_000, 1, 1_000_000, config.Node,
		"New connections that a node accepts, per second; more wait.")
	setLoginShare = config.Int("c2s.login_share", 100, 1, 1_000, config.Node,
		"Share of the node's cores that logins may use at once, in percent: so many TLS handshakes and password checks go on at one time.")
	setLoginQueue = config.Int("c2s.login_queue", 10_000, 1, 1_000_000, config.Node,
		"Connections to a node that wait for their TLS handshake, at once; more are turned away.")
	setLoginWait = config.Duration("c2s.login_wait", 15*time.Second, 100*time.Millisecond, 10*time.Minute, config.Node,
		"Time that a connection waits for its TLS handshake before it is closed.")
	setHeaderTimeout = config.Duration("c2s.header_timeout", 10*time.Second, 100*time.Millisecond, 5*time.Minute, config.Cluster,
		"Time from the connection to the first stream header, the TLS handshake of direct TLS included; what c2s.login_wait allows is not counted.")
	setLoginTimeout = config.Duration("c2s.login_timeout", 30*time.Second, 100*time.Millisecond, 10*time.Minute, config.Cluster,
		"Time from the connection to the bound session; what c2s.login_wait allows is not counted.")
	setWriteTimeout = config.Duration("c2s.write_timeout", time.Minute, 100*time.Millisecond, 10*time.Minute, config.Cluster,
		"Time that a client may leave what is sent to it unread before its connection counts as lost.")
	setIdleTimeout = config.Duration("c2s.idle_timeout", 10*time.Minute, time.Second, 24*time.Hour, config.Cluster,
		"Silence after which the server asks whether the client is still there.")
	setProbeTimeout = config.Duration("c2s.probe_timeout", time.Minute, 100*time.Millisecond, time.Hour, config.Cluster,
		"Time for the client to answer that question before its connection counts as lost.")
	setQueueStanzas = config.Int("c2s.queue_stanzas", 5_000, 100, 1_000_000, config.Cluster,
		"Stanzas that may wait for a connected client; room for the presence of the largest roster.")
	setQueueBytes = config.Int("c2s.queue_bytes", 4<<20, 512<<10, 1<<30, config.Cluster,
		"Bytes of stanzas that may wait for a connected client.")
	setResumeTimeout = config.Duration("c2s.resume_timeout", 5*time.Minute, 0, 24*time.Hour, config.Cluster,
		"Time for a client to resume a lost connection (XEP-0198); 0 turns resumption off.")
	setResumeStanzas = config.Int("c2s.resume_queue_stanzas", 1_000, 10, 100_000, config.Cluster,
		"Stanzas that may wait for a client that has lost its connection; then its session ends, and they go where they go without it.")
	setResumeBytes = config.Int("c2s.resume_queue_bytes", 1<<20, 512<<10, 1<<30, config.Cluster,
		"Bytes of stanzas that may wait for a client that has lost its connection.")
	setTokenLifetime = config.Duration("c2s.token_lifetime", 21*24*time.Hour, 0, token.MaxDays*24*time.Hour, config.Cluster,
		"Time that a token for logging in again without the password is good (XEP-0484), from the end of the day (UTC) on which it was given; 0 turns tokens off.")
	setTokenRenewal = config.Duration("c2s.token_renewal", 14*24*time.Hour, 0, token.MaxDays*24*time.Hour, config.Cluster,
		"A client that logs in with a token that is good for less than this gets a new one.")
	setByteRate = config.Int("c2s.byte_rate", 20<<10, 1<<10, 1<<30, config.Cluster,
		"Bytes per second that are read from a client that is not an administrator.")
	setByteBurst = config.Int("c2s.byte_burst", 128<<10, 4<<10, 1<<30, config.Cluster,
		"Bytes that may come from a client at once.")
	setStanzaRate = config.Int("c2s.stanza_rate", 50, 1, 1_000_000, config.Cluster,
		"Stanzas per second that are read from a client that is not an administrator.")
	setStanzaBurst = config.Int("c2s.stanza_burst", 200, 1, 1_000_000, config.Cluster,
		"Stanzas that may come from a client at once.")
)

// networks is a parsed list of networks with the text that it came from.
type networks struct {
	text string
	list []netip.Prefix
}

var errNetworks = errors.New("must be networks such as 10.0.0.0/8,2001:db8::/32")

func parseNetworks(text string) (*networks, error) {
	n := &networks{text: text}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			return nil, errNetworks
		}
		n.list = append(n.list, p.Masked())
	}
	return n, nil
}

func checkNetworks(text string) error {
	_, err := parseNetworks(text)
	return err
}

func (n *networks) contain(a netip.Addr) bool {
	for _, p := range n.list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// unlimited tells which addresses are free of limits; it parses the setting again only when it changed.
type unlimited struct{ parsed atomic.Pointer[networks] }

func (u *unlimited) contain(live *config.Live, a netip.Addr) bool {
	text := live.String(setUnlimited)
	n := u.parsed.Load()
	if n == nil || n.text != text {
		var err error
		if n, err = parseNetworks(text); err != nil {
			n = &networks{text: text} // a value that passed its check in another release
		}
		u.parsed.Store(n)
	}
	return n.contain(a)
}

func (o *Options) complete() {
	if o.Accounts == nil {
		o.Accounts = Users(o.State)
	}
	if o.Iterations == nil {
		o.Iterations = neighbour(o.State)
	}
	if o.Listen == nil {
		o.Listen = listenTCP
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// cores is how many passwords may be hashed at once.
func cores() int { return runtime.GOMAXPROCS(0) }
