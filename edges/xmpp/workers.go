package xmpp

import (
	"sync"
	"time"
)

// Limits of the pool of goroutines.
const (
	maxIdleWorkers = 512              // parked for the next burst, with the stack that TLS needs already grown
	workerIdle     = 10 * time.Second // after which an idle one ends
)

// workers runs short tasks (read what arrived, write what waits) on goroutines
// that are used again, so that a message costs neither a new goroutine nor the
// growth of its stack. The number of busy ones is bounded by the number of streams.
type workers struct {
	mu   sync.Mutex
	idle []*worker // the one that became idle last is taken first
}

type task struct {
	st  *stream
	run func(*stream)
}

type worker struct {
	next  chan task
	since time.Time
}

func newWorkers() *workers { return &workers{} }

// run calls fn(st) on a worker.
func (w *workers) run(st *stream, fn func(*stream)) {
	w.mu.Lock()
	n := len(w.idle) - 1
	if n < 0 {
		w.mu.Unlock()
		k := &worker{next: make(chan task, 1)}
		k.next <- task{st, fn}
		go w.work(k)
		return
	}
	k := w.idle[n]
	w.idle[n] = nil
	w.idle = w.idle[:n]
	w.mu.Unlock()
	k.next <- task{st, fn}
}

func (w *workers) work(k *worker) {
	for t := range k.next {
		t.run(t.st)
		if !w.rest(k) {
			return
		}
	}
}

func (w *workers) rest(k *worker) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.idle) >= maxIdleWorkers {
		return false
	}
	k.since = time.Now()
	w.idle = append(w.idle, k)
	return true
}

// sweep ends the workers that have been idle for long; they are the first in the list.
func (w *workers) sweep(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for n < len(w.idle) && now.Sub(w.idle[n].since) > workerIdle {
		close(w.idle[n].next)
		n++
	}
	w.idle = append(w.idle[:0], w.idle[n:]...)
}
