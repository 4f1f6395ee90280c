// Package monitor is the data monitor: it decides when the services of a node
// may run, says why they wait, and raises the alarms that tell an operator so.
//
// Callers: internal/node hands a Runner its services and a Source of facts;
// edges/http and the operator CLI show what Report and Alarms return. It also
// computes the states of high availability (Availability) and what the leader
// shall do about them (PlanHA) from facts that internal/node gathers.
//
// Invariants: every decision is made by Plan or PlanHA, pure functions of their
// facts; the Runner only gathers facts and executes actions. A gate that has opened for a
// running service closes again only for a hard reason (a log that cannot be
// applied, an administrator's order, a service below it that stopped): a node
// that loses its quorum keeps serving what it has. A service that fails or
// panics is contained, shown with its reason and started again with a growing delay.
package monitor

import (
	"context"
	"strings"
	"time"
)

// Gate names a condition that must hold before a service may start.
type Gate string

// The gates.
const (
	GateLog     Gate = "log"     // this node's control log has caught up with the leader
	GateSync    Gate = "sync"    // the sync agent has completed its first synchronisation, where there is one
	GateVersion Gate = "version" // this binary can run the cluster's version
)

const servicePrefix = "service:"

// Running is the gate that is open while the named service of this node is STARTED.
func Running(service string) Gate { return Gate(servicePrefix + service) }

// service returns the service that a Running gate names.
func (g Gate) service() (string, bool) { return strings.CutPrefix(string(g), servicePrefix) }

// FeatureGates returns what every feature service waits for.
func FeatureGates() []Gate { return []Gate{GateVersion, GateLog, GateSync} }

// State is a service's state, in the words of the reference product.
type State string

// The states of a service. A service that waits at a gate is STARTING.
const (
	Started  State = "STARTED"
	Starting State = "STARTING"
	Stopped  State = "STOPPED"
	Stopping State = "STOPPING"
)

// Reasons that scripts look for, in the words of the reference product.
const (
	ReasonCommanded = "Commanded Out of Service"
	ReasonNotRun    = "NOTRUNNING"
)

// Health is what is known of a service now.
type Health struct {
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"` // why it is not STARTED, or what is wrong though it is
	Since  time.Time `json:"since"`            // when State began
}

// Service is a part of a node that the data monitor starts and stops.
type Service interface {
	// Name is the stable name that operators see: "client-connections".
	Name() string
	// Needs lists the gates that must be open before Start.
	Needs() []Gate
	// Start begins serving and returns when the service serves. ctx ends when
	// the service is ordered to stop before that; it does not bound the service's life.
	Start(ctx context.Context) error
	// Stop ends serving. It is called once for each Start that returned nil.
	Stop(ctx context.Context) error
	// Health reports a running service's own view. STOPPED means that it ended
	// by itself: it is then stopped and started again.
	Health() Health
}

// Func is a Service made of functions, for parts too small for a type of their own.
type Func struct {
	Label    string
	Gates    []Gate
	StartFn  func(ctx context.Context) error
	StopFn   func(ctx context.Context) error
	HealthFn func() Health // nil: healthy while it runs
}

var _ Service = (*Func)(nil)

// Name implements Service.
func (f *Func) Name() string { return f.Label }

// Needs implements Service.
func (f *Func) Needs() []Gate { return f.Gates }

// Start implements Service.
func (f *Func) Start(ctx context.Context) error { return f.StartFn(ctx) }

// Stop implements Service.
func (f *Func) Stop(ctx context.Context) error {
	if f.StopFn == nil {
		return nil
	}
	return f.StopFn(ctx)
}

// Health implements Service.
func (f *Func) Health() Health {
	if f.HealthFn == nil {
		return Health{State: Started}
	}
	return f.HealthFn()
}
