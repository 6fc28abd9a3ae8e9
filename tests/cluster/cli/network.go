package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// The addresses of the cluster. The bridge's address on the host is node-0's
// and the API server's; pods reach what tests serve on the host there.
const (
	bridge        = "ort0"
	hostAddress   = "10.244.0.1"
	podRange      = "10.244.0.0/16"
	serviceRange  = "10.96.0.0/16"
	apiServiceIP  = "10.96.0.1"
	dnsServiceIP  = "10.96.0.10"
	linkToNode1   = "ort-n1" // the host's end of node-1's cable
	linkRange     = "10.245.0.0/30"
	linkHostEnd   = "10.245.0.1"
	node1Address  = "10.245.0.2"
	egressTable   = "ortolan-cluster"
	apiServerPort = 6443
	etcdPort      = 22379 // beside the usual one, which other tests may use
	etcdPeerPort  = 22380
	dnsPort       = 5300
)

// proxyTables are what kube-proxy and the port mapping plugin leave behind.
var proxyTables = []string{"kube-proxy", "cni_hostport"}

// makeHostNetwork makes the bridge that is node-0's pod network and the way
// out for all pods. The bridge's alias names the run folder it belongs to.
// Bridged packets pass the packet filter, or a pod's answer to a neighbour
// that called it by a Service would not get its addresses translated back.
func (c *cluster) makeHostNetwork() error {
	err := ip(nil,
		"link add "+bridge+" type bridge nf_call_iptables 1",
		"link set "+bridge+" alias "+c.folders.run,
		"address add "+hostAddress+"/24 dev "+bridge,
		"link set "+bridge+" up",
		// Without a default route a connection to a Service would fail
		// before kube-proxy's rules see it.
		"route add "+serviceRange+" dev "+bridge)
	if err != nil {
		return err
	}
	return nft(fmt.Sprintf(`table ip %s {
		chain postrouting {
			type nat hook postrouting priority 100
			ip saddr { %s, %s } ip daddr != { %s, %s, %s } oifname != { "%s", "%s" } masquerade
		}
	}`, egressTable, podRange, linkRange, podRange, linkRange, serviceRange, bridge, linkToNode1))
}

// connect lays the cable between the host and a node with a network namespace
// of its own, which its anchor process holds.
func (n node) connect(anchor int) error {
	inside := []string{"nsenter", "--target", strconv.Itoa(anchor), "--net"}
	if err := removeLink(linkToNode1); err != nil {
		return err
	}
	err := ip(nil, fmt.Sprintf("link add %s type veth peer name eth0 netns %d", linkToNode1, anchor))
	if err != nil {
		return err
	}
	err = ip(inside,
		"link set lo up",
		"address add "+node1Address+"/30 dev eth0",
		"link set eth0 up",
		"route add default via "+linkHostEnd,
		"link add "+bridge+" type bridge nf_call_iptables 1",
		"address add "+n.bridgeAddress+"/24 dev "+bridge,
		"link set "+bridge+" up")
	if err != nil {
		return err
	}
	forward := append(inside, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	if output, err := exec.Command(forward[0], forward[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot turn on forwarding in %s: %w\n%s", n.name, err, output)
	}
	if err := ip(nil, "address add "+linkHostEnd+"/30 dev "+linkToNode1); err != nil {
		return err
	}
	return n.join()
}

// join plugs the node's cable in. The route goes each time the link does.
func (n node) join() error {
	return ip(nil,
		"link set "+linkToNode1+" up",
		"route replace "+n.podRange+" via "+n.address)
}

// cut unplugs the node's cable.
func (n node) cut() error {
	return ip(nil, "link set "+linkToNode1+" down")
}

// ip runs commands of the ip tool, in the network namespace that the prefix enters.
func ip(prefix []string, commands ...string) error {
	argv := append(append([]string{}, prefix...), "ip", "-batch", "-")
	command := exec.Command(argv[0], argv[1:]...)
	command.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w\n%s", strings.Join(commands, "; "), err, output)
	}
	return nil
}

func nft(script string) error {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(script)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w\n%s", err, output)
	}
	return nil
}

// ourTables lists the nftables tables with one of the names, as "ip name".
func ourTables(names ...string) []string {
	output, _ := exec.Command("nft", "list", "tables").Output()
	var found []string
	for line := range strings.Lines(string(output)) {
		fields := strings.Fields(line) // table FAMILY NAME
		for _, name := range names {
			if len(fields) == 3 && fields[2] == name {
				found = append(found, fields[1]+" "+name)
			}
		}
	}
	return found
}

// bridgeOwner is the run folder of the cluster that runs on this machine.
func bridgeOwner() (string, bool) {
	alias, err := os.ReadFile("/sys/class/net/" + bridge + "/ifalias")
	return strings.TrimSpace(string(alias)), err == nil
}

// removeNetwork removes what the functions above and kube-proxy made. All of
// node-1's own went with its namespace.
func removeNetwork() error {
	for _, link := range []string{linkToNode1, bridge} {
		if err := removeLink(link); err != nil {
			return err
		}
	}
	var script strings.Builder
	for _, table := range ourTables(append(proxyTables, egressTable)...) {
		fmt.Fprintln(&script, "delete table", table)
	}
	return nft(script.String())
}

// removeLink removes a link, which the kernel may be removing at the same time
// because the network namespace of its other end has just gone.
func removeLink(name string) error {
	path := "/sys/class/net/" + name
	if !exists(path) {
		return nil
	}
	err := ip(nil, "link delete "+name)
	if err != nil && !exists(path) {
		return nil
	}
	return err
}
