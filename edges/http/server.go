// Package http is a node's HTTP edge: the public health and metrics pages on
// the HTTPS listener, and the administrative API on a Unix socket in the data folder.
//
// Callers: internal/node builds both and hands over what they show as small
// interfaces. Invariants: nothing that changes anything or names a user is
// reachable outside the socket, which only its owner may open; bodies, headers
// and times are bounded; an answer never shows more of an error than its public part.
package http

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	nethttp "net/http"
	"os"
	"path/filepath"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

// Limits of both servers (spec/reliability-security.md S14, S22).
const (
	MaxHeader  = 32 << 10         // bytes of a request's head
	MaxBody    = 4 << 20          // bytes of a request's body: MaxBatch users with verifiers have half a megabyte
	HeadTime   = 5 * time.Second  // to read a request's head
	ReadTime   = 30 * time.Second // to read a whole request
	WriteTime  = 30 * time.Second // to write an answer, except a backup
	IdleTime   = 60 * time.Second // between two requests of a connection
	maxStreams = 100              // HTTP/2 streams of one connection
	stopTime   = 2 * time.Second  // for answers under way when the server stops
)

// Server is one listener with its handler.
type Server struct {
	srv    *nethttp.Server
	ln     net.Listener
	logger *slog.Logger
}

// Serve starts to answer on ln. tlsConfig nil means plain HTTP, for the Unix socket.
func Serve(ln net.Listener, h nethttp.Handler, tlsConfig *tls.Config, logger *slog.Logger) *Server {
	s := &Server{ln: ln, logger: logger}
	s.srv = &nethttp.Server{
		Handler: contain(h, logger), TLSConfig: tlsConfig, MaxHeaderBytes: MaxHeader,
		ReadHeaderTimeout: HeadTime, ReadTimeout: ReadTime, WriteTimeout: WriteTime, IdleTimeout: IdleTime,
		HTTP2:    &nethttp.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog: slog.NewLogLogger(logger.With("part", "http").Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, actorKey{}, peerOf(c))
		},
	}
	go s.run()
	return s
}

func (s *Server) run() {
	var err error
	if s.srv.TLSConfig != nil {
		err = s.srv.ServeTLS(s.ln, "", "")
	} else {
		err = s.srv.Serve(s.ln)
	}
	if !errors.Is(err, nethttp.ErrServerClosed) {
		s.logger.Error("http_ended", "address", s.ln.Addr().String(), "error", err)
	}
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Stop lets answers under way finish for a moment and closes the listener and all connections.
func (s *Server) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	if err := s.srv.Shutdown(ctx); err != nil {
		return s.srv.Close()
	}
	return nil
}

// contain answers a panic with an error of its own request only (S28).
func contain(h nethttp.Handler, logger *slog.Logger) nethttp.Handler {
	return nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == nethttp.ErrAbortHandler {
				panic(p)
			}
			logger.Error("http_panic", "path", r.URL.Path, "panic", p)
			writeError(w, fault.New(fault.Internal, "http.serve", r.URL.Path, ""))
		}()
		r.Body = nethttp.MaxBytesReader(w, r.Body, MaxBody)
		h.ServeHTTP(w, r)
	})
}

// ListenSocket opens the administrative socket in the data folder, for its owner
// only. A socket left behind by a process that died is replaced; one that answers is a Conflict.
func ListenSocket(data string) (net.Listener, error) {
	path := filepath.Join(data, adminapi.SocketName)
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fault.New(fault.Conflict, "admin.listen", path, "another musterd runs on this data folder; stop it first")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(err, fault.Forbidden, "admin.listen", path)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, &fault.Error{Code: fault.Unavailable, Op: "admin.listen", Subject: path,
			Text: "the socket cannot be opened; a data folder's path may have at most 90 bytes", Err: err}
	}
	if err := os.Chmod(path, 0o600); err != nil { // until here the folder's own mode, 0700, protects it
		ln.Close()
		return nil, fault.Wrap(err, fault.Forbidden, "admin.listen", path)
	}
	return ln, nil
}

type actorKey struct{}

// ActorOf returns who sent the request, for the audit trail: "local:0" is the
// local user with id 0, "local" where the system does not tell.
func ActorOf(ctx context.Context) string {
	if s, ok := ctx.Value(actorKey{}).(string); ok && s != "" {
		return s
	}
	return "local"
}
