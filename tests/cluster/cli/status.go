package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"
)

// errNothingRuns is returned by commands that need a running cluster.
var errNothingRuns = errors.New("nothing is running")

// health is nil when every component runs and does its work.
func (c *cluster) health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var problems []error
	for _, p := range c.recorded() {
		if !p.alive() {
			problems = append(problems, fmt.Errorf("%s is not running", p.name))
		}
	}
	api, err := c.api()
	if err != nil {
		return errors.Join(append(problems, err)...)
	}
	problems = append(problems, api.ready(ctx))
	for _, n := range c.nodes {
		problems = append(problems, api.nodeReady(ctx, n.name, time.Time{}))
	}
	problems = append(problems, dnsAnswers(ctx))
	return errors.Join(problems...)
}

// status prints the components, and fails when the cluster is not well.
func (c *cluster) status(ctx context.Context) error {
	if !c.present() {
		return errNothingRuns
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "COMPONENT\tPID\tSTATE\tLOG")
	for _, p := range c.recorded() {
		state := "dead"
		if p.alive() {
			state = "running"
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", p.name, p.pid, state, c.logPath(p.name))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if err := c.health(ctx); err != nil {
		return fmt.Errorf("not well:\n%w", err)
	}
	fmt.Printf("\nboth nodes are ready, names resolve\nKUBECONFIG=%s\n", c.adminKubeconfig())
	return nil
}
