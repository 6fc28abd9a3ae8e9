package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"
)

// runComponent carries out the commands with which a test makes the control
// plane fail: `component kill NAME...` and `component start NAME...`.
func runComponent(ctx context.Context, c *cluster, arguments []string) error {
	if len(arguments) < 2 {
		return fmt.Errorf("component takes what to do and names of components: %w", errUsage)
	}
	starters := map[string]func() error{"etcd": c.startStorage, "kube-apiserver": c.startAPIServer}
	verb, names := arguments[0], arguments[1:]
	for _, name := range names {
		if starters[name] == nil {
			known := slices.Sorted(maps.Keys(starters))
			return fmt.Errorf("%q cannot be killed and started by itself; what can is %s", name, strings.Join(known, ", "))
		}
	}
	lock, err := c.lockPresent(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	switch verb {
	case "kill":
		return c.killComponents(names)
	case "start":
		return c.startComponents(ctx, names, starters)
	}
	return fmt.Errorf("unknown component command %q: %w", verb, errUsage)
}

// killComponents kills processes at once, and returns when they have ended.
func (c *cluster) killComponents(names []string) error {
	var processes []process
	for _, name := range names {
		p, err := c.component(name)
		if err != nil {
			return err
		}
		processes = append(processes, p)
	}
	for _, p := range processes {
		if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("cannot kill %s: %w", p.name, err)
		}
	}
	return killAll(func() []int {
		var alive []int
		for _, p := range processes {
			if p.alive() {
				alive = append(alive, p.pid)
			}
		}
		return alive
	})
}

// startComponents starts what is not running and waits until the API server
// answers, if it runs: it needs both.
func (c *cluster) startComponents(ctx context.Context, names []string, starters map[string]func() error) error {
	for _, name := range names {
		if _, err := c.component(name); err == nil {
			return fmt.Errorf("%s is running", name)
		}
		if err := starters[name](); err != nil {
			return err
		}
	}
	if _, err := c.component("kube-apiserver"); err != nil {
		return nil
	}
	api, err := c.api()
	if err != nil {
		return err
	}
	return c.waitFor(ctx, "the API server", 2*time.Minute, api.ready)
}

// component is a running process of the cluster.
func (c *cluster) component(name string) (process, error) {
	for _, p := range c.recorded() {
		if p.name == name && p.alive() {
			return p, nil
		}
	}
	return process{}, fmt.Errorf("%s is not running", name)
}
