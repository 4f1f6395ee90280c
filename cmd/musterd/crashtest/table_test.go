//go:build (crash || chaos) && linux

package crashtest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// table is what a group prints at its end, in Markdown.
type table struct {
	title string
	rows  [][]string
}

func newTable(title string, head ...string) *table {
	rule := make([]string, len(head))
	for i := range rule {
		rule[i] = "---"
	}
	return &table{title: title, rows: [][]string{head, rule}}
}

func (b *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		switch v := c.(type) {
		case time.Duration:
			row[i] = fmt.Sprintf("%.2f s", v.Seconds())
		default:
			row[i] = fmt.Sprint(v)
		}
	}
	b.rows = append(b.rows, row)
}

// print shows the table, and appends it to the file that MUSTER_REPORT names.
func (b *table) print(t *testing.T) {
	t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, "\n%s\n\n", b.title)
	w := tabwriter.NewWriter(&s, 0, 0, 1, ' ', 0)
	for _, row := range b.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, "\t| "))
	}
	w.Flush()
	fmt.Println(s.String())
	name := os.Getenv("MUSTER_REPORT")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(s.String()); err != nil {
		t.Fatal(err)
	}
}
