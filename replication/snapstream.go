package replication

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"regexp"

	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/internal/fault"
)

// The snapshot stream: a magic, a header frame, and the files' contents in
// frames, in the header's order. A frame is length (4 bytes), CRC32C (4), data.
const (
	streamMagic   = "MUSTERS\x01" // the last byte is the format version
	frameHead     = 8
	chunkSize     = 256 << 10 // bytes of file content in one frame
	maxHeader     = 16 << 20  // bytes of the header frame
	maxFiles      = 100_000   // files of one snapshot
	streamVersion = 1
)

// snapFile is a file of a snapshot.
type snapFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// streamHeader describes a streamed snapshot.
type streamHeader struct {
	Version    int        `json:"version"`
	ID         string     `json:"id"`          // of the sender's copy
	StateIndex uint64     `json:"state_index"` // what the machine in it has applied
	Files      []snapFile `json:"files"`
}

var safeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

func streamFault(text string) error {
	return fault.New(fault.BadRequest, "replication.snapshot", "", "the snapshot stream is damaged: "+text)
}

func (h *streamHeader) encode() []byte {
	b, _ := json.Marshal(h) // strings and numbers only
	return b
}

func decodeHeader(b []byte) (*streamHeader, error) {
	var h streamHeader
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, streamFault("its header is malformed")
	}
	if h.Version != streamVersion {
		return nil, streamFault(fmt.Sprintf("its version %d is not known here", h.Version))
	}
	if len(h.Files) > maxFiles {
		return nil, streamFault("it has too many files")
	}
	seen := map[string]bool{}
	for _, f := range h.Files {
		if !safeName.MatchString(f.Name) || f.Size < 0 || seen[f.Name] {
			return nil, streamFault("it holds a bad file name")
		}
		seen[f.Name] = true
	}
	return &h, nil
}

// size is the length of the stream in bytes.
func (h *streamHeader) size() int64 {
	n := int64(len(streamMagic) + frameHead + len(h.encode()))
	for _, f := range h.Files {
		chunks := (f.Size + chunkSize - 1) / chunkSize
		n += f.Size + chunks*frameHead
	}
	return n
}

func writeFrame(w io.Writer, data []byte) error {
	var head [frameHead]byte
	binary.BigEndian.PutUint32(head[0:], uint32(len(data)))
	binary.BigEndian.PutUint32(head[4:], crc32.Checksum(data, castagnoli))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// pack writes the snapshot in dir as a stream.
func pack(w io.Writer, fs vfs.FS, dir string, h *streamHeader) error {
	if _, err := io.WriteString(w, streamMagic); err != nil {
		return err
	}
	if err := writeFrame(w, h.encode()); err != nil {
		return err
	}
	for _, f := range h.Files {
		if err := packFile(w, fs, fs.PathJoin(dir, f.Name), f.Size); err != nil {
			return err
		}
	}
	return nil
}

func packFile(w io.Writer, fs vfs.FS, path string, size int64) error {
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, min(chunkSize, size))
	for left := size; left > 0; left -= int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), left)]
		if _, err := io.ReadFull(f, buf); err != nil {
			return err
		}
		if err := writeFrame(w, buf); err != nil {
			return err
		}
	}
	return nil
}

// unpacker writes a stream's files into a folder as it arrives.
type unpacker struct {
	fs     vfs.FS
	dir    string
	buf    []byte
	header *streamHeader // nil until it arrived
	magic  bool
	file   int   // index of the file being written
	left   int64 // bytes of it that are missing
	out    vfs.File
	err    error
}

// Write implements io.Writer; after an error nothing more is taken.
func (u *unpacker) Write(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	u.buf = append(u.buf, p...)
	for u.err == nil {
		var took int
		if took, u.err = u.step(); took == 0 {
			break
		}
		u.buf = u.buf[took:]
	}
	if u.err != nil {
		return 0, u.err
	}
	u.buf = append(make([]byte, 0, len(u.buf)), u.buf...)
	return len(p), nil
}

// step takes the magic or one whole frame from the buffer; 0: more is needed.
func (u *unpacker) step() (int, error) {
	if !u.magic {
		if len(u.buf) < len(streamMagic) {
			return 0, nil
		}
		if string(u.buf[:len(streamMagic)]) != streamMagic {
			return 0, streamFault("it does not begin as one")
		}
		u.magic = true
		return len(streamMagic), nil
	}
	data, err := u.frame()
	if data == nil || err != nil {
		return 0, err
	}
	return frameHead + len(data), u.take(data)
}

// frame returns the next whole frame's data, or nil if it has not arrived.
func (u *unpacker) frame() ([]byte, error) {
	if len(u.buf) < frameHead {
		return nil, nil
	}
	n := binary.BigEndian.Uint32(u.buf)
	limit := uint32(chunkSize)
	if u.header == nil {
		limit = maxHeader
	}
	if n == 0 || n > limit {
		return nil, streamFault("a frame has a bad length")
	}
	if uint32(len(u.buf)-frameHead) < n {
		return nil, nil
	}
	data := u.buf[frameHead : frameHead+n]
	if crc32.Checksum(data, castagnoli) != binary.BigEndian.Uint32(u.buf[4:]) {
		return nil, streamFault("a checksum is wrong")
	}
	return data, nil
}

func (u *unpacker) take(data []byte) error {
	if u.header == nil {
		h, err := decodeHeader(data)
		if err != nil {
			return err
		}
		u.header = h
		return u.next(0)
	}
	if u.out == nil || int64(len(data)) > u.left {
		return streamFault("it is longer than its header says")
	}
	if _, err := u.out.Write(data); err != nil {
		return err
	}
	if u.left -= int64(len(data)); u.left > 0 {
		return nil
	}
	if err := u.finish(); err != nil {
		return err
	}
	return u.next(u.file + 1)
}

// next opens the file that the coming frames belong to; empty files are made on the way.
func (u *unpacker) next(file int) error {
	for u.file = file; u.file < len(u.header.Files); u.file++ {
		f := u.header.Files[u.file]
		out, err := u.fs.Create(u.fs.PathJoin(u.dir, f.Name), "muster-snapshot")
		if err != nil {
			return err
		}
		u.out, u.left = out, f.Size
		if f.Size > 0 {
			return nil
		}
		if err := u.finish(); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) finish() error {
	err := u.out.Sync()
	if cerr := u.out.Close(); err == nil {
		err = cerr
	}
	u.out = nil
	return err
}

// done checks that everything arrived, and syncs the folder.
func (u *unpacker) done() error {
	if u.err != nil {
		return u.err
	}
	if u.header == nil || u.file < len(u.header.Files) || len(u.buf) > 0 {
		return streamFault("it is cut short")
	}
	return syncDir(u.fs, u.dir)
}

// abort lets go of an unfinished file.
func (u *unpacker) abort() {
	if u.out != nil {
		_ = u.out.Close()
		u.out = nil
	}
}

// readHeader reads the beginning of a stream, as far as its header.
func readHeader(r io.Reader) (*streamHeader, error) {
	head := make([]byte, len(streamMagic)+frameHead)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, streamFault("it is cut short")
	}
	if string(head[:len(streamMagic)]) != streamMagic {
		return nil, streamFault("it does not begin as one")
	}
	n := binary.BigEndian.Uint32(head[len(streamMagic):])
	if n == 0 || n > maxHeader {
		return nil, streamFault("a frame has a bad length")
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, streamFault("it is cut short")
	}
	if crc32.Checksum(data, castagnoli) != binary.BigEndian.Uint32(head[len(streamMagic)+4:]) {
		return nil, streamFault("a checksum is wrong")
	}
	return decodeHeader(data)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
