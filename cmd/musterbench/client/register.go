package client

import (
	"bytes"
	"context"

	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Register makes the account by in-band registration (XEP-0077 section 3.1). An
// account that exists already is fine. NotSupported means that the server does not offer it.
func Register(ctx context.Context, o Options, user target.User) error {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c, err := Dial(ctx, o, user.Domain)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.open(user.Domain); err != nil {
		return err
	}
	request := `<iq type='set' id='register' to='` + user.Domain + `'><query xmlns='jabber:iq:register'><username>` +
		user.Local + `</username><password>` + string(user.Password) + `</password></query></iq>`
	if err := c.Send([]byte(request)); err != nil {
		return err
	}
	answer, err := c.Expect("iq")
	switch {
	case err != nil:
		return err
	case string(wire.Attr(answer, "type")) == "result", bytes.Contains(answer, []byte("<conflict")):
		return nil
	case bytes.Contains(answer, []byte("<service-unavailable")), bytes.Contains(answer, []byte("<not-allowed")),
		bytes.Contains(answer, []byte("<forbidden")):
		return fault.New(fault.NotSupported, "client.register", user.JID(), "the server does not let clients register; make the accounts on the server first")
	}
	return refused("client.register", answer)
}
