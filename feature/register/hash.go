package register

import (
	"context"
	"crypto/rand"
	"runtime"
	"time"

	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/scram"
)

// hashWaiting is how long a new password waits for a free worker; then its owner is told to come back.
const hashWaiting = 5 * time.Second

// hasher makes the verifiers of new passwords on a bounded number of workers, so
// that a storm of new passwords leaves the processor to others.
type hasher chan struct{}

// newHasher returns one that takes at most half of the processors.
func newHasher() hasher { return make(hasher, max(runtime.GOMAXPROCS(0)/2, 1)) }

// derive makes verifiers with a new salt. Faults: NotAcceptable for a password that no client could repeat, Overloaded.
func (h hasher) derive(ctx context.Context, name, password string) (sha256, sha1 user.Verifier, err error) {
	ctx, cancel := context.WithTimeout(ctx, hashWaiting)
	defer cancel()
	select {
	case h <- struct{}{}:
		defer func() { <-h }()
	case <-ctx.Done():
		return sha256, sha1, fault.New(fault.Overloaded, "register.hash", name, "too many new passwords at once: try again in a moment")
	}
	salt := make([]byte, scram.SaltSize)
	rand.Read(salt) // never fails
	v256, v1, err := scram.Derive(password, salt, scram.DefaultIterations)
	return kept(v256), kept(v1), err
}

func kept(v scram.Verifier) user.Verifier {
	return user.Verifier{Salt: v.Salt, Iterations: v.Iterations, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}
