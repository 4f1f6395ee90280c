package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"muster/internal/fault"
	"muster/replication/pki"
)

// verdict is the acceptor's answer to the dialer.
type verdict byte

const (
	accepted verdict = iota
	refusedRemoved
	refusedForeign
	refusedStream
	refusedBusy
)

var verdictCodes = map[verdict]fault.Code{
	refusedRemoved: fault.Gone, refusedForeign: fault.Unauthorized,
	refusedStream: fault.Unavailable, refusedBusy: fault.Overloaded,
}

func writeText(w io.Writer, s string) error {
	if len(s) > 255 {
		s = s[:255]
	}
	_, err := w.Write(append([]byte{byte(len(s))}, s...))
	return err
}

func readText(r io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", err
	}
	b := make([]byte, n[0])
	_, err := io.ReadFull(r, b)
	return string(b), err
}

func writeVerdict(w io.Writer, v verdict, reason string) error {
	if len(reason) > 255 {
		reason = reason[:255]
	}
	_, err := w.Write(append([]byte{byte(v), byte(len(reason))}, reason...))
	return err
}

func readVerdict(r io.Reader, node uint32) error {
	var v [1]byte
	if _, err := io.ReadFull(r, v[:]); err != nil {
		return unreachable(node, err)
	}
	reason, err := readText(r)
	if err != nil {
		return unreachable(node, err)
	}
	if verdict(v[0]) == accepted {
		return nil
	}
	code, ok := verdictCodes[verdict(v[0])]
	if !ok {
		code = fault.Unavailable
	}
	return fault.New(code, "mesh.dial", fmt.Sprint(node), reason)
}

// writePlain and readPlain are the greeting of simulations, in place of TLS.
func writePlain(w io.Writer, clusterID string, node uint32) error {
	if err := writeText(w, clusterID); err != nil {
		return err
	}
	_, err := w.Write(binary.BigEndian.AppendUint32(nil, node))
	return err
}

func readPlain(r io.Reader) (clusterID string, node uint32, err error) {
	if clusterID, err = readText(r); err != nil {
		return "", 0, err
	}
	var b [4]byte
	_, err = io.ReadFull(r, b[:])
	return clusterID, binary.BigEndian.Uint32(b[:]), err
}

// admit handshakes with whoever connected, and returns what to do next; nil to close.
func (m *Mesh) admit(raw net.Conn) func() {
	_ = raw.SetDeadline(time.Now().Add(HandshakeTime))
	conn, peer, err := m.prove(raw)
	if err != nil {
		m.cfg.Logger.Warn("mesh_peer_refused", "remote", raw.RemoteAddr().String(), "reason", fault.Public(err), "err", err)
		if conn != nil && fault.Is(err, fault.Unauthorized) {
			m.refuse(conn, refusedForeign, fault.Public(err))
		}
		return nil
	}
	if peer == 0 {
		return m.admitJoin(conn)
	}
	stream, err := readText(conn)
	if err != nil {
		m.cfg.Logger.Debug("mesh_peer_silent", "node", peer, "err", err)
		return nil
	}
	return m.admitPeer(conn, peer, stream)
}

func (m *Mesh) admitJoin(conn net.Conn) func() {
	m.mu.Lock()
	join := m.join
	m.mu.Unlock()
	if join == nil {
		return nil
	}
	return func() {
		c, ok := m.track(conn, 0)
		if ok {
			join(c)
		}
	}
}

func (m *Mesh) admitPeer(conn net.Conn, peer uint32, stream string) func() {
	if m.cfg.Member(peer) == Removed {
		m.cfg.Logger.Warn("mesh_peer_refused", "node", peer, "reason", "removed")
		m.refuse(conn, refusedRemoved, fmt.Sprintf("node %d was removed from the cluster; empty its data folder and join again with a new token", peer))
		return nil
	}
	m.mu.Lock()
	l := m.streams[stream]
	m.mu.Unlock()
	if l == nil {
		m.refuse(conn, refusedStream, "the node does not serve this stream now")
		return nil
	}
	if len(l.ready) == cap(l.ready) {
		m.refuse(conn, refusedBusy, "the node has too many connections waiting")
		return nil
	}
	if writeVerdict(conn, accepted, "") != nil {
		return nil
	}
	_ = conn.SetDeadline(time.Time{})
	return func() { l.deliver(conn, peer) }
}

func (l *Listener) deliver(conn net.Conn, peer uint32) {
	c, ok := l.mesh.track(conn, peer)
	if !ok {
		return
	}
	select {
	case <-l.closed:
		_ = c.Close()
	case l.ready <- c:
	}
}

// refuse answers a dialer and waits a moment for it to close, so that the answer is not lost in a reset.
func (m *Mesh) refuse(conn net.Conn, v verdict, reason string) {
	if writeVerdict(conn, v, reason) != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, conn, 512)
}

// prove learns who connected: peer 0 is a joining node. On a refusal that can be told the connection comes back too.
func (m *Mesh) prove(raw net.Conn) (conn net.Conn, peer uint32, err error) {
	id := m.Identity()
	if m.cfg.Plain {
		cluster, node, err := readPlain(raw)
		if err == nil && cluster != id.ClusterID {
			err = foreignCluster(cluster)
		}
		return raw, node, err
	}
	tc := tls.Server(raw, serverConfig(id))
	ctx, cancel := context.WithTimeout(context.Background(), HandshakeTime)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, 0, &fault.Error{Code: fault.BadRequest, Op: "mesh.accept", Text: "the TLS handshake failed", Err: err}
	}
	st := tc.ConnectionState()
	switch {
	case st.NegotiatedProtocol == ALPNJoin:
		return tc, 0, nil
	case st.NegotiatedProtocol != ALPN:
		return nil, 0, fault.New(fault.BadRequest, "mesh.accept", "", "the peer does not speak this protocol")
	case len(st.PeerCertificates) == 0:
		return tc, 0, fault.New(fault.Unauthorized, "mesh.accept", "", "no certificate was shown")
	}
	node, err := checkPeer(id, st.PeerCertificates[0])
	return tc, node, err
}

func foreignCluster(other string) error {
	return fault.New(fault.Unauthorized, "mesh.peer", other, "the peer belongs to another cluster ("+other+")")
}

// checkPeer returns the node that a peer's certificate names, if this cluster's authority signed it.
func checkPeer(id *pki.Identity, cert *x509.Certificate) (uint32, error) {
	roots := x509.NewCertPool()
	roots.AddCert(id.CA)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		text := "the peer's certificate was not signed by this cluster's authority"
		if ie, ok := err.(x509.CertificateInvalidError); ok && ie.Reason == x509.Expired {
			text = "the peer's certificate has expired or is not yet valid; check the clocks of both nodes"
		}
		return 0, &fault.Error{Code: fault.Unauthorized, Op: "mesh.peer", Subject: cert.Subject.CommonName, Text: text, Err: err}
	}
	cluster, node, err := pki.NodeOf(cert)
	if err != nil {
		return 0, err
	}
	if cluster != id.ClusterID {
		return 0, foreignCluster(cluster)
	}
	return node, nil
}

func serverConfig(id *pki.Identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN, ALPNJoin},
		Certificates:           []tls.Certificate{*id.TLSCertificate()},
		ClientAuth:             tls.RequestClientCert, // checked after the handshake, so that a refusal can say why
		SessionTicketsDisabled: true,
	}
}

func clientConfig(id *pki.Identity, node uint32) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN},
		Certificates:       []tls.Certificate{*id.TLSCertificate()},
		InsecureSkipVerify: true, // the name to expect is a node id, not a host: checked in VerifyConnection
		VerifyConnection: func(st tls.ConnectionState) error {
			if len(st.PeerCertificates) == 0 {
				return fault.New(fault.Unauthorized, "mesh.peer", "", "the peer showed no certificate")
			}
			got, err := checkPeer(id, st.PeerCertificates[0])
			if err == nil && got != node {
				err = fault.New(fault.Unauthorized, "mesh.peer", fmt.Sprint(node), fmt.Sprintf("node %d answers at node %d's address", got, node))
			}
			return err
		},
	}
}
