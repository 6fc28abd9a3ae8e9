package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// down stops the cluster and removes every trace of it. It trusts no record:
// what is to be ended is found by control group, and by the run folder.
func (c *cluster) down(ctx context.Context, keepLogs string) error {
	if err := checkRoot(); err != nil {
		return err
	}
	if !exists(c.folders.run) && !c.present() {
		fmt.Println("nothing is running")
		return nil
	}
	lock, err := c.lock(ctx, true)
	if err != nil {
		return err
	}
	defer lock.Close()
	if !c.present() {
		fmt.Println("nothing is running")
		return os.RemoveAll(c.folders.run)
	}
	var logs error
	if keepLogs != "" {
		logs = c.copyLogs(keepLogs)
	}
	start := time.Now()
	if err := c.remove(); err != nil {
		return errors.Join(logs, err)
	}
	fmt.Printf("the cluster is gone after %.1f s\n", time.Since(start).Seconds())
	return logs
}

// copyLogs keeps what the components said, and the pods of each node. That it
// fails is no reason to leave the cluster running.
func (c *cluster) copyLogs(target string) error {
	copies := map[string]string{c.folders.inRun("logs"): target}
	for _, n := range c.nodes {
		copies[c.folders.inRun(n.name, "pod-logs")] = filepath.Join(target, n.name+"-pods")
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	var failures []error
	for from, to := range copies {
		if output, err := exec.Command("cp", "--recursive", "--no-target-directory", from, to).CombinedOutput(); err != nil {
			failures = append(failures, fmt.Errorf("cannot keep logs: %w\n%s", err, output))
		}
	}
	return errors.Join(failures...)
}

// present tells whether there is anything of this cluster on the machine.
func (c *cluster) present() bool {
	owner, found := bridgeOwner()
	return exists(c.hostChangesPath()) || (found && owner == c.folders.run)
}

// running tells whether any component of this cluster is alive.
func (c *cluster) running() bool {
	return slices.ContainsFunc(c.recorded(), process.alive)
}

func (c *cluster) remove() error {
	if err := c.endProcesses(); err != nil {
		return err
	}
	// Everything is tried, so that one failure leaves as little as possible;
	// the run folder stays when there was one, and `down` can be repeated.
	err := errors.Join(removeGroups(rootGroup), removeNetwork(), c.unmountRunFolder(), c.restoreHost())
	if err != nil {
		return err
	}
	return os.RemoveAll(c.folders.run)
}

// endProcesses kills all there are until there are none.
func (c *cluster) endProcesses() error {
	return killAll(func() []int { return append(processesIn(rootGroup), c.strays()...) })
}

// killAll kills what the function finds, again and again because what is
// being killed may still be starting others.
func killAll(find func() []int) error {
	const limit, pause = 30 * time.Second, 50 * time.Millisecond
	for deadline := time.Now().Add(limit); ; time.Sleep(pause) {
		pids := find()
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// unmountRunFolder unmounts what is mounted below the run folder. Nodes keep
// their mounts to themselves, so this is only for what someone mounted by hand:
// it must not be deleted with the folder.
func (c *cluster) unmountRunFolder() error {
	table, err := os.Open("/proc/self/mounts")
	if err != nil {
		return err
	}
	defer table.Close()
	var points []string
	for lines := bufio.NewScanner(table); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && strings.HasPrefix(fields[1], c.folders.run+"/") {
			points = append(points, fields[1])
		}
	}
	for _, point := range slices.Backward(points) {
		if err := syscall.Unmount(point, 0); err != nil {
			return fmt.Errorf("cannot unmount %s: %w", point, err)
		}
	}
	return nil
}
