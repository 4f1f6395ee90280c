package replication

import (
	"math/rand/v2"

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
	self raft.ServerID
}

// names is the order in which voters are named: by chance, since the library waits only so long for an answer.
func (t voteTransport) names(asked raft.ServerID) (names []raft.ServerID) {
	if r := t.raft.Load(); r != nil {
		for _, s := range r.GetConfiguration().Configuration().Servers {
			if s.Suffrage == raft.Voter {
				names = append(names, s.ID)
			}
		}
	}
	if len(names) == 0 {
		return []raft.ServerID{asked}
	}
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

// renounce makes a candidate that believes in a leader follow that one, until it
// has heard nothing of it for long enough. The library (v1.7.3) forgets the
// leader when it becomes a candidate, and remembers one that then begins to send
// it a snapshot in the same term, but stays a candidate. If that leader dies, the
// candidate refuses its vote to all others for ever, on the leader's behalf.
func (t voteTransport) renounce() {
	r := t.raft.Load()
	if r == nil {
		return
	}
	term := r.CurrentTerm() // before the leader: one of a later term is not taken for that of this one
	addr, id := r.LeaderWithID()
	if addr == "" || id == t.self { // the latter: the election was won without this vote
		return
	}
	t.mu.Lock()
	take := t.take
	t.mu.Unlock()
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: t.EncodePeer(id, addr)}
	take(raft.RPC{Command: &raft.AppendEntriesRequest{RPCHeader: header, Term: term}, RespChan: make(chan raft.RPCResponse, 1)})
}

// ask sends a request in the name of each voter until one is granted, or the
// node that is asked is in a later term: no name changes that.
func (t voteTransport) ask(asked raft.ServerID, send func(name []byte) (granted, later bool, err error)) error {
	for _, name := range t.names(asked) {
		if granted, later, err := send([]byte(name)); granted || later || err != nil {
			return err
		}
	}
	return nil
}

// RequestVote implements raft.Transport.
func (t voteTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	t.renounce()
	return t.ask(id, func(name []byte) (granted, later bool, err error) {
		asked := *args
		asked.ID, *resp = name, raft.RequestVoteResponse{}
		err = t.NetworkTransport.RequestVote(id, target, &asked, resp)
		return resp.Granted, resp.Term > args.Term, err
	})
}

// RequestPreVote implements raft.WithPreVote.
func (t voteTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	t.renounce()
	return t.ask(id, func(name []byte) (granted, later bool, err error) {
		asked := *args
		asked.ID, *resp = name, raft.RequestPreVoteResponse{}
		err = t.NetworkTransport.RequestPreVote(id, target, &asked, resp)
		return resp.Granted, resp.Term > args.Term, err
	})
}
