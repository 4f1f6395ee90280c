package presence

import "time"

// A session's presence is passed on at once up to Burst times in each Window;
// what comes faster is held back, and only the latest of it is passed on when
// the window ends. Fan-out multiplies each update by the number of watchers.
const (
	Burst  = 10
	Window = 10 * time.Second
)

// meter counts one session's updates.
type meter struct {
	start time.Time
	used  int
}

// take asks for one update at now. If it has to wait, wait is the time until the window ends.
func (m *meter) take(now time.Time) (wait time.Duration) {
	if since := now.Sub(m.start); since >= Window || since < 0 {
		m.start, m.used = now, 0
	}
	if m.used < Burst {
		m.used++
		return 0
	}
	return m.start.Add(Window).Sub(now)
}
