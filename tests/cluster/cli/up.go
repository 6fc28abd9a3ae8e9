package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// cluster is what the commands work on.
type cluster struct {
	folders folders
	nodes   []node
	watched []*process // started by this command
}

func newCluster(f folders) *cluster {
	return &cluster{folders: f, nodes: clusterNodes}
}

// up starts the cluster, unless it runs.
func (c *cluster) up(ctx context.Context, ifNeeded bool) error {
	lock, err := c.lock(ctx, ifNeeded)
	if err != nil {
		return err
	}
	defer lock.Close()
	if c.running() {
		return c.upAgain(ctx, ifNeeded)
	}
	if c.present() {
		fmt.Println("removing what is left of a cluster that no longer runs")
		if err := c.remove(); err != nil {
			return err
		}
		lock.Close()
		return c.up(ctx, ifNeeded)
	}
	if err := c.checkPrerequisites(); err != nil {
		// The folder was empty but for being the lock.
		return errors.Join(err, os.Remove(c.folders.run))
	}
	if len(c.missingParts()) > 0 {
		if err := c.build(ctx); err != nil {
			return errors.Join(err, os.Remove(c.folders.run))
		}
	}
	start := time.Now()
	if err := c.assemble(ctx); err != nil {
		return fmt.Errorf("%w\nthe cluster is left as it is, to be looked at; its logs are in %s; `cluster down` removes it",
			err, c.folders.inRun("logs"))
	}
	fmt.Printf("the cluster is ready after %.1f s\nKUBECONFIG=%s\n", time.Since(start).Seconds(), c.adminKubeconfig())
	return nil
}

// upAgain is `up` for a cluster that runs already.
func (c *cluster) upAgain(ctx context.Context, ifNeeded bool) error {
	if !ifNeeded {
		return fmt.Errorf("already running; KUBECONFIG=%s; see `cluster status`, stop it with `cluster down`", c.adminKubeconfig())
	}
	if problem := c.health(ctx); problem != nil {
		return fmt.Errorf("already running but not well: %w\nstop it with `cluster down`", problem)
	}
	fmt.Printf("already running\nKUBECONFIG=%s\n", c.adminKubeconfig())
	return nil
}

// assemble starts everything in the order in which it can work: the nodes'
// machines boot while the API server does.
func (c *cluster) assemble(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return err
	}
	if err := errors.Join(c.startStorage(), c.startAPIServer()); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.startMachine(ctx, n); err != nil {
			return err
		}
	}
	api, err := c.api()
	if err != nil {
		return err
	}
	if err := c.waitFor(ctx, "the API server", 2*time.Minute, api.ready); err != nil {
		return err
	}
	if err := c.startControllers(); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.startAgents(n); err != nil {
			return err
		}
	}
	if err := c.startDNS(ctx); err != nil {
		return err
	}
	return c.waitUntilUsable(ctx, api)
}

func (c *cluster) prepare() error {
	steps := []func() error{c.makeFolders, c.writeIdentities, c.prepareHost, c.makeHostNetwork, func() error {
		groups := []string{controlGroup}
		for _, n := range c.nodes {
			groups = append(groups, n.group())
		}
		return makeGroups(groups...)
	}}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) waitUntilUsable(ctx context.Context, api *api) error {
	for _, n := range c.nodes {
		if err := c.waitForNode(ctx, api, n, time.Time{}); err != nil {
			return err
		}
	}
	if err := c.waitFor(ctx, "the default service account", time.Minute, api.podsAllowed); err != nil {
		return err
	}
	return c.waitFor(ctx, "the cluster's name server", time.Minute, dnsAnswers)
}

func (c *cluster) waitForNode(ctx context.Context, api *api, n node, since time.Time) error {
	return c.waitFor(ctx, n.name+" to be ready", 2*time.Minute, func(ctx context.Context) error {
		return api.nodeReady(ctx, n.name, since)
	})
}
