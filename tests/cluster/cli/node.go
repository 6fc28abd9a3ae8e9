package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// node is a machine as far as Kubernetes can tell. node-0 shares the host's
// network, as the control plane does; node-1 has a network namespace.
type node struct {
	name          string
	address       string
	podRange      string
	bridgeAddress string
	ownNetwork    bool
}

var clusterNodes = []node{
	{name: "node-0", address: hostAddress, podRange: "10.244.0.0/24", bridgeAddress: hostAddress},
	{name: "node-1", address: node1Address, podRange: "10.244.1.0/24", bridgeAddress: "10.244.1.1", ownNetwork: true},
}

// mountPoints are the places on the machine that a node's programs write to.
// Each node has a mount namespace in which they are folders of its own, and
// in which all mounts of its pods happen: they end with its last process.
var mountPoints = []struct{ folder, on string }{
	{"kubelet", "/var/lib/kubelet"},
	{"containerd", "/var/lib/containerd"},
	{"cni", "/var/lib/cni"},
	{"run", "/run/containerd"},
	{"pod-logs", "/var/log/pods"},
	{"container-logs", "/var/log/containers"},
	{"mount-table", "/run/mount"},
}

func (n node) group() string                { return rootGroup + "/" + n.name }
func (n node) component(name string) string { return n.name + "-" + name }

func (c *cluster) containerdSocket(n node) string {
	return c.folders.inRun(n.name, "run", "containerd.sock")
}

// startMachine starts the anchor, the process that holds the node's
// namespaces, and containerd in them.
func (c *cluster) startMachine(ctx context.Context, n node) error {
	anchor, err := c.startAnchor(ctx, n)
	if err != nil {
		return err
	}
	if n.ownNetwork {
		if err := n.connect(anchor); err != nil {
			return err
		}
	}
	network := c.folders.inRun(n.name, "network")
	err = renderTo(filepath.Join(network, "10-pods.conflist"), "network.conflist", map[string]string{"Bridge": bridge, "Pods": n.podRange})
	if err != nil {
		return err
	}
	settings := c.folders.inRun(n.name, "containerd.toml")
	err = renderTo(settings, "containerd.toml", map[string]string{
		"Pause": pauseImage, "Plugins": c.folders.bin(runtimePart), "Network": network, "Runc": c.folders.program(runcPart, "runc"),
	})
	if err != nil {
		return err
	}
	if err := c.startOn(n, anchor, "containerd", c.folders.program(runtimePart, "containerd"), "--config", settings, "--log-level", "warn"); err != nil {
		return err
	}
	return c.waitFor(ctx, n.name+"'s containerd", time.Minute, func(ctx context.Context) error {
		return c.loadImagesInto(ctx, n, []string{c.folders.program(pausePart, pauseArchive)})
	})
}

// startAnchor unshares the node's namespaces. Mounts of the machine go on to
// appear in the node, mounts of the node never appear on the machine.
func (c *cluster) startAnchor(ctx context.Context, n node) (int, error) {
	const script = `set -e
mount --no-mtab --make-rshared /
while [ $# -gt 0 ]; do mount --no-mtab --bind "$1" "$2"; shift 2; done
exec sleep infinity`
	argv := []string{"unshare", "--mount", "--propagation", "slave"}
	if n.ownNetwork {
		argv = append(argv, "--net")
	}
	argv = append(argv, "--", "/bin/sh", "-c", script, "anchor")
	for _, point := range mountPoints {
		argv = append(argv, c.folders.inRun(n.name, point.folder), point.on)
	}
	anchor, err := c.start(n.component("anchor"), n.group(), argv...)
	if err != nil {
		return 0, err
	}
	return anchor.pid, c.waitFor(ctx, n.name+"'s namespaces", 10*time.Second, func(context.Context) error {
		program, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", anchor.pid))
		if err == nil && strings.TrimSpace(string(program)) != "sleep" {
			err = errors.New("its mounts are not made yet")
		}
		return err
	})
}

// startAgents starts what makes the machine a node.
func (c *cluster) startAgents(n node) error {
	anchor, err := c.anchorOf(n)
	if err != nil {
		return err
	}
	kubelet := c.folders.inRun(n.name, "kubelet.yaml")
	err = renderTo(kubelet, "kubelet.yaml", map[string]string{
		"Address": n.address, "Authority": c.pki("ca.crt"), "DNS": dnsServiceIP, "Group": n.group(),
	})
	if err != nil {
		return err
	}
	err = c.startOn(n, anchor, "kubelet", c.folders.program(kubePart, "kubelet"),
		"--config="+kubelet, "--kubeconfig="+c.kubeconfig(n.name), "--hostname-override="+n.name, "--node-ip="+n.address)
	if err != nil {
		return err
	}
	proxy := c.folders.inRun(n.name, "kube-proxy.yaml")
	err = renderTo(proxy, "kube-proxy.yaml", map[string]string{
		"Kubeconfig": c.kubeconfig("kube-proxy"), "Node": n.name, "Pods": podRange,
	})
	if err != nil {
		return err
	}
	return c.startOn(n, anchor, "kube-proxy", c.folders.program(kubePart, "kube-proxy"), "--config="+proxy)
}

// startOn starts a program in the node's namespaces. Only these two are
// entered: `ip netns exec` would hide the control groups.
func (c *cluster) startOn(n node, anchor int, name string, argv ...string) error {
	enter := []string{"nsenter", "--target", strconv.Itoa(anchor), "--mount"}
	if n.ownNetwork {
		enter = append(enter, "--net")
	}
	_, err := c.start(n.component(name), n.group(), append(append(enter, "--"), argv...)...)
	return err
}

func (c *cluster) anchorOf(n node) (int, error) {
	if p, err := c.component(n.component("anchor")); err == nil {
		return p.pid, nil
	}
	return 0, fmt.Errorf("%s is not running", n.name)
}
