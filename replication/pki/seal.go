package pki

import (
	"crypto/aes"
	"crypto/cipher"

	"muster/internal/fault"
)

// Seal encrypts plain with a 32-byte key (AES-256-GCM, random nonce first).
// label binds the result to its use: Open must name the same one.
func Seal(key Secret, plain []byte, label string) ([]byte, error) {
	gcm, err := sealer(key)
	if err != nil {
		return nil, err
	}
	nonce := NewSecret(gcm.NonceSize())
	return gcm.Seal(nonce, nonce, plain, []byte(label)), nil
}

// Open undoes Seal. A wrong key, another label or a changed byte is an Unauthorized fault.
func Open(key Secret, sealed []byte, label string) ([]byte, error) {
	gcm, err := sealer(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < gcm.NonceSize() {
		return nil, fault.New(fault.BadRequest, "pki.open", label, "the sealed value is cut short")
	}
	plain, err := gcm.Open(nil, sealed[:gcm.NonceSize()], sealed[gcm.NonceSize():], []byte(label))
	if err != nil {
		return nil, &fault.Error{Code: fault.Unauthorized, Op: "pki.open", Subject: label, Text: "the key is wrong or the sealed value was changed", Err: err}
	}
	return plain, nil
}

func sealer(key Secret) (cipher.AEAD, error) {
	if len(key) != KeySize {
		return nil, fault.New(fault.Internal, "pki.seal", "", "a sealing key has 32 bytes")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "pki.seal", "")
	}
	gcm, err := cipher.NewGCM(block)
	return gcm, fault.Wrap(err, fault.Internal, "pki.seal", "")
}
