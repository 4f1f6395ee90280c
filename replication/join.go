package replication

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/log"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// Limits of joining, which begins with a peer that has proven nothing.
const (
	maxJoin      = 64 << 10         // bytes of a joining node's request, and of the answer
	joinReadTime = 10 * time.Second // for the request to arrive
	joinTime     = 20 * time.Second // for the whole
	maxJoining   = 4                // nodes that join at a time
)

// joinRequest is what a joining node sends, as JSON behind four bytes of length.
type joinRequest struct {
	Token   []byte         `json:"token"` // the token's secret
	Node    cluster.Member `json:"node"`
	Request []byte         `json:"request"` // certificate request, DER
}

// joinAnswer is what it gets.
type joinAnswer struct {
	Code       fault.Code `json:"code,omitempty"`
	Text       string     `json:"text,omitempty"`
	ClusterID  string     `json:"cluster_id,omitempty"`
	NodeID     uint32     `json:"node_id,omitempty"`
	Cert       []byte     `json:"cert,omitempty"` // DER
	ClusterKey []byte     `json:"cluster_key,omitempty"`
	Peers      []pki.Peer `json:"peers,omitempty"`
}

// Join makes this node a member: it proves the invitation to any member, gets
// an id, a certificate and the cluster key, and saves its identity in the data
// folder. It then only has to be started. Faults: Conflict (the folder belongs
// to a cluster), Unauthorized (token wrong, used or expired, or another
// cluster answers at the address), Unavailable (not reached).
func Join(ctx context.Context, opts JoinOptions) (*pki.Identity, error) {
	if err := EmptyFolder(opts.Dir); err != nil {
		return nil, err
	}
	if opts.Network == nil {
		opts.Network = mesh.TCP{}
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	key, err := pki.NewNodeKey()
	if err != nil {
		return nil, err
	}
	csr, err := pki.Request(key, opts.Node.Name)
	if err != nil {
		return nil, err
	}
	ca, answer, err := askToJoin(ctx, opts, csr)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(answer.Cert)
	if err != nil || len(answer.ClusterKey) != pki.KeySize {
		return nil, fault.New(fault.Internal, "replication.join", opts.Addr, "the member's answer is malformed")
	}
	id := &pki.Identity{ClusterID: answer.ClusterID, NodeID: answer.NodeID, Name: opts.Node.Name, Peers: answer.Peers,
		Key: key, Cert: cert, CA: ca, ClusterKey: answer.ClusterKey}
	return id, id.Save(opts.Dir)
}

// askToJoin returns the cluster's CA certificate, which the token vouches for, and a good answer.
func askToJoin(ctx context.Context, opts JoinOptions, csr []byte) (*x509.Certificate, *joinAnswer, error) {
	raw, err := opts.Network.Dial(ctx, opts.Addr)
	if err != nil {
		return nil, nil, &fault.Error{Code: fault.Unavailable, Op: "replication.join", Subject: opts.Addr, Text: "no member is reached at " + opts.Addr, Err: err}
	}
	defer raw.Close()
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	var ca *x509.Certificate
	conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{mesh.ALPNJoin},
		InsecureSkipVerify: true, // the token pins the authority instead: VerifyConnection
		VerifyConnection: func(st tls.ConnectionState) (err error) {
			ca, err = pinned(st.PeerCertificates, opts.Token.Fingerprint)
			return err
		}})
	if err := conn.HandshakeContext(ctx); err != nil {
		if f, ok := err.(*fault.Error); ok {
			return nil, nil, f
		}
		return nil, nil, joinBroken(opts.Addr, err)
	}
	req, err := json.Marshal(joinRequest{Token: opts.Token.Secret, Node: opts.Node, Request: csr})
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "replication.join", "")
	}
	if err := writeMessage(conn, req); err != nil {
		return nil, nil, joinBroken(opts.Addr, err)
	}
	var answer joinAnswer
	if err := readJSON(conn, &answer); err != nil {
		return nil, nil, joinBroken(opts.Addr, err)
	}
	if answer.Code != 0 {
		return nil, nil, fault.New(answer.Code, "replication.join", opts.Addr, answer.Text)
	}
	return ca, &answer, nil
}

func joinBroken(addr string, err error) error {
	return &fault.Error{Code: fault.Unavailable, Op: "replication.join", Subject: addr,
		Text: "the connection to " + addr + " broke off; is it the cluster port of a running node?", Err: err}
}

// pinned finds the authority that the token names and checks that it signed the member's certificate.
func pinned(chain []*x509.Certificate, fingerprint [32]byte) (*x509.Certificate, error) {
	for _, c := range chain {
		if len(chain) > 1 && pki.Fingerprint(c) == fingerprint && chain[0].CheckSignatureFrom(c) == nil {
			return c, nil
		}
	}
	return nil, fault.New(fault.Unauthorized, "replication.join", "", "the node at this address belongs to another cluster than the token; check the address and the token")
}

func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readJSON reads a message of at most maxJoin bytes.
func readJSON(r io.Reader, into any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxJoin {
		return fmt.Errorf("a message of %d bytes is too large", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// Gatekeeper lets new nodes in and keeps this node's certificate fresh.
type Gatekeeper struct {
	Group   *Group
	Machine *fsm.Machine
	Mesh    *mesh.Mesh
	Dir     string       // data folder, for the renewed certificate
	Logger  *slog.Logger // nil: slog.Default()

	joining chan struct{}
}

// Start serves joining nodes on the mesh, and renews certificates until the context ends.
func (k *Gatekeeper) Start(ctx context.Context) {
	if k.Logger == nil {
		k.Logger = slog.Default()
	}
	k.joining = make(chan struct{}, maxJoining)
	k.Mesh.HandleJoin(k.serve)
	go k.renewLoop(ctx)
}

// serve answers one joining node.
func (k *Gatekeeper) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(joinTime))
	var answer joinAnswer
	select {
	case k.joining <- struct{}{}:
		defer func() { <-k.joining }()
		a, err := k.join(conn)
		if err != nil {
			k.Logger.Warn("node_join_refused", "remote", conn.RemoteAddr().String(), "err", err)
			a = joinAnswer{Code: fault.CodeOf(err), Text: fault.Public(err)}
		}
		answer = a
	default:
		answer = joinAnswer{Code: fault.Overloaded, Text: "other nodes are joining; try again in a moment"}
	}
	if b, err := json.Marshal(answer); err == nil {
		_ = writeMessage(conn, b)
	}
}

func (k *Gatekeeper) join(conn net.Conn) (joinAnswer, error) {
	_ = conn.SetReadDeadline(time.Now().Add(joinReadTime))
	var req joinRequest
	if err := readJSON(conn, &req); err != nil {
		return joinAnswer{}, &fault.Error{Code: fault.BadRequest, Op: "replication.join", Text: "the request is malformed", Err: err}
	}
	ca, err := k.authority()
	if err != nil {
		return joinAnswer{}, err
	}
	node, err := k.admit(&req)
	if err != nil {
		return joinAnswer{}, err
	}
	me := k.Mesh.Identity()
	cert, err := ca.Sign(req.Request, me.ClusterID, node, req.Node.Name, time.Now())
	if err != nil {
		return joinAnswer{}, err
	}
	k.Logger.Info("node_joined", "node", node, "name", req.Node.Name, "remote", conn.RemoteAddr().String())
	return joinAnswer{ClusterID: me.ClusterID, NodeID: node, Cert: cert, ClusterKey: me.ClusterKey, Peers: k.peers()}, nil
}

// admit proposes the new member; the token is judged by the entry's handler.
func (k *Gatekeeper) admit(req *joinRequest) (uint32, error) {
	ctx, cancel := context.WithTimeout(context.Background(), joinTime)
	defer cancel()
	e := cluster.JoinEntry(cluster.HashToken(req.Token), req.Node)
	e.Time, e.Actor, e.Surface = time.Now(), "node:"+req.Node.Name, "join"
	if err := k.precheck(ctx, e); err != nil {
		return 0, err // a stranger's guesses stay out of the log
	}
	res, err := k.Group.Propose(ctx, e)
	if err != nil {
		return 0, err
	}
	return cluster.NodeIDResult(res[0].Value), res[0].Err
}

// precheck asks this node's state first, and if that refuses, its newest state.
func (k *Gatekeeper) precheck(ctx context.Context, e *log.Entry) error {
	if k.Machine.Check(e) == nil {
		return nil
	}
	index, err := k.Group.ReadIndex(ctx)
	if err == nil {
		err = k.Group.WaitIndex(ctx, index)
	}
	if err != nil {
		return err
	}
	return k.Machine.Check(e)
}

func (k *Gatekeeper) peers() (out []pki.Peer) {
	for _, n := range cluster.Nodes(k.Machine) {
		out = append(out, pki.Peer{ID: n.ID, Addr: n.ClusterAddr})
	}
	return out
}

// authority opens the cluster's CA with the key that this node holds.
func (k *Gatekeeper) authority() (*pki.CA, error) {
	info, ok := cluster.Get(k.Machine)
	sealed, have := cluster.Secret(k.Machine, pki.SecretCAKey)
	if !ok || !have {
		return nil, fault.New(fault.Unavailable, "replication.authority", "", "this node has not caught up yet; try again in a moment")
	}
	return pki.OpenCA(info.CACert, sealed, k.Mesh.Identity().ClusterKey)
}

const renewInterval = time.Hour // between looks at the certificate's age

func (k *Gatekeeper) renewLoop(ctx context.Context) {
	tick := time.NewTicker(renewInterval)
	defer tick.Stop()
	for {
		if id := k.Mesh.Identity(); id.Cert != nil && pki.NeedsRenewal(id.Cert, time.Now()) {
			if err := k.Renew(); err != nil {
				k.Logger.Error("certificate_renewal_failed", "expires", id.Cert.NotAfter, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Renew gives this node a new certificate for its key and puts them to use at
// once. Every member can sign: the sealed CA key is replicated.
func (k *Gatekeeper) Renew() error {
	ca, err := k.authority()
	if err != nil {
		return err
	}
	id := *k.Mesh.Identity()
	if err := id.Certify(ca, time.Now()); err != nil {
		return err
	}
	if err := id.Save(k.Dir); err != nil {
		return err
	}
	k.Mesh.SetIdentity(&id)
	k.Logger.Info("certificate_renewed", "expires", id.Cert.NotAfter)
	return nil
}

// NewToken invites one node: the entry to propose, and the token to hand to the operator.
func (k *Gatekeeper) NewToken(life time.Duration) (*log.Entry, pki.Token) {
	t := pki.NewToken(pki.Fingerprint(k.Mesh.Identity().CA))
	return cluster.TokenEntry(cluster.HashToken(t.Secret), time.Now().Add(life)), t
}
