//go:build !linux

package xmpp

// poller parks nothing here: every connection keeps its goroutine.
type poller struct{}

func newPoller(*workers) (*poller, error) { return nil, nil }

func (p *poller) add(*stream)      {}
func (p *poller) arm(*stream) bool { return false }
func (p *poller) remove(*stream)   {}
func (p *poller) close()           {}

func (w *wire) hungUp() bool { return false }

func (w *wire) readNow(b []byte) (int, error) { return w.Conn.Read(b) }
