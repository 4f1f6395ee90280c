package main

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"muster/internal/fault"
)

// maxSecret bounds a password or passphrase line, in bytes; SCRAM allows 1,024.
const maxSecret = 1024

// newPassword makes a random password of about 77 bits that can be read out and typed.
func newPassword() string {
	const letters = "abcdefghijkmnpqrstuvwxyz23456789" // 32, without l, o, 0, 1
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails
	var out strings.Builder
	for i, c := range b {
		if i > 0 && i%5 == 0 {
			out.WriteByte('-')
		}
		out.WriteByte(letters[c%32])
	}
	return out.String()
}

// readSecret asks for a secret: from the terminal without echo, else the first line of the input.
func (a *app) readSecret(prompt string) (string, error) {
	if f, ok := a.in.(*os.File); ok && isTerminal(f) {
		fmt.Fprint(a.errs, prompt+": ")
		restore := echoOff(f)
		defer func() { restore(); fmt.Fprintln(a.errs) }()
	}
	line, err := readLine(a.in)
	if err != nil {
		return "", err
	}
	if line == "" {
		return "", fault.New(fault.BadRequest, "password", "", "the "+prompt+" is empty")
	}
	return line, nil
}

// readLine reads one line without its end.
func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReaderSize(io.LimitReader(r, maxSecret+2), maxSecret+2).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fault.Wrap(err, fault.BadRequest, "password", "")
	}
	line = strings.TrimRight(line, "\r\n")
	if len(line) > maxSecret {
		return "", fault.New(fault.TooLarge, "password", "", "a secret has at most 1024 bytes")
	}
	return line, nil
}

// passphrase returns a backup's passphrase: from file, from MUSTER_PASSPHRASE, or asked for, twice if it is new.
func (a *app) passphrase(file string, isNew bool) (string, error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", &fault.Error{Code: fault.NotFound, Op: "passphrase", Subject: file, Text: "the passphrase file " + file + " cannot be read", Err: err}
		}
		defer f.Close()
		p, err := readLine(f)
		if err == nil && p == "" {
			err = fault.New(fault.BadRequest, "passphrase", file, "the first line of the passphrase file "+file+" is empty")
		}
		return p, err
	}
	if p := os.Getenv("MUSTER_PASSPHRASE"); p != "" {
		return p, nil
	}
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		return "", fault.New(fault.BadRequest, "passphrase", "", "no passphrase: give --passphrase-file FILE or set MUSTER_PASSPHRASE")
	}
	p, err := a.readSecret("passphrase")
	if err != nil || !isNew {
		return p, err
	}
	again, err := a.readSecret("passphrase again")
	if err == nil && again != p {
		err = fault.New(fault.BadRequest, "passphrase", "", "the two differ")
	}
	return p, err
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
