package adminapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"

	"muster/internal/fault"
)

// maxAnswer bounds what the client reads of one JSON answer, in bytes.
const maxAnswer = 64 << 20

// Client talks to the administrative socket of a running node.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the node whose data folder is data.
func NewClient(data string) *Client {
	c := &Client{socket: filepath.Join(data, SocketName)}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.socket)
		},
		MaxIdleConnsPerHost: 8,
	}}
	return c
}

// Call sends in (nil for none) as JSON and decodes the answer into out (nil: ignored).
// The node's error comes back as the same fault.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	body, _, err := c.Stream(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(body, maxAnswer))
	} else {
		err = json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(out)
	}
	return fault.Wrap(err, fault.Internal, "admin.read", path)
}

// Stream is Call for an answer that is not JSON; the caller closes it. size is its bytes, -1 if the node does not say.
func (c *Client) Stream(ctx context.Context, method, path string, in any) (body io.ReadCloser, size int64, err error) {
	resp, err := c.ask(ctx, method, path, in)
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// ask sends a request and returns an answer that is no refusal.
func (c *Client) ask(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fault.Wrap(err, fault.BadRequest, "admin.send", path)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin/admin"+path, body)
	if err != nil {
		return nil, fault.Wrap(err, fault.BadRequest, "admin.send", path)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, refused(resp, path)
	}
	return resp, nil
}

// unreachable says what to do about a socket that does not answer.
func (c *Client) unreachable(err error) error {
	text := "the node does not answer on " + c.socket
	code := fault.Unavailable
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		text = "no node answers on " + c.socket + ": is musterd running? Name its data folder with --data"
	case errors.Is(err, syscall.EACCES):
		text, code = "no permission for "+c.socket+": run this as the server's user or as root", fault.Forbidden
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = fault.Timeout
	}
	return &fault.Error{Code: code, Op: "admin.connect", Text: text, Err: err}
}

// refused turns an error answer into the fault that the node reported.
func refused(resp *http.Response, path string) error {
	var e Error
	_ = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&e) // an answer that is no Error keeps its status line
	for _, c := range fault.Codes() {
		if c.String() == e.Code {
			return fault.New(c, "admin", strings.TrimPrefix(path, "/"), e.Text)
		}
	}
	return fault.New(fault.Internal, "admin", path, "the node answered "+resp.Status)
}
