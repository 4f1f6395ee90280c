package replication

import (
	"context"
	"sync"
)

// progress lets callers wait for an index to be reached.
type progress struct {
	mu      sync.Mutex
	index   uint64
	waiters map[*indexWaiter]struct{}
}

type indexWaiter struct {
	index uint64
	done  chan struct{}
}

// advance moves to index, if that is forward, and wakes who waited for it.
func (p *progress) advance(index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if index <= p.index {
		return
	}
	p.index = index
	for w := range p.waiters {
		if w.index <= index {
			close(w.done)
			delete(p.waiters, w)
		}
	}
}

// wait returns when index has been reached, or with the context's error.
func (p *progress) wait(ctx context.Context, index uint64) error {
	p.mu.Lock()
	if index <= p.index {
		p.mu.Unlock()
		return nil
	}
	w := &indexWaiter{index: index, done: make(chan struct{})}
	if p.waiters == nil {
		p.waiters = map[*indexWaiter]struct{}{}
	}
	p.waiters[w] = struct{}{}
	p.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		delete(p.waiters, w)
		p.mu.Unlock()
		return ctx.Err()
	}
}
