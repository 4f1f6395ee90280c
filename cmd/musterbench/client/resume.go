package client

import (
	"context"
	"strconv"
	"strings"
	"time"

	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Enable turns stream management with resumption on (XEP-0198 section 3) and returns the resumption id.
func (c *Conn) Enable() (id string, err error) {
	if err := c.Send([]byte(`<enable xmlns='urn:xmpp:sm:3' resume='true'/>`)); err != nil {
		return "", err
	}
	answer, err := c.Await(func(frame []byte) bool { return wire.Named(frame, "enabled") || wire.Named(frame, "failed") })
	if err != nil {
		return "", err
	}
	if id = string(wire.Attr(answer, "id")); id == "" || !wire.Named(answer, "enabled") {
		return "", refused("client.enable", answer)
	}
	return id, nil
}

// Resume dials, logs user in and resumes the session of that id, of which the client has handled so many
// stanzas. Fault NotFound: the server answered <failed/>, the session is gone; any other is worth another try.
// With flow Token login and resumption are one round trip.
func Resume(ctx context.Context, o Options, user target.User, id string, handled uint32) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c, err := Dial(ctx, o, user.Domain)
	if err != nil {
		return nil, err
	}
	resume := `<resume xmlns='urn:xmpp:sm:3' h='` + strconv.FormatUint(uint64(handled), 10) + `' previd='` + id + `'/>`
	if o.Flow == Token {
		err = c.resumeByToken(user, o, resume)
	} else {
		o.Flow = Unbound
		if err = c.authenticate(user, o); err == nil {
			err = c.resume(resume)
		}
	}
	if err != nil {
		_ = c.Conn.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

func (c *Conn) resume(request string) error {
	if err := c.Send([]byte(request)); err != nil {
		return err
	}
	answer, err := c.Await(func(frame []byte) bool { return wire.Named(frame, "resumed") || wire.Named(frame, "failed") })
	if err != nil {
		return err
	}
	return resumed(answer)
}

func (c *Conn) resumeByToken(user target.User, o Options, request string) error {
	token := ""
	if o.Wallet != nil {
		token = o.Wallet.get(user)
	}
	if token == "" {
		return fault.New(fault.BadRequest, "client.resume", user.JID(), "there is no token of this user")
	}
	if err := c.authenticateWith(user, tokenMechanism, tokenInitial(user, token), `<fast xmlns='urn:xmpp:fast:0'/>`+request); err != nil {
		return err
	}
	success, err := c.Expect("success")
	if err != nil {
		return err
	}
	o.Wallet.keep(user, success)
	return resumed(success)
}

// resumed reads the outcome of a resumption.
func resumed(answer []byte) error {
	text := string(answer)
	switch {
	case strings.Contains(text, "<resumed "):
		return nil
	case strings.Contains(text, "<failed "):
		return fault.New(fault.NotFound, "client.resume", "", "the session is gone: "+text)
	}
	return refused("client.resume", answer)
}
