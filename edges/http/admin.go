package http

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	nethttp "net/http"
	"strconv"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

// Users manages users and their contacts.
type Users interface {
	ListUsers(ctx context.Context, prefix, after string, limit int) (adminapi.UserPage, error)
	ShowUser(ctx context.Context, user string) (adminapi.User, error)
	CreateUsers(ctx context.Context, users []adminapi.NewUser) ([]adminapi.Outcome, error)
	ChangeUser(ctx context.Context, user string, c adminapi.UserChange) (adminapi.Done, error)
	DeleteUser(ctx context.Context, user string) (adminapi.Done, error)
	ImportPairs(ctx context.Context, pairs []adminapi.Pair) ([]adminapi.Outcome, error)
}

// Configuration manages settings and IM domains.
type Configuration interface {
	Settings(ctx context.Context, node string) ([]adminapi.Setting, error)
	SetSetting(ctx context.Context, name string, c adminapi.SettingChange) (adminapi.Done, error)
	ResetSetting(ctx context.Context, name, node string) (adminapi.Done, error)
	Domains(ctx context.Context) ([]string, error)
	AddDomain(ctx context.Context, domain string) (adminapi.Done, error)
	RemoveDomain(ctx context.Context, domain string) (adminapi.Done, error)
}

// Membership manages nodes and the publisher role.
type Membership interface {
	Nodes(ctx context.Context) ([]adminapi.Node, error)
	NewToken(ctx context.Context, life time.Duration) (adminapi.Token, error)
	RemoveNode(ctx context.Context, name string) (adminapi.Done, error)
	MovePublisher(ctx context.Context, name string) (adminapi.Done, error)
}

// Assignment manages redundancy groups and the homes of users.
type Assignment interface {
	Groups(ctx context.Context) ([]adminapi.Group, error)
	PutGroup(ctx context.Context, g adminapi.Group) (adminapi.Done, error)
	RemoveGroup(ctx context.Context, name string) (adminapi.Done, error)
	SetMode(ctx context.Context, mode string) (adminapi.Done, error)
	AssignUsers(ctx context.Context, a adminapi.Assign) (adminapi.Done, error)
	Rebalance(ctx context.Context, stop bool) (adminapi.Done, error)
}

// Availability shows and orders failovers.
type Availability interface {
	HA(ctx context.Context) (adminapi.HA, error)
	Failover(ctx context.Context, node string) (adminapi.Done, error)
	Fallback(ctx context.Context, node string) (adminapi.Done, error)
}

// Control manages what runs on this node.
type Control interface {
	Services(ctx context.Context) (adminapi.Services, error)
	SetService(ctx context.Context, name, node string, run bool) (adminapi.Done, error)
	Override(ctx context.Context, node, reason string, life time.Duration) (adminapi.Done, error)
	Alarms(ctx context.Context) (adminapi.Alarms, error)
	Sessions(ctx context.Context, user string, limit int) (adminapi.Sessions, error)
	EndSessions(ctx context.Context, address string) (adminapi.Done, error)
	ReloadCertificates(ctx context.Context) ([]adminapi.Certificate, error)
}

// Overview shows the cluster.
type Overview interface {
	Status(ctx context.Context) (adminapi.Status, error)
	Replication(ctx context.Context) (adminapi.Replication, error)
	CompareDigests(ctx context.Context) (adminapi.Digests, error)
	// Backup writes a backup. begin hears its size in bytes before the first of them.
	Backup(ctx context.Context, w io.Writer, req adminapi.BackupRequest, begin func(size int64)) error
}

// Operator is all that the administrative API can do.
type Operator interface {
	Users
	Configuration
	Membership
	Assignment
	Availability
	Control
	Overview
}

// backupPause is how long the client of a backup may take none of it. The whole
// may last as long as it needs, but its checkpoint keeps disk space meanwhile.
const backupPause = 2 * time.Minute

// request is one request with the decoding that handlers need.
type request struct {
	*nethttp.Request
}

// read decodes the body into v; unknown fields are refused.
func (r request) read(v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	var large *nethttp.MaxBytesError
	switch {
	case errors.As(err, &large):
		return fault.New(fault.TooLarge, "admin.read", r.URL.Path, "the request is too large; send it in parts")
	case err != nil:
		return &fault.Error{Code: fault.BadRequest, Op: "admin.read", Subject: r.URL.Path, Text: "the body is not the JSON wanted: " + err.Error(), Err: err}
	}
	return nil
}

func (r request) query(name string) string { return r.URL.Query().Get(name) }

// count reads a whole number of the query; def where it is absent.
func (r request) count(name string, def, most int) (int, error) {
	s := r.query(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, fault.New(fault.BadRequest, "admin.read", name, name+": must be a number from 1 to "+strconv.Itoa(most))
	}
	return n, nil
}

// duration reads a duration of the query; def where it is absent.
func (r request) duration(name string, def, most time.Duration) (time.Duration, error) {
	s := r.query(name)
	if s == "" {
		return def, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 || d > most {
		return 0, fault.New(fault.BadRequest, "admin.read", name, name+": must be a duration such as 10m, at most "+most.String())
	}
	return d, nil
}

// Admin returns the handler of the administrative socket.
func Admin(op Operator) nethttp.Handler {
	mux := nethttp.NewServeMux()
	on := func(pattern string, fn func(r request) (any, error)) {
		mux.HandleFunc(pattern, func(w nethttp.ResponseWriter, r *nethttp.Request) {
			v, err := fn(request{r})
			if err != nil {
				writeError(w, err)
				return
			}
			writeJSON(w, nethttp.StatusOK, v)
		})
	}
	userRoutes(on, op)
	configurationRoutes(on, op)
	membershipRoutes(on, op)
	assignmentRoutes(on, op)
	availabilityRoutes(on, op)
	controlRoutes(on, op)
	on("GET /admin/status", func(r request) (any, error) { return op.Status(r.Context()) })
	on("GET /admin/replication", func(r request) (any, error) { return op.Replication(r.Context()) })
	on("GET /admin/replication/digests", func(r request) (any, error) { return op.CompareDigests(r.Context()) })
	mux.HandleFunc("POST /admin/backup", func(w nethttp.ResponseWriter, r *nethttp.Request) { backup(w, request{r}, op) })
	return mux
}

// route registers a handler for a method and path.
type route func(pattern string, fn func(r request) (any, error))

// MaxPage is the largest page of users or sessions that may be asked for.
const MaxPage = 10_000

func userRoutes(on route, op Users) {
	on("GET /admin/users", func(r request) (any, error) {
		limit, err := r.count("limit", 1000, MaxPage)
		if err != nil {
			return nil, err
		}
		return op.ListUsers(r.Context(), r.query("prefix"), r.query("after"), limit)
	})
	on("POST /admin/users", func(r request) (any, error) {
		var users []adminapi.NewUser
		if err := readBatch(r, &users); err != nil {
			return nil, err
		}
		return op.CreateUsers(r.Context(), users)
	})
	on("GET /admin/users/{user}", func(r request) (any, error) { return op.ShowUser(r.Context(), r.PathValue("user")) })
	on("PATCH /admin/users/{user}", func(r request) (any, error) {
		var c adminapi.UserChange
		if err := r.read(&c); err != nil {
			return nil, err
		}
		return op.ChangeUser(r.Context(), r.PathValue("user"), c)
	})
	on("DELETE /admin/users/{user}", func(r request) (any, error) { return op.DeleteUser(r.Context(), r.PathValue("user")) })
	on("POST /admin/contacts", func(r request) (any, error) {
		var pairs []adminapi.Pair
		if err := readBatch(r, &pairs); err != nil {
			return nil, err
		}
		return op.ImportPairs(r.Context(), pairs)
	})
}

// readBatch reads a list of at most adminapi.MaxBatch subjects.
func readBatch[T any](r request, list *[]T) error {
	if err := r.read(list); err != nil {
		return err
	}
	if len(*list) > adminapi.MaxBatch {
		return fault.New(fault.TooLarge, "admin.read", r.URL.Path, "at most "+strconv.Itoa(adminapi.MaxBatch)+" at a time")
	}
	return nil
}

func configurationRoutes(on route, op Configuration) {
	on("GET /admin/settings", func(r request) (any, error) { return op.Settings(r.Context(), r.query("node")) })
	on("PUT /admin/settings/{name}", func(r request) (any, error) {
		var c adminapi.SettingChange
		if err := r.read(&c); err != nil {
			return nil, err
		}
		return op.SetSetting(r.Context(), r.PathValue("name"), c)
	})
	on("DELETE /admin/settings/{name}", func(r request) (any, error) {
		return op.ResetSetting(r.Context(), r.PathValue("name"), r.query("node"))
	})
	on("GET /admin/domains", func(r request) (any, error) { return op.Domains(r.Context()) })
	on("PUT /admin/domains/{name}", func(r request) (any, error) { return op.AddDomain(r.Context(), r.PathValue("name")) })
	on("DELETE /admin/domains/{name}", func(r request) (any, error) { return op.RemoveDomain(r.Context(), r.PathValue("name")) })
}

// Bounds of what an operator asks for with a lifetime.
const (
	TokenLife       = 24 * time.Hour // of an invitation, unless asked otherwise
	MaxTokenLife    = 30 * 24 * time.Hour
	OverrideLife    = 15 * time.Minute // of a gate override, unless asked otherwise
	MaxOverrideLife = 24 * time.Hour
)

func membershipRoutes(on route, op Membership) {
	on("GET /admin/nodes", func(r request) (any, error) { return op.Nodes(r.Context()) })
	on("DELETE /admin/nodes/{name}", func(r request) (any, error) { return op.RemoveNode(r.Context(), r.PathValue("name")) })
	on("PUT /admin/publisher/{name}", func(r request) (any, error) { return op.MovePublisher(r.Context(), r.PathValue("name")) })
	on("POST /admin/tokens", func(r request) (any, error) {
		life, err := r.duration("for", TokenLife, MaxTokenLife)
		if err != nil {
			return nil, err
		}
		return op.NewToken(r.Context(), life)
	})
}

func assignmentRoutes(on route, op Assignment) {
	on("GET /admin/groups", func(r request) (any, error) { return op.Groups(r.Context()) })
	on("PUT /admin/groups/{name}", func(r request) (any, error) {
		var g adminapi.Group
		if err := r.read(&g); err != nil {
			return nil, err
		}
		g.Name = r.PathValue("name")
		return op.PutGroup(r.Context(), g)
	})
	on("DELETE /admin/groups/{name}", func(r request) (any, error) { return op.RemoveGroup(r.Context(), r.PathValue("name")) })
	on("PUT /admin/assignment/mode/{mode}", func(r request) (any, error) { return op.SetMode(r.Context(), r.PathValue("mode")) })
	on("POST /admin/assignment/users", func(r request) (any, error) {
		var a adminapi.Assign
		if err := r.read(&a); err != nil {
			return nil, err
		}
		return op.AssignUsers(r.Context(), a)
	})
	on("POST /admin/assignment/rebalance", func(r request) (any, error) { return op.Rebalance(r.Context(), false) })
	on("DELETE /admin/assignment/rebalance", func(r request) (any, error) { return op.Rebalance(r.Context(), true) })
}

func availabilityRoutes(on route, op Availability) {
	on("GET /admin/ha", func(r request) (any, error) { return op.HA(r.Context()) })
	on("POST /admin/ha/{node}/failover", func(r request) (any, error) { return op.Failover(r.Context(), r.PathValue("node")) })
	on("POST /admin/ha/{node}/fallback", func(r request) (any, error) { return op.Fallback(r.Context(), r.PathValue("node")) })
}

func controlRoutes(on route, op Control) {
	on("GET /admin/services", func(r request) (any, error) { return op.Services(r.Context()) })
	for verb, run := range map[string]bool{"start": true, "stop": false} {
		on("POST /admin/services/{name}/"+verb, func(r request) (any, error) {
			return op.SetService(r.Context(), r.PathValue("name"), r.query("node"), run)
		})
	}
	on("POST /admin/override", func(r request) (any, error) {
		life, err := r.duration("for", OverrideLife, MaxOverrideLife)
		if err != nil {
			return nil, err
		}
		return op.Override(r.Context(), r.query("node"), r.query("reason"), life)
	})
	on("DELETE /admin/override", func(r request) (any, error) { return op.Override(r.Context(), r.query("node"), "", 0) })
	on("GET /admin/alarms", func(r request) (any, error) { return op.Alarms(r.Context()) })
	on("GET /admin/sessions", func(r request) (any, error) {
		limit, err := r.count("limit", 1000, MaxPage)
		if err != nil {
			return nil, err
		}
		return op.Sessions(r.Context(), r.query("user"), limit)
	})
	on("DELETE /admin/sessions", func(r request) (any, error) { return op.EndSessions(r.Context(), r.query("address")) })
	on("POST /admin/certificates/reload", func(r request) (any, error) { return op.ReloadCertificates(r.Context()) })
}

// backup streams an encrypted backup. A failure after the first byte breaks
// the connection, so that the client never takes a part for the whole.
func backup(w nethttp.ResponseWriter, r request, op Overview) {
	var req adminapi.BackupRequest
	if err := r.read(&req); err != nil {
		writeError(w, err)
		return
	}
	out := &started{w: w, rc: nethttp.NewResponseController(w)}
	err := op.Backup(r.Context(), out, req, func(size int64) { w.Header().Set("Content-Length", strconv.FormatInt(size, 10)) })
	switch {
	case err == nil:
	case !out.begun:
		w.Header().Del("Content-Length") // of what does not come
		writeError(w, err)
	default:
		panic(nethttp.ErrAbortHandler)
	}
}

// started notes whether anything was written, and passes each piece on at once for the client's progress.
type started struct {
	w     nethttp.ResponseWriter
	rc    *nethttp.ResponseController
	begun bool
}

// Write implements io.Writer.
func (s *started) Write(p []byte) (int, error) {
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", "application/octet-stream")
	}
	_ = s.rc.SetWriteDeadline(time.Now().Add(backupPause)) // without support the default stays
	n, err := s.w.Write(p)
	if err == nil {
		err = s.rc.Flush()
	}
	return n, err
}
