package xmltok

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files of testdata/wire anew")

const wire = "../../testdata/wire"

// Each file of testdata/wire is what one client sends on one connection, a stream after the other.
// A line that begins with # is not sent; #restart stands where the client begins a new stream.
func TestWire(t *testing.T) {
	files, err := filepath.Glob(wire + "/*.stream")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".stream") + ".golden"
			got := conversation(t, string(text), len(text))
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || got != string(want) {
				t.Errorf("differs from %s (%v):\n%s", golden, err, got)
			}
			for _, size := range []int{1, 13, 64} {
				if conversation(t, string(text), size) != got {
					t.Errorf("in pieces of %d it reads otherwise", size)
				}
			}
		})
	}
}

// conversation renders what a decoder reads of a file, one item a line, without the keep-alives.
func conversation(t *testing.T, text string, size int) string {
	t.Helper()
	d := NewDecoder(nil)
	var out strings.Builder
	for part := range strings.SplitSeq(text, "#restart\n") {
		d.Reset()
		var sent strings.Builder
		for line := range strings.Lines(part) {
			if !strings.HasPrefix(line, "#") {
				sent.WriteString(line)
			}
		}
		items, err := feed(d, sent.String(), size)
		for _, item := range items {
			if item != "space" {
				out.WriteString(item + "\n")
			}
		}
		if err != nil {
			out.WriteString("error: " + err.Error() + "\n")
		}
	}
	return out.String()
}
