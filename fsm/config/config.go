// Package config is the replicated configuration: the IM domains that the
// cluster serves and the settings of its parts.
//
// A setting is declared once, as a package variable where it is used (Int,
// Bool, Duration, String, Enum); the declaration renders CLI help, REST schema
// and reference page, and it is checked when a change is proposed and again
// when it is applied. Callers: the proposing surfaces use the entry
// constructors and ValidateSetting; everybody reads with a setting's Get, hot
// paths through a Live.
//
// Invariants: a stored value has passed its declaration; a setting of node
// scope may have one value for the cluster and one for each node, the node's
// wins; a domain that is in use is never removed. A release may widen the
// bounds of a setting or add one only together with a new cluster version
// (Declaration.Since), or nodes of two releases would judge an entry differently.
package config

import (
	"strconv"

	"muster/fsm"
	"muster/fsm/config/configpb"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// MaxDomains is how many IM domains a cluster serves; each has its own certificate names and routes.
const MaxDomains = 100

// Tables of this module.
var (
	DomainTable  = fsm.NewTable("config.domains")  // domain → empty
	SettingTable = fsm.NewTable("config.settings") // name, node (decimal; 0: cluster) → value
)

// InUse says why a domain may not be removed, or nil.
type InUse func(tx *fsm.Tx, domain string) error

// Module returns the module of the replicated configuration. Each of inUse is asked before a domain is removed.
func Module(inUse ...InUse) fsm.Module {
	return fsm.Module{
		Name:   "fsm/config",
		Tables: []*fsm.Table{DomainTable, SettingTable},
		Handlers: map[log.Kind]fsm.Handler{
			log.DomainAdd:    addDomain,
			log.DomainRemove: func(tx *fsm.Tx, e *log.Entry) error { return removeDomain(tx, e, inUse) },
			log.SettingSet:   setSetting,
			log.SettingReset: resetSetting,
		},
	}
}

// AddDomainEntry serves an IM domain from now on.
func AddDomainEntry(domain string) *log.Entry {
	return log.New(log.DomainAdd, &configpb.Domain{Name: fsm.Text(domain)})
}

// RemoveDomainEntry stops serving an IM domain that has no users.
func RemoveDomainEntry(domain string) *log.Entry {
	return log.New(log.DomainRemove, &configpb.Domain{Name: fsm.Text(domain)})
}

// SetEntry gives a setting a value: for the whole cluster (node 0), or for one node.
func SetEntry(name, value string, node uint32) *log.Entry {
	return log.New(log.SettingSet, &configpb.Setting{Name: fsm.Text(name), Value: fsm.Text(value), Node: node})
}

// ResetEntry takes a setting's value back to the next wider one: a node's to the cluster's, the cluster's to the default.
func ResetEntry(name string, node uint32) *log.Entry {
	return log.New(log.SettingReset, &configpb.Setting{Name: fsm.Text(name), Node: node})
}

// Domains returns the IM domains in alphabetical order.
func Domains(r fsm.Reader) []string {
	var out []string
	r.Scan(DomainTable, nil, nil, func(k, _ []byte) bool {
		out = append(out, string(k))
		return true
	})
	return out
}

// IsDomain reports whether the cluster serves domain, which must be normalised.
func IsDomain(r fsm.Reader, domain string) bool {
	if domain == "" {
		return false
	}
	_, ok := r.Get(DomainTable, []byte(domain))
	return ok
}

// DecodeDomain tells which domain a change added or removed; ok is false for a change of another table.
func DecodeDomain(c fsm.Change) (domain string, added, ok bool) {
	return string(c.Key), c.After != nil, c.Table == DomainTable
}

// DecodeSetting tells which setting a change is about and its stored value
// after it; set is false if it was reset. ok is false for a change of another table.
func DecodeSetting(c fsm.Change) (name string, node uint32, value string, set, ok bool) {
	if c.Table != SettingTable {
		return "", 0, "", false, false
	}
	parts := fsm.SplitKey(c.Key)
	n, _ := strconv.ParseUint(parts[1], 10, 32)
	return parts[0], uint32(n), string(c.After), c.After != nil, true
}

func addDomain(tx *fsm.Tx, e *log.Entry) error {
	var body configpb.Domain
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	j, err := jid.Parse(body.Name)
	if err != nil || !j.IsDomain() || j.Domain != body.Name {
		return fault.New(fault.BadRequest, "domain.add", body.Name, "not a domain name in lower case")
	}
	if IsDomain(tx, body.Name) {
		return fault.New(fault.Conflict, "domain.add", body.Name, "the domain is served already")
	}
	if len(Domains(tx)) >= MaxDomains {
		return fault.New(fault.TooLarge, "domain.add", body.Name, "too many domains")
	}
	tx.Put(DomainTable, []byte(body.Name), nil)
	return nil
}

func removeDomain(tx *fsm.Tx, e *log.Entry, inUse []InUse) error {
	var body configpb.Domain
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if !IsDomain(tx, body.Name) {
		return fault.New(fault.NotFound, "domain.remove", body.Name, "no such domain")
	}
	for _, fn := range inUse {
		if err := fn(tx, body.Name); err != nil {
			return err
		}
	}
	tx.Delete(DomainTable, []byte(body.Name))
	return nil
}

func settingKey(name string, node uint32) []byte {
	return fsm.Key(name, strconv.FormatUint(uint64(node), 10))
}

func setSetting(tx *fsm.Tx, e *log.Entry) error {
	var body configpb.Setting
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	d, err := declared(tx, &body)
	if err != nil {
		return err
	}
	if err := d.check(body.Value); err != nil {
		return err
	}
	tx.Put(SettingTable, settingKey(body.Name, body.Node), []byte(body.Value))
	return nil
}

func resetSetting(tx *fsm.Tx, e *log.Entry) error {
	var body configpb.Setting
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if _, err := declared(tx, &body); err != nil {
		return err
	}
	tx.Delete(SettingTable, settingKey(body.Name, body.Node))
	return nil
}

// declared finds the declaration of the setting and checks that it exists in this cluster version and scope.
func declared(tx *fsm.Tx, body *configpb.Setting) (*Declaration, error) {
	d := registry[body.Name]
	if d == nil || d.Since > tx.Version() {
		return nil, unknown(body.Name)
	}
	if body.Node != 0 && d.Scope != Node {
		return nil, fault.New(fault.NotAcceptable, "setting.set", body.Name, "this setting has one value for the whole cluster")
	}
	return d, nil
}

func unknown(name string) error {
	if len(name) > maxName {
		name = name[:maxName]
	}
	return fault.New(fault.NotFound, "setting.set", name, "no such setting; `muster settings` lists them")
}
