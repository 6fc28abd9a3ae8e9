package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// runNode carries out the commands with which a test makes a node fail.
func runNode(ctx context.Context, c *cluster, arguments []string) error {
	if len(arguments) != 2 {
		return fmt.Errorf("node takes what to do and the node's name: %w", errUsage)
	}
	verb, name := arguments[0], arguments[1]
	i := slices.IndexFunc(c.nodes, func(n node) bool { return n.name == name })
	if i < 0 {
		return fmt.Errorf("no node is named %q", name)
	}
	n := c.nodes[i]
	lock, err := c.lockPresent(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	switch verb {
	case "stop":
		return c.stopNode(n)
	case "start":
		return c.bootNode(ctx, n)
	case "cut", "join":
		if !n.ownNetwork {
			return fmt.Errorf("%s has the host's network, which cannot be cut", n.name)
		}
		if _, err := c.anchorOf(n); err != nil {
			return err
		}
		if verb == "cut" {
			return n.cut()
		}
		return n.join()
	}
	return fmt.Errorf("unknown node command %q: %w", verb, errUsage)
}

// stopNode kills the node's agents and pods at once, as a power cut would.
func (c *cluster) stopNode(n node) error {
	return killAll(func() []int { return processesIn(n.group()) })
}

// bootNode starts a stopped node and waits until it is ready. What a machine
// keeps in memory only did not survive: containerd's state and the control
// groups of the pods, each of which would keep kubelet wondering for seconds.
func (c *cluster) bootNode(ctx context.Context, n node) error {
	if _, err := c.anchorOf(n); err == nil {
		return fmt.Errorf("%s is running", n.name)
	}
	if err := c.stopNode(n); err != nil {
		return err
	}
	if err := errors.Join(removeGroups(n.group()), makeGroups(n.group())); err != nil {
		return err
	}
	booted := time.Now()
	state := c.folders.inRun(n.name, "run")
	if err := os.RemoveAll(state); err != nil {
		return err
	}
	if err := os.Mkdir(state, 0o700); err != nil {
		return err
	}
	if err := c.startMachine(ctx, n); err != nil {
		return err
	}
	if err := c.startAgents(n); err != nil {
		return err
	}
	api, err := c.api()
	if err != nil {
		return err
	}
	return c.waitForNode(ctx, api, n, booted)
}
