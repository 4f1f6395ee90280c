package router

import (
	"time"

	"muster/fsm/config"
)

// The conflict policies (RFC 6120 section 7.7.2.2).
const (
	conflictReplace = "replace"
	conflictReject  = "reject"
	conflictRename  = "rename"
)

// The router's settings.
var (
	settingConflict = config.Enum("session.conflict", conflictReplace, []string{conflictReplace, conflictReject, conflictRename}, config.Cluster,
		"What happens when a client asks for a resource that is in use: replace ends the older session, reject refuses the newer one, rename gives the newer one another resource.")
	settingMaxSessions = config.Int("session.max_per_user", 10, 1, 1000, config.Cluster,
		"How many sessions one user may have at a time.")
	settingLinger = config.Duration("session.resume_grace", 30*time.Second, 0, 10*time.Minute, config.Cluster,
		"How long the contacts of a user whose node died still see a session that its client can resume at another node.")
	settingGrace = config.Duration("session.isolation_grace", 30*time.Second, time.Second, time.Hour, config.Cluster,
		"How long a node that is cut off from the cluster keeps its sessions before it closes them, so that they try the other nodes.")
)

// Bounds that are not for administrators to change.
const (
	MaxMailbox     = 1024                   // stanzas that wait for one actor; more are refused to their senders
	InputWindow    = 64                     // stanzas of one session that its actor has not finished with
	MaxMarks       = 4200                   // marks of one session: the largest list of directed presence, and some
	MaxMarkBytes   = 1 << 20                // bytes of one session's marks
	IsolationAfter = 3 * time.Second        // without the control leader a node acts as nobody's home
	SilentAfter    = 3 * time.Second        // without a sign of life a peer counts as silent
	maxCalls       = 1 << 16                // posts that wait for one actor: changes of as many contacts at once
	workersPerCPU  = 32                     // goroutines that run actors; more actors at a time get goroutines of their own
	keepEvents     = 64                     // queue slots that an idle actor keeps
	maxOutstanding = 64                     // proposals and other work that one actor waits for
	maxHops        = 4                      // nodes that a stanza passes while a home moves
	maxCached      = 1 << 16                // assignments kept in memory
	maxFeed        = 1 << 18                // changes that wait for the features; beyond it the machine waits
	proposeTimeout = 10 * time.Second       // for a proposal's outcome
	settleFor      = 2 * time.Second        // a new home waits so long for the sessions that its user is known to have
	sweepEvery     = 20 * time.Second       // between looks for idle actors; one that was idle at two looks is evicted
	retryAttach    = 100 * time.Millisecond // after a node refused a session because it is not the home by its own log
	stopPoll       = 10 * time.Millisecond  // between looks whether all sessions have left
	closingFor     = time.Minute            // an ended session without a home is forgotten
)
