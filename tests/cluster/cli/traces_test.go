package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// traces is everything on the machine that a cluster might leave behind, by
// kind, as sorted lines.
type traces map[string][]string

// others are things that image builds of other tests make at the same time.
var others = regexp.MustCompile(`buildah|libpod|/images/`)

func findTraces(t *testing.T, c *cluster) traces {
	t.Helper()
	found := traces{
		"processes": nil, "control groups": nil, "files": nil, "settings": nil,
		"mounts":          outputOf(t, "cat", "/proc/self/mounts"),
		"links":           outputOf(t, "ip", "-brief", "link"),
		"routes":          outputOf(t, "ip", "route", "show", "table", "all"),
		"namespaces":      outputOf(t, "ip", "netns"),
		"nftables":        outputOf(t, "nft", "list", "tables"),
		"forward policy":  {forwardPolicy()},
		"iptables chains": nil,
	}
	if _, err := exec.LookPath("iptables-save"); err == nil {
		// Without the counters and the times in comments.
		found["iptables chains"] = slices.DeleteFunc(outputOf(t, "iptables-save"), func(line string) bool { return !strings.HasPrefix(line, "-") })
	}
	for _, pid := range append(processesIn(rootGroup), c.strays()...) {
		found["processes"] = append(found["processes"], fmt.Sprint(pid))
	}
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		groups, _ := filepath.Glob(h.path + "/*/")
		found["control groups"] = append(found["control groups"], groups...)
	}
	for _, path := range []string{
		"/etc/cni", "/etc/containerd", "/etc/kubernetes", "/opt/cni", "/run/netns", "/run/nri", "/run/runc", "/run/kubernetes",
		"/run/mount", "/run/containerd", "/usr/libexec/kubernetes", "/var/lib/etcd", "/var/lib/kubelet", "/var/lib/containerd",
		"/var/lib/cni", "/var/log/pods", "/var/log/containers", c.folders.run,
	} {
		if exists(path) {
			inside, _ := filepath.Glob(path + "/*")
			found["files"] = append(append(found["files"], path), inside...)
		}
	}
	for _, name := range sysctls {
		value, _ := os.ReadFile(filepath.Join("/proc/sys", name))
		found["settings"] = append(found["settings"], name+"="+string(value))
	}
	return found
}

func outputOf(t *testing.T, argv ...string) []string {
	t.Helper()
	output, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return strings.Split(strings.TrimSpace(string(output)), "\n")
}

// compare reports each line that came or went.
func (before traces) compare(t *testing.T, after traces) {
	t.Helper()
	for kind := range before {
		for _, line := range after[kind] {
			if !slices.Contains(before[kind], line) && !others.MatchString(line) {
				t.Errorf("left behind, %s: %s", kind, line)
			}
		}
		for _, line := range before[kind] {
			if !slices.Contains(after[kind], line) && !others.MatchString(line) {
				t.Errorf("gone, %s: %s", kind, line)
			}
		}
	}
}
