package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// checkPrerequisites looks at everything `up` depends on and returns all that
// is missing at once, before anything is changed.
func (c *cluster) checkPrerequisites() error {
	problems := []error{checkRoot(), checkPackages(c.folders.source), checkControlGroups(), checkKernel(), c.checkDisk()}
	if other := checkOtherCluster(); other != nil {
		problems = append(problems, other) // which has the ports and addresses, too
	} else {
		problems = append(append(problems, checkPorts()...), checkAddresses()...)
	}
	problems = slices.DeleteFunc(problems, func(problem error) bool { return problem == nil })
	if len(problems) == 0 {
		return nil
	}
	var text strings.Builder
	text.WriteString("this machine cannot run the cluster as it is:")
	for _, problem := range problems {
		fmt.Fprintf(&text, "\n  - %s", problem)
	}
	return errors.New(text.String())
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("nodes need root: run it as root (sudo -E)")
	}
	return nil
}

// checkPackages names what of packages.txt is not installed, as one command.
func checkPackages(source string) error {
	content, err := os.ReadFile(filepath.Join(source, "packages.txt"))
	if err != nil {
		return err
	}
	wanted := strings.Fields(string(content))
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		return fmt.Errorf("the needed packages are known by their Debian names only: %s", strings.Join(wanted, " "))
	}
	arguments := append([]string{"-W", "-f", "${Package} ${db:Status-Status}\n"}, wanted...)
	output, _ := exec.Command("dpkg-query", arguments...).Output()
	missing := slices.DeleteFunc(wanted, func(name string) bool {
		return slices.Contains(strings.Split(string(output), "\n"), name+" installed")
	})
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("packages are missing; install them with: apt-get install -y --no-install-recommends %s", strings.Join(missing, " "))
}

func checkControlGroups() error {
	var missing []string
	for _, controller := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio"} {
		if _, found := hierarchyOf(controller); !found {
			missing = append(missing, controller)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("no version 1 control groups are mounted for %s (version 2 is not supported)", strings.Join(missing, ", "))
}

func checkKernel() error {
	// Where overlay is a module it is there once it was asked for.
	_ = exec.Command("modprobe", "-a", "overlay", "br_netfilter").Run()
	var missing []string
	if content, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(content), "\toverlay\n") {
		missing = append(missing, "overlay file systems (CONFIG_OVERLAY_FS)")
	}
	for path, feature := range map[string]string{
		"/proc/sys/net/bridge": "filtering of bridged packets (CONFIG_BRIDGE_NETFILTER)",
		"/proc/self/ns/net":    "network namespaces (CONFIG_NET_NS)",
		"/proc/self/ns/mnt":    "mount namespaces",
	} {
		if !exists(path) {
			missing = append(missing, feature)
		}
	}
	check := exec.Command("nft", "--check", "-f", "-")
	check.Stdin = strings.NewReader("table ip ortolan-check { chain c { type nat hook postrouting priority 100; masquerade; }; }")
	if _, err := exec.LookPath("nft"); err == nil && check.Run() != nil {
		missing = append(missing, "nftables with masquerading (CONFIG_NF_TABLES, CONFIG_NFT_MASQ)")
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("the kernel lacks %s", strings.Join(missing, ", "))
}

// checkDisk wants room for the images of two nodes, and much more when
// Kubernetes is still to be compiled.
func (c *cluster) checkDisk() error {
	needed := uint64(3)
	if len(c.missingParts()) > 0 {
		needed = 10
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(c.folders.run, &disk); err != nil {
		return err
	}
	if free := disk.Bavail * uint64(disk.Bsize) >> 30; free < needed {
		return fmt.Errorf("%s has %d GiB free, %d are needed", c.folders.run, free, needed)
	}
	return nil
}

// checkOtherCluster finds another cluster on the machine.
func checkOtherCluster() error {
	if owner, found := bridgeOwner(); found {
		return fmt.Errorf("the bridge %s is there already: a cluster runs in %q; stop it with: ORTOLAN_CLUSTER_DIR=%s cluster down", bridge, owner, owner)
	}
	if tables := ourTables("kube-proxy"); len(tables) > 0 {
		return fmt.Errorf("the nftables table %q is there already: this machine is a node of another cluster", tables[0])
	}
	if exists("/sys/class/net/" + linkToNode1) {
		return fmt.Errorf("a link %s is there already", linkToNode1)
	}
	return nil
}

func checkPorts() []error {
	ports := []struct {
		number int
		user   string
	}{
		{apiServerPort, "kube-apiserver"}, {etcdPort, "etcd"}, {etcdPeerPort, "etcd"}, {dnsPort, "dns"},
		{10248, "kubelet"}, {10250, "kubelet"}, {10249, "kube-proxy"}, {10256, "kube-proxy"},
		{10257, "kube-controller-manager"}, {10259, "kube-scheduler"},
	}
	var problems []error
	for _, port := range ports {
		listener, err := net.Listen("tcp", ":"+strconv.Itoa(port.number))
		if err != nil {
			problems = append(problems, fmt.Errorf("port %d, for %s, is in use (see: ss -ltnp sport = :%d)", port.number, port.user, port.number))
			continue
		}
		listener.Close()
	}
	return problems
}

// checkAddresses finds networks the machine has or knows a way to that
// overlap with the cluster's.
func checkAddresses() []error {
	output, err := exec.Command("ip", "-4", "route", "show", "table", "all").Output()
	if err != nil {
		return nil // without the ip tool, which is among the missing packages
	}
	var problems []error
	for line := range strings.Lines(string(output)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && slices.Contains([]string{"local", "broadcast", "blackhole", "unreachable"}, fields[0]) {
			fields = fields[1:]
		}
		theirs, err := netip.ParsePrefix(fields[0])
		if err != nil {
			continue // the default route, or an address that its network covers
		}
		for _, text := range []string{podRange, linkRange, serviceRange} {
			if ours := netip.MustParsePrefix(text); ours.Overlaps(theirs.Masked()) {
				problems = append(problems, fmt.Errorf("the cluster's addresses %s overlap with %s, to which this machine has a route", ours, theirs))
			}
		}
	}
	return problems
}
