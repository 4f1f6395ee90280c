package replication

import (
	"math/rand/v2"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// voteTransport asks for votes so that a node that lags behind the
// configuration may grant them. A vote is bound to the log alone: whoever has
// not heard yet that a node became a voter must all the same vote for it
// (Ongaro's thesis, section 4.1), or the two may be the only majority that is
// left and have no leader until a third comes back. hashicorp/raft refuses a
// candidate that is no voter by the configuration of the node that is asked. It
// goes by the request's id, which serves for nothing else: the request names
// one voter after the other, until one is named that the asked node knows: the
// candidate may be the new voter, or the asked node, or both. Nodes that were
// removed from the cluster cannot connect at all.
type voteTransport struct {
	*heardTransport
	raft *atomic.Pointer[raft.Raft] // nil until it runs
}

// name picks a voter by chance: the next election names another one.
func (t voteTransport) name(asked raft.ServerID) []byte {
	r := t.raft.Load()
	if r == nil {
		return []byte(asked)
	}
	var voters []raft.ServerID
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s.ID)
		}
	}
	if len(voters) == 0 {
		return []byte(asked)
	}
	return []byte(voters[rand.IntN(len(voters))])
}

// RequestVote implements raft.Transport.
func (t voteTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	asked := *args
	asked.ID = t.name(id)
	return t.NetworkTransport.RequestVote(id, target, &asked, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t voteTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	asked := *args
	asked.ID = t.name(id)
	return t.NetworkTransport.RequestPreVote(id, target, &asked, resp)
}
