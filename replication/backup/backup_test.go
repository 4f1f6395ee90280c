package backup

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"muster/internal/fault"
	"muster/replication/pki"
)

var pass = pki.Secret("correct horse battery")

// The tests of this package are not about how slow guessing a passphrase is.
func init() { cost = argonCost{1, 64, 1} }

func seal(t testing.TB, plain []byte) []byte {
	var b bytes.Buffer
	s, err := newSealer(&b, pass, argonCost{1, 64, 1})
	if err != nil {
		t.Fatal(err)
	}
	for p := plain; len(p) > 0; { // in uneven steps
		n := min(len(p), 7919)
		if _, err := s.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(sealed []byte, pass pki.Secret) ([]byte, error) {
	o, err := newOpener(bytes.NewReader(sealed), pass)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(o)
}

func TestSealedSizes(t *testing.T) {
	for _, n := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 17} {
		plain := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
		sealed := seal(t, plain)
		got, err := open(sealed, pass)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes came back as %d, %v", n, len(got), err)
		}
		if want := sealedSize(int64(n)); int64(len(sealed)) != want {
			t.Errorf("%d bytes became %d, announced as %d", n, len(sealed), want)
		}
	}
}

func TestChangedEnvelopes(t *testing.T) {
	plain := bytes.Repeat([]byte("x"), 3*chunkSize)
	good := seal(t, plain)
	const sealedChunk = chunkSize + tagSize
	chunk := func(i int) []byte { return good[headerSize+i*sealedChunk : headerSize+(i+1)*sealedChunk] }
	join := func(parts ...[]byte) []byte { return append(bytes.Clone(good[:headerSize]), bytes.Join(parts, nil)...) }
	other := seal(t, plain)
	tests := []struct {
		name string
		data []byte
	}{
		{"cut at a chunk's end", join(chunk(0), chunk(1))},
		{"cut to one chunk", join(chunk(0))},
		{"cut to the header", good[:headerSize]},
		{"chunks swapped", join(chunk(1), chunk(0), chunk(2))},
		{"a chunk twice", join(chunk(0), chunk(1), chunk(1), chunk(2))},
		{"a chunk left out", join(chunk(0), chunk(2))},
		{"the last chunk first", join(chunk(2))},
		{"another backup's chunk", join(chunk(0), other[headerSize+sealedChunk:headerSize+2*sealedChunk], chunk(2))},
		{"another backup's header", append(bytes.Clone(other[:headerSize]), good[headerSize:]...)},
		{"a whole chunk behind", append(bytes.Clone(good), chunk(0)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := open(tt.data, pass); !fault.Is(err, fault.Unauthorized) {
				t.Errorf("%d bytes, %v, want a refusal", len(got), err)
			}
		})
	}
	if _, err := open(good, pki.Secret("incorrect horse")); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a wrong passphrase: %v", err)
	}
}

func TestCostlyHeadersAreRefused(t *testing.T) {
	good := seal(t, []byte("x"))
	for name, spoil := range map[string]func(h []byte){
		"no passes":           func(h []byte) { binary.BigEndian.PutUint32(h[len(magic):], 0) },
		"a million passes":    func(h []byte) { binary.BigEndian.PutUint32(h[len(magic):], 1<<20) },
		"a terabyte":          func(h []byte) { binary.BigEndian.PutUint32(h[len(magic)+4:], 1<<30) },
		"no memory":           func(h []byte) { binary.BigEndian.PutUint32(h[len(magic)+4:], 0) },
		"no threads":          func(h []byte) { h[len(magic)+8] = 0 },
		"another file format": func(h []byte) { h[0] = 'm' },
	} {
		bad := bytes.Clone(good)
		spoil(bad)
		if _, err := open(bad, pass); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func manifestStream(m any) io.Reader {
	doc, _ := json.Marshal(m)
	return bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(doc))), doc...))
}

func TestManifestRefusals(t *testing.T) {
	fine := Manifest{Format: 1, State: State{Files: []File{{"000001.sst", 5}}}}
	if _, err := readManifest(manifestStream(fine)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../../etc/passwd", "a/b", "..", "", "x\x00", strings.Repeat("n", 300)} {
		bad := fine
		bad.Files = []File{{name, 1}}
		if _, err := readManifest(manifestStream(bad)); err == nil {
			t.Errorf("the file name %q was taken", name)
		}
	}
	files := func(list ...File) *State { return &State{Files: list} }
	twice, negative, climbing, early, without := fine, fine, fine, fine, fine
	twice.State = *files(File{"a", 1}, File{"a", 1})
	negative.State = *files(File{"a", -1})
	climbing.Format, climbing.Messages = 2, files(File{"../a", 1})
	early.Messages = files(File{"a", 1})
	without.Format = 2
	for name, m := range map[string]Manifest{"a file twice": twice, "a negative size": negative, "a message file elsewhere": climbing,
		"messages in a format that has none": early, "no messages in a format that has them": without} {
		if _, err := readManifest(manifestStream(m)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	newer := fine
	newer.Format = 3
	if _, err := readManifest(manifestStream(newer)); !fault.Is(err, fault.NotSupported) {
		t.Errorf("a newer format: %v", err)
	}
	if _, err := readManifest(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})); err == nil {
		t.Error("an endless manifest was taken")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("x"))
	key := seal(f, bytes.Repeat([]byte("y"), 100))
	f.Fuzz(func(t *testing.T, tail []byte) {
		if got, err := open(append(bytes.Clone(key[:headerSize]), tail...), pass); err == nil {
			t.Errorf("%d forged bytes were opened as %d", len(tail), len(got))
		}
	})
}

func FuzzManifest(f *testing.F) {
	doc, _ := io.ReadAll(manifestStream(Manifest{Format: 1, State: State{Files: []File{{"a", 1}}}}))
	f.Add(doc)
	doc, _ = io.ReadAll(manifestStream(Manifest{Format: 2, State: State{Files: []File{{"a", 1}}}, Messages: &State{Files: []File{{"a", 1}}}}))
	f.Add(doc)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readManifest(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, file := range slices.Concat(m.parts()[0].Files, m.parts()[len(m.parts())-1].Files) {
			if strings.ContainsAny(file.Name, "/\\") || file.Size < 0 {
				t.Errorf("took %+v", file)
			}
		}
	})
}
