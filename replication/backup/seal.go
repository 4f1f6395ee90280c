package backup

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/crypto/argon2"

	"muster/internal/fault"
	"muster/replication/pki"
)

// The envelope: magic and version, Argon2id parameters and salt, nonce prefix;
// then AES-256-GCM chunks of chunkSize bytes, the last one shorter. A chunk's
// nonce is prefix, counter and a byte that marks the last one, so that chunks
// cannot be dropped, added, swapped or cut off (the STREAM construction). The
// header is authenticated with each chunk.
const (
	magic      = "MUSTERBK\x01"
	saltSize   = 16
	prefixSize = 7
	headerSize = len(magic) + 4 + 4 + 1 + saltSize + prefixSize
	chunkSize  = 64 << 10 // bytes of plain text in a chunk
	tagSize    = 16
)

// argonCost is what deriving the key costs.
type argonCost struct {
	time    uint32 // passes
	memory  uint32 // KiB
	threads uint8
}

// cost is that of new backups.
var cost = argonCost{time: 3, memory: 64 << 10, threads: 4}

// What is accepted from a file.
const (
	maxArgonTime    = 16
	maxArgonMemory  = 512 << 10 // KiB
	maxArgonThreads = 16
)

// MinPassphrase is the shortest passphrase that a backup is made with, in bytes.
const MinPassphrase = 8

// maxChunks is how far the counter in a nonce goes.
const maxChunks = 1 << 32

var errChanged = fault.New(fault.Unauthorized, "backup.open", "", "the passphrase is wrong, or the backup was changed or cut short")

// sealer encrypts what is written to it. Close writes the last chunk.
type sealer struct {
	w      io.Writer
	gcm    cipher.AEAD
	header []byte
	buf    []byte
	count  uint64
}

func checkPassphrase(passphrase pki.Secret) error {
	if len(passphrase) < MinPassphrase {
		return fault.New(fault.NotAcceptable, "backup.write", "", "the passphrase needs at least 8 characters")
	}
	return nil
}

// sealedSize is how many bytes a sealer makes of so many.
func sealedSize(plain int64) int64 {
	chunks := max(1, (plain+chunkSize-1)/chunkSize) // the last chunk is never empty, unless it is the only one
	return int64(headerSize) + plain + chunks*tagSize
}

func newSealer(w io.Writer, passphrase pki.Secret, cost argonCost) (*sealer, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return nil, err
	}
	h := append(make([]byte, 0, headerSize), magic...)
	h = binary.BigEndian.AppendUint32(h, cost.time)
	h = binary.BigEndian.AppendUint32(h, cost.memory)
	h = append(h, cost.threads)
	h = append(h, pki.NewSecret(saltSize+prefixSize)...)
	gcm, err := cipherOf(h, passphrase)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(h)
	return &sealer{w: w, gcm: gcm, header: h}, err
}

// cipherOf derives the key that a header and a passphrase stand for.
func cipherOf(h []byte, passphrase pki.Secret) (cipher.AEAD, error) {
	p := h[len(magic):]
	time, memory, threads := binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:]), p[8]
	if time == 0 || time > maxArgonTime || memory < 8 || memory > maxArgonMemory || threads == 0 || threads > maxArgonThreads {
		return nil, fault.New(fault.BadRequest, "backup.open", "", "the backup's header is damaged")
	}
	key := argon2.IDKey(passphrase, p[9:9+saltSize], time, memory, threads, 32)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "backup.open", "")
	}
	gcm, err := cipher.NewGCM(block)
	return gcm, fault.Wrap(err, fault.Internal, "backup.open", "")
}

func nonce(header []byte, count uint64, last bool) []byte {
	n := append(make([]byte, 0, 12), header[headerSize-prefixSize:]...)
	n = binary.BigEndian.AppendUint32(n, uint32(count))
	if last {
		return append(n, 1)
	}
	return append(n, 0)
}

// Write implements io.Writer.
func (s *sealer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(s.buf) == chunkSize { // only now it is known not to be the last one
			if err := s.flush(false); err != nil {
				return 0, err
			}
		}
		take := min(chunkSize-len(s.buf), len(p))
		s.buf, p = append(s.buf, p[:take]...), p[take:]
	}
	return n, nil
}

// Close writes the last chunk; the underlying writer stays open.
func (s *sealer) Close() error { return s.flush(true) }

func (s *sealer) flush(last bool) error {
	if s.count >= maxChunks {
		return fault.New(fault.TooLarge, "backup.write", "", "the backup is too large")
	}
	_, err := s.w.Write(s.gcm.Seal(nil, nonce(s.header, s.count, last), s.buf, s.header))
	s.buf, s.count = s.buf[:0], s.count+1
	return err
}

// opener decrypts. It gives out a chunk only when that has been authenticated,
// and io.EOF only after the chunk that is marked as the last.
type opener struct {
	r      *bufio.Reader
	gcm    cipher.AEAD
	header []byte
	plain  []byte
	count  uint64
	last   bool
}

func newOpener(r io.Reader, passphrase pki.Secret) (*opener, error) {
	h := make([]byte, headerSize)
	if _, err := io.ReadFull(r, h); err != nil || string(h[:len(magic)]) != magic {
		return nil, fault.New(fault.BadRequest, "backup.open", "", "this is no backup that this release can read")
	}
	gcm, err := cipherOf(h, passphrase)
	return &opener{r: bufio.NewReaderSize(r, chunkSize+tagSize+1), gcm: gcm, header: h}, err
}

// Read implements io.Reader.
func (o *opener) Read(p []byte) (int, error) {
	for len(o.plain) == 0 {
		if o.last {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

func (o *opener) next() error {
	sealed := make([]byte, chunkSize+tagSize)
	n, err := io.ReadFull(o.r, sealed)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if err == nil {
		_, err = o.r.Peek(1)
	}
	o.last = err != nil
	if o.count >= maxChunks {
		return errChanged
	}
	plain, err := o.gcm.Open(sealed[:0], nonce(o.header, o.count, o.last), sealed[:n], o.header)
	if err != nil {
		return errChanged
	}
	o.plain, o.count = plain, o.count+1
	return nil
}
