// Package bootstrap reads a node's bootstrap file: the few things that a node
// must know before it can read the replicated settings. These are its name, its
// data folder, its listeners and its certificates; all else is a replicated setting.
//
// Callers: cmd/musterd, and the commands of cmd/muster that work on a node's
// data folder. Invariants: an unknown key or a bad value is an error that names
// the line and the remedy, and all errors of a file are told at once.
package bootstrap

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"muster/internal/fault"
)

// MaxFile bounds a bootstrap file, in bytes; a real one has a few hundred.
const MaxFile = 64 << 10

// Config is a bootstrap file with its defaults filled in. Relative paths are
// relative to the file's folder.
type Config struct {
	Data string // data folder
	Name string // the node's name, unique in the cluster

	ClusterListen    string // address of the cluster port; other nodes only, mutual TLS
	ClusterAdvertise string // host:port at which other nodes reach it
	ClientListen     string // XMPP clients with STARTTLS; "" for none
	ClientAdvertise  string // host:port at which clients reach ClientListen; "" derives it, Off tells no client
	ClientTLSListen  string // XMPP clients with direct TLS; "" for none
	HTTPSListen      string // health, metrics; "" for none

	Cert, Key string // PEM files shown to clients: certificate chain and private key

	LogLevel  slog.Level
	LogFormat string // "text" or "json"
}

// Off is the value of a key that turns a listener or an announcement off.
const Off = "off"

// Example is a bootstrap file with every key, its default and what it is for.
const Example = `# Bootstrap file of a Muster node. All other settings are replicated: see "muster settings list".
data: /var/lib/muster        # data folder; the node's identity and all of its state
name: node1                  # unique in the cluster; default: the host's name

cluster:
  listen: :7400              # other nodes connect here (mutual TLS with the cluster's own CA)
  advertise: node1:7400      # host:port at which the others reach it; default: name and port of listen

client:
  listen: :5222              # XMPP clients, STARTTLS; "off" for none
  advertise: node1:5222      # host:port at which clients reach it: where they are told to go on when another node
                             # dies; default: host of cluster.advertise, port of listen; "off" tells them nothing
  tls_listen: :5223          # XMPP clients, direct TLS; "off" for none

https:
  listen: :8443              # /health/live, /health/ready, /health/replication, /metrics; "off" for none

certificates:                # what clients see; reloaded on SIGHUP and by "muster certs reload"
  cert: /etc/muster/fullchain.pem
  key: /etc/muster/key.pem   # readable by the server's user only

log:
  level: info                # debug, info, warn, error
  format: text               # text, json
`

// Default returns the configuration of an empty file.
func Default() Config {
	host, err := os.Hostname()
	if err != nil {
		host = "node1"
	}
	name, _, _ := strings.Cut(host, ".")
	return Config{
		Data: "/var/lib/muster", Name: strings.ToLower(name),
		ClusterListen: ":7400", ClientListen: ":5222", ClientTLSListen: ":5223", HTTPSListen: ":8443",
		LogLevel: slog.LevelInfo, LogFormat: "text",
	}
}

// Load reads the file at path.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, &fault.Error{Code: fault.NotFound, Op: "bootstrap.load", Subject: path,
			Text: "the bootstrap file cannot be read; name it with --config", Err: err}
	}
	defer f.Close()
	buf := make([]byte, MaxFile+1)
	n := 0
	for n < len(buf) {
		m, err := f.Read(buf[n:])
		n += m
		if err != nil {
			break // the end, or a folder: parsing tells
		}
	}
	if n > MaxFile {
		return Config{}, fault.New(fault.TooLarge, "bootstrap.load", path, "the file is larger than 64 KiB; is it a bootstrap file?")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Config{}, fault.Wrap(err, fault.BadRequest, "bootstrap.load", path)
	}
	c, err := Parse(buf[:n])
	if err != nil {
		return Config{}, &fault.Error{Code: fault.BadRequest, Op: "bootstrap.load", Subject: path, Text: err.Error()}
	}
	c.resolve(filepath.Dir(abs))
	return c, nil
}

// resolve makes relative paths relative to dir.
func (c *Config) resolve(dir string) {
	for _, p := range []*string{&c.Data, &c.Cert, &c.Key} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// Parse reads a bootstrap file's text. The error joins everything that is wrong, a line each.
func Parse(text []byte) (Config, error) {
	c := Default()
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return Config{}, fmt.Errorf("%s; the file must be YAML, see the example in the operator guide", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(doc.Content) == 0 {
		return c.check(nil)
	}
	return c.check(c.schema().read(doc.Content[0], ""))
}

// check does what needs the whole file: defaults that follow from other keys, and pairs.
func (c Config) check(errs []error) (Config, error) {
	if c.ClusterAdvertise == "" {
		_, port, _ := net.SplitHostPort(c.ClusterListen)
		host, _, _ := net.SplitHostPort(c.ClusterListen)
		if host == "" || net.ParseIP(host).IsUnspecified() {
			host = c.Name
		}
		c.ClusterAdvertise = net.JoinHostPort(host, port)
	}
	if (c.Cert == "") != (c.Key == "") {
		errs = append(errs, errors.New("certificates: cert and key belong together; set both or none"))
	}
	if len(errs) > 0 {
		return Config{}, errors.Join(errs...)
	}
	return c, nil
}

// section maps the keys of a mapping to what reads their values: a func(string) error or another section.
type section map[string]any

func (c *Config) schema() section {
	return section{
		"data": set(&c.Data, text), "name": set(&c.Name, name),
		"cluster":      section{"listen": set(&c.ClusterListen, listen), "advertise": set(&c.ClusterAdvertise, hostPort)},
		"client":       section{"listen": set(&c.ClientListen, listenOrOff), "advertise": set(&c.ClientAdvertise, hostPortOrOff), "tls_listen": set(&c.ClientTLSListen, listenOrOff)},
		"https":        section{"listen": set(&c.HTTPSListen, listenOrOff)},
		"certificates": section{"cert": set(&c.Cert, text), "key": set(&c.Key, text)},
		"log":          section{"level": set(&c.LogLevel, level), "format": set(&c.LogFormat, format)},
	}
}

// read walks a mapping and returns what is wrong, each with its line.
func (s section) read(n *yaml.Node, path string) (errs []error) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil // a section whose keys are all commented out
	}
	if n.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("line %d: %s must hold keys: %s", n.Line, orRoot(path), s.keys())}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		full := strings.TrimPrefix(path+"."+key.Value, ".")
		if line, ok := seen[key.Value]; ok {
			errs = append(errs, fmt.Errorf("line %d: %s stands already on line %d; remove one", key.Line, full, line))
			continue
		}
		seen[key.Value] = key.Line
		errs = append(errs, s.value(key, value, full)...)
	}
	return errs
}

func (s section) value(key, value *yaml.Node, full string) []error {
	switch read := s[key.Value].(type) {
	case section:
		return read.read(value, full)
	case func(string) error:
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
			return []error{fmt.Errorf("line %d: %s must be a single value", value.Line, full)}
		}
		if err := read(value.Value); err != nil {
			return []error{fmt.Errorf("line %d: %s: %q %w", value.Line, full, value.Value, err)}
		}
		return nil
	}
	return []error{fmt.Errorf("line %d: unknown key %s; known here: %s", key.Line, full, s.keys())}
}

func (s section) keys() string {
	order := []string{"data", "name", "cluster", "client", "https", "certificates", "log", "listen", "advertise", "tls_listen", "cert", "key", "level", "format"}
	var have []string
	for _, k := range order {
		if _, ok := s[k]; ok {
			have = append(have, k)
		}
	}
	return strings.Join(have, ", ")
}

func orRoot(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

// set returns a reader that stores what parse makes of the value.
func set[T any](to *T, parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		v, err := parse(s)
		if err == nil {
			*to = v
		}
		return err
	}
}

func text(s string) (string, error) {
	if strings.TrimSpace(s) == "" {
		return "", errors.New("is empty; give a value or remove the line")
	}
	return s, nil
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$`)

func name(s string) (string, error) {
	if !namePattern.MatchString(s) {
		return "", errors.New("is no node name; use lower-case letters, digits, dots, hyphens and underscores, at most 128")
	}
	return s, nil
}

func listen(s string) (string, error) {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", errors.New("is no address to listen on; write host:port or :port, an IPv6 address in brackets")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && port != "0" {
		return "", errors.New("has no port from 1 to 65535")
	}
	return s, nil
}

func listenOrOff(s string) (string, error) {
	if s == Off || s == "false" { // YAML readers may take off for a boolean
		return "", nil
	}
	return listen(s)
}

func hostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", errors.New("is no address that others can reach; write host:port with the node's name or IP address")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("has no port from 1 to 65535")
	}
	return s, nil
}

func hostPortOrOff(s string) (string, error) {
	if s == Off || s == "false" {
		return Off, nil
	}
	return hostPort(s)
}

func level(s string) (l slog.Level, err error) {
	switch s {
	case "debug", "info", "warn", "error":
		return l, l.UnmarshalText([]byte(s))
	}
	return l, errors.New("is no log level; use debug, info, warn or error")
}

func format(s string) (string, error) {
	if s != "text" && s != "json" {
		return "", errors.New("is no log format; use text or json")
	}
	return s, nil
}

// Listeners returns the addresses of the node's listeners as others reach
// them, by the names that the node table uses: "client", "client-tls", "https".
// A listener on all interfaces has the host of cluster.advertise; client.advertise overrides the clients' one.
func (c Config) Listeners() map[string]string {
	host, _, _ := net.SplitHostPort(c.ClusterAdvertise)
	out := map[string]string{}
	for name, address := range map[string]string{"client": c.ClientListen, "client-tls": c.ClientTLSListen, "https": c.HTTPSListen} {
		h, port, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		if h == "" || net.ParseIP(h).IsUnspecified() {
			h = host
		}
		out[name] = net.JoinHostPort(h, port)
	}
	switch {
	case c.ClientAdvertise == Off:
		delete(out, "client")
	case c.ClientAdvertise != "" && c.ClientListen != "":
		out["client"] = c.ClientAdvertise
	}
	return out
}
