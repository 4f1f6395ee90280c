package monitor

import (
	"time"

	"muster/fsm/config"
)

// PublisherTimeout is how long the publisher's services wait for closed gates.
var PublisherTimeout = config.Duration("monitor.publisher_timeout", 5*time.Minute, time.Second, 24*time.Hour, config.Cluster,
	"How long the publisher's services wait for its control log and for the sync agent's first synchronisation before they start anyway.")

// Settings of high availability, in the meaning that the reference product's service parameters have.
var (
	ServiceDelay = config.Duration("ha.critical_service_delay", 10*time.Second, time.Second, time.Hour, config.Cluster,
		"How long a critical service of a node may be down before the node's users fail over to their backups.")
	AutoFallback = config.Bool("ha.auto_fallback", true, config.Cluster,
		"Users return by themselves to a node that failed over and is well again. Off: they return with muster ha fallback.")
	FallbackDelay = config.Duration("ha.fallback_delay", time.Minute, 0, 24*time.Hour, config.Cluster,
		"How long a node that failed over must be up, with all of its critical services, before its users return by themselves.")
	FallbackRate = config.Int("ha.fallback_rate", 500, 1, 100_000, config.Cluster,
		"How many users a second return to a node in a fallback.")
	RebalanceRate = config.Int("assign.rebalance_rate", 100, 1, 10_000, config.Cluster,
		"How many users a second a rebalancing moves in the background.")
)
