package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// hostChanges is what a cluster changes outside its run folder and its
// network, written down before it is changed so that `down` can undo it.
type hostChanges struct {
	Sysctls       map[string]string // path below /proc/sys: value before
	Folders       []string          // made to be mounted over, deepest last
	ForwardPolicy string            // of iptables, before; empty when left alone
}

// sysctls are those the cluster needs or its components set: kubelet those of
// the kernel and memory, kube-proxy those of the network.
var sysctls = []string{
	"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/default/forwarding", "net/ipv4/conf/all/route_localnet",
	"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_tcp_be_liberal",
	"vm/overcommit_memory", "vm/panic_on_oom",
	"kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// prepareHost makes the mount points and turns on forwarding.
func (c *cluster) prepareHost() error {
	changes := hostChanges{Sysctls: map[string]string{}}
	for _, name := range sysctls {
		if value, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			changes.Sysctls[name] = strings.TrimSpace(string(value))
		}
	}
	for _, point := range mountPoints {
		changes.Folders = append(changes.Folders, missingFolders(point.on)...)
	}
	slices.Sort(changes.Folders)
	changes.Folders = slices.Compact(changes.Folders)
	if policy := forwardPolicy(); policy != "ACCEPT" {
		changes.ForwardPolicy = policy
	}
	content, err := json.MarshalIndent(changes, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.hostChangesPath(), content, 0o644); err != nil {
		return err
	}
	for _, folder := range changes.Folders {
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
	}
	if changes.ForwardPolicy != "" {
		if err := setForwardPolicy("ACCEPT"); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// restoreHost undoes prepareHost and what components did to the same settings.
func (c *cluster) restoreHost() error {
	content, err := os.ReadFile(c.hostChangesPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var changes hostChanges
	if err := json.Unmarshal(content, &changes); err != nil {
		return fmt.Errorf("%s: %w", c.hostChangesPath(), err)
	}
	var failures []error
	for _, name := range sysctls {
		before, known := changes.Sysctls[name]
		path := filepath.Join("/proc/sys", name)
		now, err := os.ReadFile(path)
		if known && err == nil && strings.TrimSpace(string(now)) != before {
			failures = append(failures, os.WriteFile(path, []byte(before), 0o644))
		}
	}
	for _, folder := range slices.Backward(changes.Folders) {
		// Not empty means that someone else uses it by now.
		_ = os.Remove(folder)
	}
	if changes.ForwardPolicy != "" {
		failures = append(failures, setForwardPolicy(changes.ForwardPolicy))
	}
	return errors.Join(failures...)
}

func (c *cluster) hostChangesPath() string {
	return c.folders.inRun("host-changes.json")
}

// missingFolders are the folder and those above it that do not exist.
func missingFolders(folder string) []string {
	if exists(folder) {
		return nil
	}
	return append(missingFolders(filepath.Dir(folder)), folder)
}

// forwardPolicy is what iptables does with forwarded packets in the end; a
// container engine sets DROP. A machine without iptables has no such policy.
func forwardPolicy() string {
	output, err := exec.Command("iptables", "-S", "FORWARD").Output()
	if err != nil {
		return "ACCEPT"
	}
	policy, found := strings.CutPrefix(strings.SplitN(string(output), "\n", 2)[0], "-P FORWARD ")
	if !found {
		return "ACCEPT"
	}
	return policy
}

func setForwardPolicy(policy string) error {
	if output, err := exec.Command("iptables", "-P", "FORWARD", policy).CombinedOutput(); err != nil {
		return fmt.Errorf("iptables: %w\n%s", err, output)
	}
	return nil
}
