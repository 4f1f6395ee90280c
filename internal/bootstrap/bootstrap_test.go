package bootstrap

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/internal/fault"
)

func TestExampleIsValidAndCovers(t *testing.T) {
	c, err := Parse([]byte(Example))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Data: "/var/lib/muster", Name: "node1", ClusterListen: ":7400", ClusterAdvertise: "node1:7400",
		ClientListen: ":5222", ClientAdvertise: "node1:5222", ClientTLSListen: ":5223", HTTPSListen: ":8443",
		Cert: "/etc/muster/fullchain.pem", Key: "/etc/muster/key.pem", LogLevel: slog.LevelInfo, LogFormat: "text"}
	if c != want {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
	for key, v := range (&Config{}).schema() {
		if !strings.Contains(Example, "\n"+key+":") {
			t.Errorf("the example does not show %s", key)
		}
		if sub, ok := v.(section); ok {
			for k := range sub {
				if !strings.Contains(Example, "\n  "+k+":") {
					t.Errorf("the example does not show %s.%s", key, k)
				}
			}
		}
	}
}

func TestDefaults(t *testing.T) {
	for _, tc := range []struct{ name, text string }{
		{"empty file", ""},
		{"comments only", "# nothing\n"},
		{"empty sections", "cluster:\nclient:\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse([]byte("name: n7\n" + tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if c.ClientListen != ":5222" || c.ClusterAdvertise != "n7:7400" || c.Data != "/var/lib/muster" || c.LogFormat != "text" {
				t.Errorf("defaults are %+v", c)
			}
		})
	}
}

func TestAdvertiseFollowsListen(t *testing.T) {
	for _, tc := range []struct{ listen, want string }{
		{"10.0.0.1:7401", "10.0.0.1:7401"},
		{"0.0.0.0:7401", "n1:7401"},
		{"\"[::]:7401\"", "n1:7401"},
		{":7402", "n1:7402"},
	} {
		c, err := Parse([]byte("name: n1\ncluster:\n  listen: " + tc.listen + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if c.ClusterAdvertise != tc.want {
			t.Errorf("listen %s: advertise %s, want %s", tc.listen, c.ClusterAdvertise, tc.want)
		}
	}
}

func TestOff(t *testing.T) {
	c, err := Parse([]byte("client:\n  listen: off\n  tls_listen: 127.0.0.1:0\nhttps:\n  listen: \"off\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.ClientListen != "" || c.ClientTLSListen != "127.0.0.1:0" || c.HTTPSListen != "" {
		t.Errorf("got %+v", c)
	}
}

func TestErrorsNameLineAndRemedy(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", "name: a\nport: 5222\n", []string{"line 2: unknown key port", "known here: data, name, cluster"}},
		{"unknown nested key", "client:\n  listen: :1\n  listne: :2\n", []string{"line 3: unknown key client.listne", "listen, advertise, tls_listen"}},
		{"twice", "name: a\nname: b\n", []string{"line 2: name stands already on line 1"}},
		{"no port", "cluster:\n  listen: localhost\n", []string{"line 2: cluster.listen: \"localhost\" is no address to listen on; write host:port"}},
		{"bad port", "https:\n  listen: :99999\n", []string{"line 2", "no port from 1 to 65535"}},
		{"advertise without host", "cluster:\n  advertise: :7400\n", []string{"line 2", "others can reach"}},
		{"advertise without port", "cluster:\n  advertise: node1\n", []string{"line 2", "host:port"}},
		{"advertise port 0", "cluster:\n  advertise: node1:0\n", []string{"line 2", "no port"}},
		{"advertise to clients without port", "client:\n  advertise: node1\n", []string{"line 2: client.advertise", "host:port"}},
		{"cluster off", "cluster:\n  listen: off\n", []string{"line 2", "host:port"}},
		{"name", "name: Node One\n", []string{"line 1: name: \"Node One\" is no node name"}},
		{"level", "log:\n  level: loud\n", []string{"line 2", "debug, info, warn or error"}},
		{"format", "log:\n  format: xml\n", []string{"line 2", "text or json"}},
		{"empty path", "data: \"\"\n", []string{"line 1", "is empty"}},
		{"null value", "data:\n", []string{"line 1: data must be a single value"}},
		{"list for a value", "data: [a, b]\n", []string{"line 1: data must be a single value"}},
		{"value for a section", "client: yes\n", []string{"line 1: client must hold keys: listen, advertise, tls_listen"}},
		{"a list", "- a\n", []string{"line 1: the file must hold keys"}},
		{"not YAML", "name: x\na: b: c\n", []string{"line 2", "must be YAML"}},
		{"cert without key", "certificates:\n  cert: a.pem\n", []string{"cert and key belong together"}},
		{"several at once", "x: 1\nlog:\n  level: loud\n", []string{"line 1: unknown key x", "line 3: log.level"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text))
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "musterd.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("data: state\ncertificates:\n  cert: c.pem\n  key: /abs/k.pem\n")
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Data != filepath.Join(dir, "state") || c.Cert != filepath.Join(dir, "c.pem") || c.Key != "/abs/k.pem" {
		t.Errorf("paths are %s %s %s", c.Data, c.Cert, c.Key)
	}
	write("nmae: x\n")
	if _, err = Load(path); !fault.Is(err, fault.BadRequest) || !strings.Contains(err.Error(), path) {
		t.Errorf("a bad file gives %v", err)
	}
	write(strings.Repeat("#", MaxFile+1))
	if _, err = Load(path); !fault.Is(err, fault.TooLarge) {
		t.Errorf("a huge file gives %v", err)
	}
	if _, err = Load(filepath.Join(dir, "none")); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "--config") {
		t.Errorf("no file gives %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Example))
	f.Add([]byte("a: &x [*x]"))
	f.Add([]byte("client: {listen: off}\n---\nname: 7"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err == nil && (c.ClusterListen == "" || c.Name == "" || c.ClusterAdvertise == "") {
			t.Errorf("accepted without a name or cluster address: %+v", c)
		}
	})
}

func TestListeners(t *testing.T) {
	c, err := Parse([]byte("name: n1\ncluster:\n  advertise: n1.example.com:7400\nclient:\n  listen: 10.0.0.1:5222\n  tls_listen: off\nhttps:\n  listen: \"[::]:8443\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	for advertise, want := range map[string]string{"xmpp.example.com:15222": "xmpp.example.com:15222", "off": ""} {
		c, err := Parse([]byte("client:\n  advertise: " + advertise + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := c.Listeners()["client"]; got != want || ok != (want != "") {
			t.Errorf("advertise %s: %q, %v", advertise, got, ok)
		}
	}
	got := c.Listeners()
	if len(got) != 2 || got["client"] != "10.0.0.1:5222" || got["https"] != "n1.example.com:8443" {
		t.Errorf("got %v", got)
	}
}
