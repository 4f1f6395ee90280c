package state

import (
	"math"
	"slices"
	"time"

	"muster/fsm"
	"muster/internal/fault"
)

// Bounds of one query's work.
const (
	maxCount    = 1000 // messages that are counted; a larger range comes without a count
	maxMatching = 1000 // messages that Match looks at; then the page ends, and says where
)

// Query asks for a page of an archive (XEP-0313 section 4, XEP-0059). Its zero
// fields restrict nothing, except Max.
type Query struct {
	Owner      string    // bare address
	With       string    // the other's bare address
	Start, End time.Time // both belong to the range

	AfterID, BeforeID string   // ids between which the messages are
	IDs               []string // the messages wanted

	After, Before string // ids that the page follows, or goes before
	Last          bool   // the page is at the end of what is asked for, not at its beginning
	Max           int    // messages of the page; 0: none, for the count
	MaxBytes      int    // of the page's stanzas, unless the first alone is larger; 0: no limit

	Match func(*Message) bool // if not nil: what a message must fulfil besides
}

// Page is the answer to a query, in the order of the archive.
type Page struct {
	Messages    []Message
	First, Last string // ids where the page begins and ends: its messages', or how far Match has looked; "" for none
	Complete    bool   // there is no more in the page's direction
	Counted     bool   // the range is small and has no Match
	Count       int    // messages of the range, if Counted
	Index       int    // of the page's first message in the range, if Counted
}

// Read returns a page of an archive. It reads several times: r should be
// consistent (fsm.Consistent). The work depends on the page, not on the size of
// the archive. Faults: NotFound if an id is not in the archive.
func Read(r fsm.Reader, q Query) (Page, error) {
	s := source{r: r, q: &q}
	all, err := s.filtered()
	if err != nil {
		return Page{}, err
	}
	part, err := s.narrowed(all, q.After, q.Before)
	if err != nil {
		return Page{}, err
	}
	var p Page
	s.collect(part, &p)
	if p.Count, p.Counted = s.count(all); p.Counted && len(p.Messages) > 0 {
		p.Index, _ = s.count(span{all.lo, p.Messages[0].Number})
	}
	return p, nil
}

// Ends returns the first and the last message of an archive; false if it is empty.
func Ends(r fsm.Reader, owner string) (first, last Message, ok bool) {
	s := source{r: r, q: &Query{Owner: owner}}
	s.walk(span{0, math.MaxUint64}, false, func(n uint64) bool { first, ok = ByNumber(r, n); return false })
	s.walk(span{0, math.MaxUint64}, true, func(n uint64) bool { last, _ = ByNumber(r, n); return false })
	return first, last, ok
}

// span is a range of numbers: lo belongs to it, hi does not.
type span struct{ lo, hi uint64 }

// source is where a query's messages are found.
type source struct {
	r      fsm.Reader
	q      *Query
	listed []uint64 // the numbers of IDs, in order; nil without IDs
	found  map[uint64]Message
}

// filtered returns the range that the query's filter leaves, apart from With and Match.
func (s *source) filtered() (span, error) {
	all := span{0, math.MaxUint64}
	if !s.q.Start.IsZero() {
		all.lo = FirstSince(s.r, s.q.Start)
	}
	if !s.q.End.IsZero() {
		all.hi = FirstSince(s.r, s.q.End.Add(1))
	}
	for _, id := range s.q.IDs {
		m, err := s.find(id)
		if err != nil {
			return all, err
		}
		if s.found == nil {
			s.found = make(map[uint64]Message, len(s.q.IDs))
		}
		s.listed, s.found[m.Number] = append(s.listed, m.Number), m
	}
	slices.Sort(s.listed)
	s.listed = slices.Compact(s.listed)
	return s.narrowed(all, s.q.AfterID, s.q.BeforeID)
}

// narrowed returns what is left of a range between two ids.
func (s *source) narrowed(part span, after, before string) (span, error) {
	if after != "" {
		m, err := s.find(after)
		if err != nil {
			return part, err
		}
		part.lo = max(part.lo, m.Number+1)
	}
	if before != "" {
		m, err := s.find(before)
		if err != nil {
			return part, err
		}
		part.hi = min(part.hi, m.Number)
	}
	return part, nil
}

func (s *source) find(id string) (Message, error) {
	m, ok := ByID(s.r, s.q.Owner, id)
	if !ok {
		return m, fault.New(fault.NotFound, "archive.read", s.q.Owner, "there is no message with the id "+id)
	}
	return m, nil
}

// walk calls fn for the numbers of a range, in order or back from the end, until fn returns false.
func (s *source) walk(part span, back bool, fn func(n uint64) bool) {
	if part.lo >= part.hi {
		return
	}
	if s.listed != nil {
		s.walkListed(part, back, fn)
		return
	}
	table, prefix := archives, fsm.Prefix(s.q.Owner)
	if s.q.With != "" {
		table, prefix = withTable, fsm.Prefix(s.q.Owner, s.q.With)
	}
	key := func(n uint64) []byte { return append(slices.Clip(prefix), numberKey(n)...) }
	if back {
		s.r.ScanBack(table, prefix, key(part.hi), func(k, _ []byte) bool {
			n := numberOf(k)
			return n >= part.lo && fn(n)
		})
		return
	}
	s.r.Scan(table, prefix, key(part.lo), func(k, _ []byte) bool {
		n := numberOf(k)
		return n < part.hi && fn(n)
	})
}

func (s *source) walkListed(part span, back bool, fn func(n uint64) bool) {
	list := slices.Clone(s.listed)
	if back {
		slices.Reverse(list)
	}
	for _, n := range list {
		if n < part.lo || n >= part.hi {
			continue
		}
		if s.q.With != "" {
			if _, ok := s.r.Get(withTable, withKey(s.q.Owner, s.q.With, n)); !ok {
				continue
			}
		}
		if !fn(n) {
			return
		}
	}
}

// collect fills the page with the first or the last messages of a range.
func (s *source) collect(part span, p *Page) {
	back := s.q.Last
	looked, bytes, last := 0, 0, Message{}
	p.Complete = true
	s.walk(part, back, func(n uint64) bool {
		m, ok := s.found[n]
		if !ok {
			if m, ok = ByNumber(s.r, n); !ok {
				return true
			}
		}
		if looked++; s.q.Match != nil {
			if looked > maxMatching {
				p.Complete = false
				return false
			}
			if last = m; !s.q.Match(&m) {
				return true
			}
		}
		bytes += len(m.XML)
		if len(p.Messages) >= s.q.Max || s.q.MaxBytes > 0 && bytes > s.q.MaxBytes && len(p.Messages) > 0 {
			p.Complete = false
			return false
		}
		p.Messages = append(p.Messages, m)
		return true
	})
	s.mark(p, last, looked > maxMatching)
}

// mark says where the page begins and ends. One that ended because Match had
// looked far enough goes as far as that, so that the next one goes on there.
func (s *source) mark(p *Page, last Message, far bool) {
	if s.q.Last {
		slices.Reverse(p.Messages)
	}
	if n := len(p.Messages); n > 0 {
		p.First, p.Last = p.Messages[0].ID(s.q.Owner), p.Messages[n-1].ID(s.q.Owner)
	}
	switch id := last.ID(s.q.Owner); {
	case !far || s.q.Max == 0:
	case len(p.Messages) == 0:
		p.First, p.Last = id, id
	case s.q.Last:
		p.First = id
	default:
		p.Last = id
	}
}

// count counts the messages of a range; false if there are too many, or only Match could tell.
func (s *source) count(part span) (n int, ok bool) {
	if s.q.Match != nil {
		return 0, false
	}
	s.walk(part, false, func(uint64) bool { n++; return n <= maxCount })
	return n, n <= maxCount
}
