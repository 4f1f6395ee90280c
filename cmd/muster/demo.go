package main

import (
	"muster/internal/demo"
)

type demoCmd struct {
	Run  demoRunCmd  `cmd:"" help:"Bring a cluster up and stay with it until Ctrl-C."`
	Node demoNodeCmd `cmd:"" help:"Start a node of it again, after it was killed."`
}

// demoFlags are common to both.
type demoFlags struct {
	Dir    string `default:"run" help:"Folder of the cluster."`
	Binary string `default:"bin/musterd" help:"The server."`
}

type demoRunCmd struct {
	demoFlags
	Nodes  int    `default:"3" help:"Number of nodes."`
	Domain string `default:"example.test" help:"IM domain."`
	Users  int    `default:"0" help:"Make user1 to userN (default: alice, bob and carol)."`
	Ports  int    `default:"0" help:"Added to every port."`
	Clean  bool   `help:"Forget the cluster that is there."`
}

// Run brings the cluster up.
func (c *demoRunCmd) Run(a *app) error {
	if c.Clean {
		if err := demo.Clean(c.Dir); err != nil {
			return err
		}
	}
	r := &demo.Runner{Plan: demo.Plan{Dir: c.Dir, Domain: c.Domain, Nodes: c.Nodes, Users: c.Users, Ports: c.Ports},
		Binary: c.Binary, Release: version, Out: a.out}
	return r.Run(a.ctx)
}

type demoNodeCmd struct {
	demoFlags
	Node int `arg:"" help:"Number of the node, from 1."`
}

// Run starts the node.
func (c *demoNodeCmd) Run(a *app) error {
	return demo.RunNode(a.ctx, c.Dir, c.Binary, c.Node, a.out)
}
