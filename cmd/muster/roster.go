package main

import (
	"context"
	"net/http"
	"strings"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

type rosterCmd struct {
	Import rosterImportCmd `cmd:"" help:"Make users each other's contacts from a CSV file."`
}

type rosterImportCmd struct {
	File   string `arg:"" help:"CSV file: user,contact; each gets the other, subscribed both ways; - for the input."`
	Domain string `help:"Domain of addresses without one (default: the cluster's only one)."`
	Quiet  bool   `short:"q" help:"No progress line."`
}

// Run creates the contacts of the file.
func (c *rosterImportCmd) Run(a *app) error {
	records, err := readCSV(a, c.File, 2, 3)
	if err != nil {
		return err
	}
	var pairs []adminapi.Pair
	for _, r := range records {
		if len(r.fields) == 3 && r.fields[2] != "both" {
			return fault.New(fault.BadRequest, "roster.import", c.File, "the third field, the subscription, can only be both")
		}
		p := adminapi.Pair{User: strings.TrimSpace(r.fields[0]), Contact: strings.TrimSpace(r.fields[1])}
		for _, s := range []*string{&p.User, &p.Contact} {
			if strings.Contains(*s, "@") {
				continue
			}
			if c.Domain == "" {
				if c.Domain, err = a.onlyDomain(); err != nil {
					return err
				}
			}
			*s += "@" + c.Domain
		}
		pairs = append(pairs, p)
	}
	progress := newProgress(a.errs, "contacts", len(pairs), c.Quiet)
	as := func(p adminapi.Pair) (adminapi.Pair, error) { return p, nil }
	send := func(ctx context.Context, batch []adminapi.Pair) ([]adminapi.Outcome, error) {
		var got []adminapi.Outcome
		return got, a.node.Call(ctx, http.MethodPost, "/contacts", batch, &got)
	}
	if err := runImport(a.ctx, pairs, as, send, progress); err != nil {
		progress.end()
		return err
	}
	return progress.summary(a.out, "made", "existed already")
}
