package main

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"muster/edges/http/adminapi"
	"muster/fsm/cluster"
	"muster/internal/bootstrap"
	"muster/internal/fault"
	"muster/log"
	"muster/replication"
	"muster/replication/pki"
)

type clusterCmd struct {
	Init    clusterInitCmd `cmd:"" help:"Found a cluster: this node becomes its first, the publisher. Start musterd afterwards."`
	Example exampleCmd     `cmd:"" help:"Print an example bootstrap file."`
}

type exampleCmd struct{}

// Run prints the example.
func (exampleCmd) Run(a *app) error {
	fmt.Fprint(a.out, bootstrap.Example)
	return nil
}

type clusterInitCmd struct {
	Name   string `default:"muster" help:"Name of the cluster, for people."`
	Domain string `required:"" help:"First IM domain."`
}

// Run founds the cluster in the empty data folder.
func (c *clusterInitCmd) Run(a *app) error {
	conf, err := a.bootstrapFile()
	if err != nil {
		return err
	}
	id, err := replication.Init(replication.InitOptions{Dir: conf.Data, ClusterName: c.Name, Node: member(conf), Domain: c.Domain})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "cluster %s (%s) founded in %s with the domain %s\n"+
		"next: start musterd --config %s, then muster --config %s user create --admin admin\n",
		c.Name, id.ClusterID, conf.Data, c.Domain, a.config, a.config)
	return nil
}

// bootstrapFile reads the bootstrap file, which commands that work without a running node need.
func (a *app) bootstrapFile() (bootstrap.Config, error) {
	if a.config == "" {
		return bootstrap.Config{}, fault.New(fault.BadRequest, "muster", "", "name the node's bootstrap file with --config; muster cluster example prints one")
	}
	conf, err := bootstrap.Load(a.config)
	if err == nil {
		conf.Data = a.data // --data wins
	}
	return conf, err
}

// member is the node as it introduces itself.
func member(c bootstrap.Config) cluster.Member {
	return cluster.Member{Name: c.Name, ClusterAddr: c.ClusterAdvertise, Addrs: c.Listeners(), Software: version, NewestVersion: log.NewestVersion}
}

type nodeCmd struct {
	List   nodeListCmd   `cmd:"" default:"withargs" help:"List the nodes."`
	Token  nodeTokenCmd  `cmd:"" help:"Make an invitation for one new node."`
	Join   nodeJoinCmd   `cmd:"" help:"Make this node a member of a cluster. Start musterd afterwards."`
	Remove nodeRemoveCmd `cmd:"" help:"Remove a node for good; its users move to the others."`
}

type nodeTokenCmd struct {
	For  time.Duration `default:"24h" help:"How long the invitation is valid."`
	JSON bool          `help:"Print JSON."`
}

// Run makes a token.
func (c *nodeTokenCmd) Run(a *app) error {
	var t adminapi.Token
	if err := a.node.Call(a.ctx, http.MethodPost, "/tokens?for="+c.For.String(), nil, &t); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, t)
	}
	fmt.Fprintf(a.out, "%s\n", t.Token)
	fmt.Fprintf(a.errs, "valid once, until %s; on the new node: muster --config FILE node join %s --token-file - \n", clock(t.Expires), t.Address)
	return nil
}

type nodeJoinCmd struct {
	Address   string `arg:"" help:"Cluster port of any member, host:port."`
	TokenFile string `required:"" help:"File with the invitation that muster node token printed; - for the input."`
}

// Run joins the cluster.
func (c *nodeJoinCmd) Run(a *app) error {
	conf, err := a.bootstrapFile()
	if err != nil {
		return err
	}
	text, err := c.token(a)
	if err != nil {
		return err
	}
	token, err := pki.ParseToken(text)
	if err != nil {
		return err
	}
	id, err := replication.Join(a.ctx, replication.JoinOptions{Dir: conf.Data, Addr: c.Address, Token: token, Node: member(conf)})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s is node %d of cluster %s\nnext: start musterd --config %s\n", conf.Name, id.NodeID, id.ClusterID, a.config)
	return nil
}

func (c *nodeJoinCmd) token(a *app) (string, error) {
	if c.TokenFile == "-" {
		return a.readSecret("token")
	}
	f, err := os.Open(c.TokenFile)
	if err != nil {
		return "", &fault.Error{Code: fault.NotFound, Op: "node.join", Subject: c.TokenFile, Text: "cannot read the token file " + c.TokenFile, Err: err}
	}
	defer f.Close()
	return readLine(f)
}

type nodeListCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run lists the nodes.
func (c *nodeListCmd) Run(a *app) error {
	var nodes []adminapi.Node
	if err := a.node.Call(a.ctx, http.MethodGet, "/nodes", nil, &nodes); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, nodes)
	}
	t := newTable(a.out, "ID", "NODE", "ROLE", "UP", "SINCE", "GROUP", "USERS", "CLUSTER PORT", "CLIENTS", "RELEASE")
	for _, n := range nodes {
		role := "subscriber"
		if n.Publisher {
			role = "publisher"
		}
		t.row(fmt.Sprint(n.ID), n.Name, role, yes(n.Up), clock(n.Since), orDash(n.Group), fmt.Sprint(n.Users), n.Address, orDash(n.Listeners["client"]), orDash(n.Software))
	}
	return t.flush()
}

type nodeRemoveCmd struct {
	Node string `arg:"" help:"Name of the node."`
}

// Run removes the node.
func (c *nodeRemoveCmd) Run(a *app) error {
	return a.change(http.MethodDelete, "/nodes/"+url.PathEscape(c.Node), nil, c.Node+" is no member any more and may be switched off; to come back it joins anew with an empty data folder")
}

type publisherCmd struct {
	Move publisherMoveCmd `cmd:"" help:"Make another node the publisher."`
}

type publisherMoveCmd struct {
	Node string `arg:"" help:"Name of the new publisher."`
}

// Run moves the role.
func (c *publisherMoveCmd) Run(a *app) error {
	return a.change(http.MethodPut, "/publisher/"+url.PathEscape(c.Node), nil, c.Node+" is the publisher")
}

// humanBytes renders a size.
func humanBytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/unit, "KMGT"
	for v >= unit && len(units) > 1 {
		v, units = v/unit, units[1:]
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + " " + units[:1] + "iB"
}
