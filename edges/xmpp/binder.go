package xmpp

import (
	"context"

	"muster/router"
)

// BindRequest asks the router for a session.
type BindRequest = router.BindRequest

// Wish is what a client wants on while it binds.
type Wish = router.Wish

// Sink is what the router delivers to.
type Sink = router.Sink

var (
	_ Session = (*router.Session)(nil)
	_ Sink    = (*session)(nil)

	_ router.Counter      = (*session)(nil)
	_ router.Suspender    = (*session)(nil)
	_ router.Disconnecter = (*session)(nil)
)

type routerBinder struct{ r *router.Router }

// ForRouter returns the router as this edge sees it.
func ForRouter(r *router.Router) Binder { return routerBinder{r} }

func (b routerBinder) Bind(ctx context.Context, q BindRequest) (Session, error) {
	s, err := b.r.Bind(ctx, q)
	if err != nil {
		return nil, err // not a nil *router.Session in a Session
	}
	return s, nil
}

func (b routerBinder) Resume(ctx context.Context, q router.ResumeRequest) (Session, router.Resumed, error) {
	s, at, err := b.r.Resume(ctx, q)
	if err != nil {
		return nil, at, err
	}
	return s, at, nil
}

func (b routerBinder) StreamFeatures() []byte { return b.r.StreamFeatures() }

func (b routerBinder) BindFeatures() []string { return b.r.BindFeatures() }
