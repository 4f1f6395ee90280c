package state

import (
	"slices"

	"muster/feature/roster/state/rosterpb"
	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"

	"google.golang.org/protobuf/proto"
)

func setItem(tx *fsm.Tx, e *log.Entry) error {
	var body rosterpb.Set
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	owner, contact, err := pair("roster.set", body.User, body.Contact)
	if err != nil {
		return err
	}
	if err := CheckItem(body.Name, body.Groups); err != nil {
		return err
	}
	if !user.Exists(tx, body.User) {
		return noUser("roster.set", body.User)
	}
	old, _ := Get(tx, owner, contact)
	if err := fsm.CheckRevision(e, old.Revision); err != nil {
		return err
	}
	next := old
	next.Contact, next.Name, next.Groups, next.Hidden = contact, body.Name, body.Groups, false
	return openBook(tx, owner).put(old, next)
}

// CheckItem checks what a client may set of a contact (RFC 6121 section
// 2.3.3): BadRequest for a duplicate group, NotAcceptable for an empty group or
// something too long.
func CheckItem(name string, groups []string) error {
	if len(name) > MaxName || len(groups) > MaxGroups {
		return fault.New(fault.NotAcceptable, "roster.set", "", "the name is too long, or there are too many groups")
	}
	for i, g := range groups {
		if g == "" || len(g) > MaxGroup {
			return fault.New(fault.NotAcceptable, "roster.set", "", "a group's name is empty or too long")
		}
		if slices.Contains(groups[:i], g) {
			return fault.New(fault.BadRequest, "roster.set", "", "a group is named twice")
		}
	}
	return nil
}

// pair parses two bare addresses that must be different and normalised.
func pair(op, a, b string) (first, second jid.JID, err error) {
	if first, err = bare(op, a); err != nil {
		return
	}
	if second, err = bare(op, b); err != nil {
		return
	}
	if first == second {
		err = fault.New(fault.NotAllowed, op, a, "a user is not its own contact")
	}
	return
}

func bare(op, s string) (jid.JID, error) {
	j, err := jid.Parse(s)
	if err != nil || !j.IsBare() || j.String() != s {
		return jid.JID{}, fault.New(fault.BadRequest, op, s, "malformed bare address")
	}
	return j, nil
}

func noUser(op, name string) error { return fault.New(fault.NotFound, op, name, "no such user") }

func subscribe(tx *fsm.Tx, e *log.Entry) error {
	var body rosterpb.Subscription
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	from, to, err := pair("roster.subscription", body.From, body.To)
	if err != nil {
		return err
	}
	if body.Type < uint32(Subscribe) || body.Type > uint32(Unsubscribed) {
		return fault.New(fault.BadRequest, "roster.subscription", body.From, "not a subscription stanza")
	}
	if len(body.Payload) > MaxRequest {
		return fault.New(fault.TooLarge, "roster.subscription", body.From, "the stanza is too large to be kept")
	}
	f := &flow{tx: tx, payload: body.Payload}
	if err := f.request(from, to, Type(body.Type), body.Blocked); err != nil {
		return err
	}
	tx.SetResult(encodeOutcome(f.out))
	return nil
}

// flow carries one subscription entry from roster to roster.
type flow struct {
	tx      *fsm.Tx
	payload []byte // the client's stanza
	out     Outcome
}

// request applies a stanza to the sender's roster, then to the recipient's, then the automatic answer to the sender's again.
func (f *flow) request(from, to jid.JID, t Type, blocked bool) error {
	fromLocal, toLocal := f.local(from), f.local(to)
	switch {
	case !fromLocal && !toLocal:
		return fault.New(fault.BadRequest, "roster.subscription", from.String(), "neither side is of this cluster")
	case fromLocal && !user.Exists(f.tx, from.String()):
		return noUser("roster.subscription", from.String())
	case fromLocal:
		act, err := f.step(from, to, Out, t)
		if err != nil || !act.Pass {
			return err
		}
	}
	if !toLocal {
		f.pass(Stanza{Type: t, From: from, To: to})
		return nil
	}
	if blocked {
		return nil
	}
	reply, err := f.arrive(from, to, t, false)
	if err != nil || reply == 0 {
		return err
	}
	if !fromLocal {
		f.pass(Stanza{Type: reply, From: to, To: from, Auto: true})
		return nil
	}
	_, err = f.arrive(to, from, reply, true)
	return err
}

// arrive applies a stanza to a local recipient's roster and returns the
// automatic answer. A recipient that does not exist is silent.
func (f *flow) arrive(from, to jid.JID, t Type, auto bool) (Type, error) {
	if !user.Exists(f.tx, to.String()) {
		return 0, nil
	}
	act, err := f.step(to, from, In, t)
	if err == nil && act.Pass {
		f.pass(Stanza{Type: t, From: from, To: to, Local: true, Auto: auto})
	}
	return act.Reply, err
}

func (f *flow) local(j jid.JID) bool { return config.IsDomain(f.tx, j.Domain) }

func (f *flow) pass(s Stanza) { f.out.Stanzas = append(f.out.Stanzas, s) }

// step applies a stanza to one roster.
func (f *flow) step(owner, contact jid.JID, d Direction, t Type) (Action, error) {
	b := openBook(f.tx, owner)
	old, exists := Get(f.tx, owner, contact)
	state, act := Next(old.State(), d, t)
	if state == old.State() {
		return act, nil
	}
	next := old
	next.Contact = contact
	next.Sub, next.Ask, next.PendingIn, next.Approved = state.Sub, state.Ask, state.PendingIn, state.Approved
	requestOnly := state == State{PendingIn: true}
	next.Hidden = requestOnly && (!exists || old.Hidden)
	switch {
	case !next.PendingIn:
		next.Request = nil
	case !old.PendingIn:
		next.Request = f.payload
		f.out.Stored = true
	}
	if next.Hidden && !exists && int64(b.row.Hidden) >= MaxRequests.Get(f.tx, 0) {
		f.out.Stored = false
		return Action{}, nil // dropped: nobody can fill a stranger's roster
	}
	f.watch(owner, contact, old.Sub, next.Sub)
	if exists && old.Hidden && state == (State{}) {
		b.drop(old)
		return act, nil
	}
	return act, b.put(old, next)
}

// watch notes who gained or lost whose presence. The subject's roster decides, or the watcher's if the subject is remote.
func (f *flow) watch(owner, contact jid.JID, before, after Sub) {
	note := func(had, has bool, w Watch) {
		switch {
		case has && !had:
			f.out.Gained = append(f.out.Gained, w)
		case had && !has:
			f.out.Lost = append(f.out.Lost, w)
		}
	}
	note(before.HasFrom(), after.HasFrom(), Watch{Watcher: contact, Subject: owner})
	if !f.local(contact) {
		note(before.HasTo(), after.HasTo(), Watch{Watcher: owner, Subject: contact})
	}
}

func removeItem(tx *fsm.Tx, e *log.Entry) error {
	var body rosterpb.Remove
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	owner, contact, err := pair("roster.remove", body.User, body.Contact)
	if err != nil {
		return err
	}
	old, ok := Get(tx, owner, contact)
	if !ok || old.Hidden {
		return fault.New(fault.NotFound, "roster.remove", body.Contact, "no such contact")
	}
	if err := fsm.CheckRevision(e, old.Revision); err != nil {
		return err
	}
	openBook(tx, owner).drop(old)
	f := &flow{tx: tx}
	if err := f.end(owner, old); err != nil {
		return err
	}
	tx.SetResult(encodeOutcome(f.out))
	return nil
}

// end ends both subscriptions with a contact whose item is removed (RFC 6121 section 2.5.2).
func (f *flow) end(owner jid.JID, old Item) error {
	f.watch(owner, old.Contact, old.Sub, None)
	local := f.local(old.Contact)
	for _, end := range []struct {
		needed bool
		t      Type
	}{
		{old.Ask || old.Sub.HasTo(), Unsubscribe},
		{old.PendingIn || old.Sub.HasFrom(), Unsubscribed},
	} {
		switch {
		case !end.needed:
		case !local:
			f.pass(Stanza{Type: end.t, From: owner, To: old.Contact, Auto: true})
		default:
			if _, err := f.arrive(owner, old.Contact, end.t, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// DeleteUser removes a user's roster and ends its subscriptions on its local
// contacts' rosters; it is for user.Module. Remote contacts learn nothing.
func DeleteUser(tx *fsm.Tx, name string) error {
	owner, err := bare("user.delete", name)
	if err != nil {
		return err
	}
	f := &flow{tx: tx}
	for _, i := range collect(tx, owner, func(*Item) bool { return true }) {
		tx.Delete(Rosters, itemKey(owner, i.Contact))
		if err := f.end(owner, i); err != nil {
			return err
		}
	}
	tx.Delete(rosterTable, rosterKey(owner))
	var removed [][]byte
	tx.Scan(removedTable, rosterPrefix(owner), nil, func(k, _ []byte) bool {
		removed = append(removed, slices.Clone(k))
		return true
	})
	for _, k := range removed {
		tx.Delete(removedTable, k)
	}
	return nil
}

func encodeOutcome(o Outcome) []byte {
	pb := &rosterpb.Outcome{Stored: o.Stored}
	for _, s := range o.Stanzas {
		pb.Stanzas = append(pb.Stanzas, &rosterpb.Stanza{
			Type: uint32(s.Type), From: s.From.String(), To: s.To.String(), Local: s.Local, Auto: s.Auto,
		})
	}
	pb.Gained, pb.Lost = encodeWatches(o.Gained), encodeWatches(o.Lost)
	return fsm.Encode(pb)
}

func encodeWatches(in []Watch) []*rosterpb.Watch {
	var out []*rosterpb.Watch
	for _, w := range in {
		out = append(out, &rosterpb.Watch{Watcher: w.Watcher.String(), Subject: w.Subject.String()})
	}
	return out
}

// DecodeOutcome decodes the result of RemoveEntry and SubscriptionEntry.
func DecodeOutcome(value []byte) (Outcome, error) {
	var pb rosterpb.Outcome
	if err := proto.Unmarshal(value, &pb); err != nil {
		return Outcome{}, fault.Wrap(err, fault.Internal, "roster.outcome", "")
	}
	o := Outcome{Stored: pb.Stored}
	for _, s := range pb.Stanzas {
		from, to, err := pair("roster.outcome", s.From, s.To)
		if err != nil {
			return Outcome{}, err
		}
		o.Stanzas = append(o.Stanzas, Stanza{Type: Type(s.Type), From: from, To: to, Local: s.Local, Auto: s.Auto})
	}
	var err error
	if o.Gained, err = decodeWatches(pb.Gained); err != nil {
		return Outcome{}, err
	}
	o.Lost, err = decodeWatches(pb.Lost)
	return o, err
}

func decodeWatches(in []*rosterpb.Watch) ([]Watch, error) {
	var out []Watch
	for _, w := range in {
		watcher, subject, err := pair("roster.outcome", w.Watcher, w.Subject)
		if err != nil {
			return nil, err
		}
		out = append(out, Watch{watcher, subject})
	}
	return out, nil
}
