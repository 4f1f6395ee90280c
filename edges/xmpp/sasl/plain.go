package sasl

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"

	"muster/internal/fault"
	"muster/internal/scram"
)

// Limits of the checks of plain passwords.
const (
	plainWaiting  = 5 * time.Second  // for a free worker; then the client is told to come back
	plainCached   = 60 * time.Second // how long a right password is remembered, as a keyed hash
	plainCacheMax = 16_384           // remembered at once, about 1 MiB
)

// plainChecker hashes passwords on a bounded number of workers, so that a
// storm of plain logins leaves the processor to others, and remembers right
// ones for a moment.
type plainChecker struct {
	slots chan struct{}
	key   [32]byte // of this process

	mu    sync.Mutex
	right map[[32]byte]time.Time // until when
}

func newPlainChecker(workers int) *plainChecker {
	p := &plainChecker{slots: make(chan struct{}, workers), right: map[[32]byte]time.Time{}}
	rand.Read(p.key[:])
	return p
}

// check reports whether password is behind v. Its error is a fault with code Overloaded when no worker got free in time.
func (p *plainChecker) check(ctx context.Context, name string, v scram.Verifier, password string) (bool, error) {
	tag := p.tag(name, v, password)
	if p.remembered(tag) {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, plainWaiting)
	defer cancel()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return false, fault.New(fault.Overloaded, "sasl.plain", name, "too many logins at once: try again in a moment")
	}
	ok := v.Matches(scram.SHA256, password)
	if ok {
		p.remember(tag)
	}
	return ok, nil
}

// tag names a password of an account as long as its verifier stays the same.
func (p *plainChecker) tag(name string, v scram.Verifier, password string) (tag [32]byte) {
	m := hmac.New(sha256.New, p.key[:])
	for _, part := range [][]byte{[]byte(name), {0}, v.StoredKey, []byte(password)} {
		m.Write(part)
	}
	m.Sum(tag[:0])
	return tag
}

func (p *plainChecker) remembered(tag [32]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, ok := p.right[tag]
	return ok && time.Now().Before(until)
}

func (p *plainChecker) remember(tag [32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if len(p.right) >= plainCacheMax {
		for t, until := range p.right {
			if now.After(until) || len(p.right) >= plainCacheMax {
				delete(p.right, t)
			}
		}
	}
	p.right[tag] = now.Add(plainCached)
}
