package simnode

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Plan is a seed's schedule: lines of the language of scripts.
type Plan struct {
	Nodes int
	Steps []string
}

// planner writes a plan. It keeps what is off or cut, so that faults end some time.
type planner struct {
	rng   *rand.Rand
	nodes int // founded
	plan  Plan
}

// Draw makes a schedule of 20 to 40 operations out of a seed.
func Draw(seed uint64) Plan {
	p := &planner{rng: rand.New(rand.NewPCG(seed, 0x706c616e)), nodes: 3}
	if p.rng.IntN(8) == 0 {
		p.nodes = 1 + p.rng.IntN(5)
	}
	p.plan.Nodes = p.nodes
	for n := 20 + p.rng.IntN(21); len(p.plan.Steps) < n; {
		p.fault()
	}
	p.failovers(seed)
	return p.plan
}

// failovers strews orders to fail over and to fall back into the plan of every
// other seed. They are drawn apart, so that the plan is otherwise the same.
func (p *planner) failovers(seed uint64) {
	p.rng = rand.New(rand.NewPCG(seed, 0x6861))
	if seed%2 == 0 || p.nodes == 1 {
		return
	}
	for range 2 + p.rng.IntN(5) {
		step := fmt.Sprintf("%s %s", []string{"failover", "failover", "fallback"}[p.rng.IntN(3)], p.node())
		p.plan.Steps = slices.Insert(p.plan.Steps, p.rng.IntN(len(p.plan.Steps)+1), step)
	}
}

func (p *planner) add(format string, args ...any) {
	p.plan.Steps = append(p.plan.Steps, fmt.Sprintf(format, args...))
}

// wait adds a pause.
func (p *planner) wait(least, most time.Duration) {
	p.add("wait %v", (least + time.Duration(p.rng.Int64N(int64(most-least)))).Round(time.Millisecond))
}

// node names a node: by number, or by its role when the step is played.
func (p *planner) node() string {
	switch n := p.rng.IntN(10); {
	case n < 3:
		return "leader"
	case n < 4:
		return "follower"
	}
	return fmt.Sprint("n", 1+p.rng.IntN(p.nodes))
}

// fault adds one fault and, mostly, its end.
func (p *planner) fault() {
	short := func() { p.wait(50*time.Millisecond, 900*time.Millisecond) }
	long := func() { p.wait(500*time.Millisecond, 6*time.Second) }
	keep := []int{0, 50, 100}[p.rng.IntN(3)]
	switch p.rng.IntN(16) {
	case 0, 1, 2:
		p.add("kill %s %d", p.node(), keep)
		long()
		p.add("start all")
	case 3:
		p.add("kill %s %d", p.node(), keep)
		short()
	case 4:
		p.add("kill all %d", keep)
		short()
		p.add("start all")
		long()
	case 5, 6:
		p.add("isolate %s", p.node())
		long()
		p.add("heal")
	case 7:
		p.add("cut %s > %s", p.node(), p.node())
		long()
		p.add("heal")
	case 8:
		p.add("cut %s %s", p.node(), p.node())
		long()
	case 9:
		p.add("delay %dms %dms", p.rng.IntN(20), 1+p.rng.IntN(40))
		short()
	case 10:
		p.add("stop %s", p.node())
		short()
		p.add("start all")
	case 11:
		p.add("stall %s", p.node())
		p.wait(200*time.Millisecond, 7*time.Second)
		p.add("heal")
		p.add("start all")
	default:
		p.change()
	}
}

// change adds something that an operator does.
func (p *planner) change() {
	switch p.rng.IntN(5) {
	case 0:
		p.add("join")
	case 1:
		p.add("remove %s", p.node())
	case 2:
		p.add("snapshot %s", p.node())
	case 3:
		p.add("move %s", p.node())
	case 4:
		p.add("clock %s %v", p.node(), time.Duration(p.rng.IntN(7200)-3600)*time.Second)
	}
	p.wait(50*time.Millisecond, 2*time.Second)
}
