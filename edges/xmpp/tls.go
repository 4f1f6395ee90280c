package xmpp

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"

	"muster/edges/xmpp/sasl"
)

// The types of channel binding that are offered.
const (
	bindExporter = "tls-exporter"         // RFC 9266; TLS 1.3 only
	bindEndPoint = "tls-server-end-point" // RFC 5929 section 4; XEP-0440 makes it mandatory
)

const exporterLabel = "EXPORTER-Channel-Binding" // RFC 9266 section 4.2
const exporterSize = 32                          // bytes

// tlsConfig returns the configuration of the listeners; protocols are for ALPN.
func (s *Server) tlsConfig(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := s.o.Certs.GetCertificate(h)
			if w, ok := h.Conn.(*wire); ok && err == nil {
				w.leaf = leafOf(c)
			}
			return c, err
		},
		DynamicRecordSizingDisabled: true, // a batch of stanzas is one record
	}
}

func leafOf(c *tls.Certificate) *x509.Certificate {
	if c.Leaf != nil {
		return c.Leaf
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil
	}
	return leaf
}

// peer returns what SASL needs to know of the connection.
func (st *stream) peer() sasl.Peer {
	p := sasl.Peer{Domain: st.domain, Address: st.lockAddress(), Binding: st.binding}
	if t, ok := st.conn.(*tls.Conn); ok && t.ConnectionState().Version >= tls.VersionTLS13 {
		p.Kinds = append(p.Kinds, bindExporter)
	}
	if st.wire.leaf != nil {
		p.Kinds = append(p.Kinds, bindEndPoint)
	}
	return p
}

// lockAddress is what lock-out counts; clients from unlimited networks are many behind one address.
func (st *stream) lockAddress() string {
	if st.unlimited || !st.addr.IsValid() {
		return ""
	}
	return st.addr.String()
}

// binding returns channel-binding data of that type.
func (st *stream) binding(kind string) ([]byte, bool) {
	t, ok := st.conn.(*tls.Conn)
	switch {
	case !ok:
		return nil, false
	case kind == bindExporter:
		state := t.ConnectionState()
		if state.Version < tls.VersionTLS13 {
			return nil, false
		}
		data, err := state.ExportKeyingMaterial(exporterLabel, nil, exporterSize)
		return data, err == nil
	case kind == bindEndPoint && st.wire.leaf != nil:
		return endPoint(st.wire.leaf), true
	}
	return nil, false
}

// endPoint hashes the certificate by its signature's hash function, or SHA-256 if that is weak or none (RFC 5929 section 4.1).
func endPoint(c *x509.Certificate) []byte {
	switch c.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		sum := sha512.Sum384(c.Raw)
		return sum[:]
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		sum := sha512.Sum512(c.Raw)
		return sum[:]
	}
	sum := sha256.Sum256(c.Raw)
	return sum[:]
}
