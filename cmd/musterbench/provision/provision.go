// Package provision writes accounts and mutual contacts in the formats that
// servers import: tens of thousands of users are there in seconds, where
// registering and subscribing through XMPP would take longer than the benchmark.
//
// Formats: csv for `muster user import`, Mnesia records for ejabberd, and
// Prosody's data folder. All hold the same accounts with the same SCRAM-SHA-1
// cost, so that a login asks the same work of each server.
package provision

import (
	"bufio"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"muster/cmd/musterbench/target"
	"muster/internal/fault"
)

// iterations is the PBKDF2 count of the verifiers written; logins do not depend on it.
const iterations = 10_000

// salt is one for all: the accounts are made up, and one derivation serves them all.
var salt = []byte("musterbench-salt")

// Format names what to write.
type Format string

// The formats.
const (
	CSV      Format = "csv"
	Ejabberd Format = "ejabberd"
	Prosody  Format = "prosody"
)

// Write puts the accounts of users, each with the given number of contacts, into the folder dir.
func Write(format Format, dir string, users []target.User, contacts int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault.Wrap(err, fault.Unavailable, "provision.write", dir)
	}
	var err error
	switch format {
	case CSV:
		err = writeCSV(dir, users, contacts)
	case Ejabberd:
		err = file(filepath.Join(dir, "ejabberd.terms"), func(w io.Writer) error { return ejabberd(w, users, contacts) })
	case Prosody:
		err = prosody(dir, users, contacts)
	default:
		return fault.New(fault.BadRequest, "provision.write", string(format), "the format must be csv, ejabberd or prosody")
	}
	return fault.Wrap(err, fault.Unavailable, "provision.write", dir)
}

// file writes one file through a buffer.
func file(path string, fill func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	if err := fill(w); err != nil {
		_ = f.Close()
		return err
	}
	if err := w.Flush(); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// writeCSV writes users.csv (JID, password) and rosters.csv (two JIDs that have each other, each pair once).
func writeCSV(dir string, users []target.User, contacts int) error {
	err := file(filepath.Join(dir, "users.csv"), func(w io.Writer) error {
		for _, u := range users {
			if _, err := fmt.Fprintf(w, "%s,%s\n", u.JID(), string(u.Password)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return file(filepath.Join(dir, "rosters.csv"), func(w io.Writer) error {
		for i, u := range users {
			for _, j := range target.Contacts(i, len(users), contacts) {
				if j < i {
					continue
				}
				if _, err := fmt.Fprintf(w, "%s,%s\n", u.JID(), users[j].JID()); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// verifier is what a server stores of a password (RFC 5802 section 3).
type verifier struct{ stored, server []byte }

// verifiers remembers derivations by password.
type verifiers map[target.Secret]verifier

func (v verifiers) of(password target.Secret) (verifier, error) {
	if known, ok := v[password]; ok {
		return known, nil
	}
	key, err := pbkdf2.Key(sha1.New, string(password), salt, iterations, sha1.Size)
	if err != nil {
		return verifier{}, err
	}
	stored := sha1.Sum(mac(key, "Client Key"))
	made := verifier{stored: stored[:], server: mac(key, "Server Key")}
	v[password] = made
	return made, nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha1.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// ejabberd writes one Erlang term for each row of its Mnesia tables passwd and
// roster, for file:consult/1 and mnesia:dirty_write/1 in the running server.
func ejabberd(w io.Writer, users []target.User, contacts int) error {
	base := base64.StdEncoding.EncodeToString
	known := make(verifiers)
	for i, u := range users {
		v, err := known.of(u.Password)
		if err != nil {
			return err
		}
		us := fmt.Sprintf("{<<%q>>,<<%q>>}", u.Local, u.Domain)
		if _, err := fmt.Fprintf(w, "{passwd,%s,{scram,<<%q>>,<<%q>>,<<%q>>,sha,%d}}.\n",
			us, base(v.stored), base(v.server), base(salt), iterations); err != nil {
			return err
		}
		for _, j := range target.Contacts(i, len(users), contacts) {
			c := users[j]
			jid := fmt.Sprintf("{<<%q>>,<<%q>>,<<>>}", c.Local, c.Domain)
			if _, err := fmt.Fprintf(w, "{roster,{<<%q>>,<<%q>>,%s},%s,%s,<<%q>>,both,none,[],<<>>,[]}.\n",
				u.Local, u.Domain, jid, us, jid, c.Local); err != nil {
				return err
			}
		}
	}
	return nil
}

// prosody writes accounts/USER.dat and roster/USER.dat under the host's folder.
func prosody(dir string, users []target.User, contacts int) error {
	known := make(verifiers)
	for i, u := range users {
		v, err := known.of(u.Password)
		if err != nil {
			return err
		}
		account := func(w io.Writer) error { return prosodyAccount(w, v) }
		if err := prosodyFile(dir, u, "accounts", account); err != nil {
			return err
		}
		roster := func(w io.Writer) error {
			return prosodyRoster(w, users, target.Contacts(i, len(users), contacts))
		}
		if err := prosodyFile(dir, u, "roster", roster); err != nil {
			return err
		}
	}
	return nil
}

// prosodyFile writes one user's file of one store; names are percent-encoded as Prosody does it.
func prosodyFile(dir string, u target.User, store string, fill func(io.Writer) error) error {
	folder := filepath.Join(dir, prosodyName(u.Domain), store)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return file(filepath.Join(folder, prosodyName(u.Local)+".dat"), fill)
}

func prosodyName(s string) string {
	return strings.ToLower(strings.NewReplacer(".", "%2e", "-", "%2d", "_", "%5f").Replace(url.PathEscape(s)))
}

func prosodyAccount(w io.Writer, v verifier) error {
	_, err := fmt.Fprintf(w, "return {\n\t[\"salt\"] = %q;\n\t[\"iteration_count\"] = %d;\n\t[\"stored_key\"] = %q;\n\t[\"server_key\"] = %q;\n};\n",
		salt, iterations, hex.EncodeToString(v.stored), hex.EncodeToString(v.server))
	return err
}

func prosodyRoster(w io.Writer, users []target.User, contacts []int) error {
	if _, err := fmt.Fprint(w, "return {\n\t[false] = { [\"version\"] = 1; [\"pending\"] = {}; };\n"); err != nil {
		return err
	}
	for _, j := range contacts {
		if _, err := fmt.Fprintf(w, "\t[%q] = { [\"subscription\"] = \"both\"; [\"groups\"] = {}; [\"name\"] = %q; };\n",
			users[j].JID(), users[j].Local); err != nil {
			return err
		}
	}
	_, err := fmt.Fprint(w, "};\n")
	return err
}
