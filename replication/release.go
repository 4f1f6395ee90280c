package replication

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"muster/internal/fault"
)

// leaveTime is how long a node is known to leave after the last request: long
// enough for the removal that follows, short enough for one that was given up.
const leaveTime = time.Minute

// Release has a node give up its vote in this log, from any node, and returns
// when its voters have agreed on that: it may be switched off then. Others
// take the vote over first, as far as they can. Unless the node leaves the
// node table within leaveTime it may get its vote back. Faults: Unavailable
// (the leader does not do it within the context's time, and says what to do),
// NoQuorum and Timeout (no leader, or no answer).
func (g *Group) Release(ctx context.Context, node uint32) error {
	const op = "replication.release"
	request := binary.BigEndian.AppendUint32(nil, node)
	g.each(func(_ int, m Member) { // for the next leader, which would count its vote, and take another one's
		ctx, cancel := context.WithTimeout(ctx, lookTime)
		defer cancel()
		_, _ = g.Call(ctx, m.ID, "release", request) // who leads is asked below
	})
	var why string
	err := g.persist(ctx, op, func(ctx context.Context) error {
		answer, err := g.askRelease(ctx, request)
		if err != nil || len(answer) == 0 {
			return err
		}
		why = string(answer)
		return fault.New(fault.Unavailable, op, fmt.Sprint(node), why)
	})
	if code := fault.CodeOf(err); code == fault.Timeout && why != "" {
		return &fault.Error{Code: fault.Unavailable, Op: op, Subject: fmt.Sprint(node), Text: why, Err: err}
	} else if err != nil {
		return &fault.Error{Code: code, Op: op, Subject: fmt.Sprint(node), Text: "the " + g.cfg.Name + " log: " + fault.Public(err), Err: err}
	}
	return nil
}

// askRelease asks the leader once; it answers why the node still votes, with nothing when that is over.
func (g *Group) askRelease(ctx context.Context, request []byte) ([]byte, error) {
	leader := g.Leader()
	if g.raft.State() == raft.Leader || leader == g.cfg.NodeID || leader == 0 {
		return g.serveRelease(ctx, g.cfg.NodeID, request)
	}
	return g.askLeader(ctx, leader, "release", request)
}

// serveRelease notes that a node leaves. On the leader reconcileLoop does the rest, and the answer says how far it is.
func (g *Group) serveRelease(ctx context.Context, _ uint32, request []byte) ([]byte, error) {
	r := reader{b: request}
	node := r.u32()
	if r.bad {
		return nil, fault.New(fault.BadRequest, "replication.release", "", "the request is malformed")
	}
	g.mu.Lock()
	g.leaving[node] = time.Now().Add(leaveTime)
	g.mu.Unlock()
	if !g.IsLeader() {
		return nil, errNotLeader
	}
	if s := g.situation(); slices.Contains(s.voters, node) {
		return []byte(s.stillVotes(node, g.cfg.Name)), nil
	}
	return nil, g.mark(ctx) // a configuration that is not committed may be undone by the next leader
}

// stays reports whether a node is to vote, if there is room for it.
func (s *situation) stays(node uint32) bool { return s.isMember(node) && !s.leaving[node] }

// answers reports whether a node that is a member was heard at the last look.
func (s *situation) answers(node uint32) bool {
	p, ok := s.peers[node]
	return node == s.self || ok && s.isMember(node) && p.since.IsZero()
}

// leave is the step that takes a vote from a node that leaves; the leader's own comes last.
func (s *situation) leave() change {
	last := change{}
	for _, n := range s.voters {
		switch {
		case !s.leaving[n] || !s.isMember(n) || s.obstacle(n) != "":
		case n != s.self:
			return change{demote, n}
		default:
			last = change{handOver, n}
		}
	}
	return last
}

// obstacle says what keeps a node that leaves from giving up its vote, and what to do about it; "": nothing.
func (s *situation) obstacle(node uint32) string {
	if have, want := s.votes(); have < want {
		if heir := s.candidate(0); heir != 0 {
			return fmt.Sprintf("%s, which is to take it over, has not caught up yet; wait until it has, or stop it", s.names(heir))
		}
	}
	left, well := 0, 0
	for _, n := range s.voters {
		if n == node {
			continue
		}
		if left++; s.answers(n) {
			well++
		}
	}
	if 2*well > left {
		return ""
	}
	var silent []uint32
	for _, m := range s.members {
		if m.ID != node && !s.answers(m.ID) {
			silent = append(silent, m.ID)
		}
	}
	if len(silent) == 0 {
		return "no majority is left without it; wait until another node votes, or has left"
	}
	return fmt.Sprintf("no majority is left without it while %s cannot be reached; start what is down", s.names(silent...))
}

// stillVotes is what an operator is told of a node that leaves and has its vote still.
func (s *situation) stillVotes(node uint32, log string) string {
	why := s.obstacle(node)
	if why == "" {
		why = "it is about to give it up"
	}
	return fmt.Sprintf("%s still has a vote in the %s log: %s, and try again", s.names(node), log, why)
}

func (s *situation) names(nodes ...uint32) string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = fmt.Sprint("node ", n) // one that has left the table
		for _, m := range s.members {
			if m.ID == n {
				names[i] = m.Name
			}
		}
	}
	return strings.Join(names, ", ")
}
