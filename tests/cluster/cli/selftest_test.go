package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestClusterStartsWorksAndLeavesNothing starts real clusters, so it is run
// only by tests/cluster/selftest. Its steps build on each other.
func TestClusterStartsWorksAndLeavesNothing(t *testing.T) {
	if os.Getenv("ORTOLAN_CLUSTER_SELFTEST") == "" {
		t.Skip("run by tests/cluster/selftest")
	}
	f, err := findFolders()
	if err != nil {
		t.Fatal(err)
	}
	s := &selftest{cluster: newCluster(f), tool: filepath.Join(f.source, "cluster")}
	if owner, found := bridgeOwner(); found || s.cluster.present() {
		t.Fatalf("a cluster runs already in %q; the self test needs to start its own", owner)
	}
	s.mustRun(t, "build")
	before := findTraces(t, s.cluster)
	t.Cleanup(func() { _, _ = s.run("down") })

	steps := []struct {
		name string
		step func(*testing.T)
	}{
		{"up takes at most 30 seconds", s.upIsQuick},
		{"a second up is refused", s.secondUpIsRefused},
		{"a pod runs on each node", s.podsRunOnBothNodes},
		{"a Service is reached from the host and by name from both nodes", s.serviceIsReachedFromEverywhere},
		{"pods reach the host's bridge address", s.podsReachTheHost},
		{"a host port is mapped", s.hostPortIsMapped},
		{"logs and exec work on both nodes", s.logsWork},
		{"Pod Security refuses what is forbidden", s.podSecurityIsEnforced},
		{"a node that is cut off is noticed and comes back", s.cutNodeComesBack},
		{"a node that is stopped can be started again", s.stoppedNodeComesBack},
		{"a control plane that was killed can be started again", s.killedControlPlaneComesBack},
		{"the death of a component is reported", s.deathIsReported},
		{"down leaves nothing", func(t *testing.T) { s.mustRun(t, "down"); before.compare(t, findTraces(t, s.cluster)) }},
		{"down with nothing running is fine", func(t *testing.T) { s.mustRun(t, "down") }},
		{"down leaves nothing after everything was killed", func(t *testing.T) {
			s.mustRun(t, "up")
			s.kill(t, "node-0-anchor", "node-0-containerd", "node-1-anchor", "node-1-kubelet", "etcd", "kube-apiserver")
			s.mustRun(t, "down")
			before.compare(t, findTraces(t, s.cluster))
		}},
	}
	for _, step := range steps {
		if !t.Run(step.name, step.step) {
			t.Fatal("the steps after a failed one would only fail as well")
		}
	}
}

type selftest struct {
	cluster *cluster
	tool    string
}

func (s *selftest) run(arguments ...string) (string, error) {
	output, err := exec.Command(s.tool, arguments...).CombinedOutput()
	return string(output), err
}

func (s *selftest) mustRun(t *testing.T, arguments ...string) {
	t.Helper()
	start := time.Now()
	output, err := s.run(arguments...)
	t.Logf("cluster %s (%.1f s)\n%s", strings.Join(arguments, " "), time.Since(start).Seconds(), output)
	if err != nil {
		t.Fatal(err)
	}
}

func (s *selftest) kubectl(t *testing.T, arguments ...string) string {
	t.Helper()
	arguments = append([]string{"--kubeconfig", s.cluster.adminKubeconfig(), "--cache-dir", s.cluster.folders.inRun("kubectl-cache")}, arguments...)
	output, err := exec.Command(s.cluster.folders.program(kubePart, "kubectl"), arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(arguments[4:], " "), err, output)
	}
	return strings.TrimSpace(string(output))
}

// kill kills components the way a test of the project might.
func (s *selftest) kill(t *testing.T, names ...string) {
	t.Helper()
	for _, p := range s.cluster.recorded() {
		if slices.Contains(names, p.name) && p.alive() {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (s *selftest) upIsQuick(t *testing.T) {
	start := time.Now()
	s.mustRun(t, "up")
	if elapsed := time.Since(start); elapsed > 30*time.Second {
		t.Errorf("up took %s", elapsed)
	}
	s.mustRun(t, "status")
}

func (s *selftest) secondUpIsRefused(t *testing.T) {
	output, err := s.run("up")
	if err == nil || !strings.Contains(output, "already running; KUBECONFIG="+s.cluster.adminKubeconfig()) {
		t.Errorf("up said: %v %s", err, output)
	}
	s.mustRun(t, "up", "--if-needed")
}

func (s *selftest) podsRunOnBothNodes(t *testing.T) {
	folder := t.TempDir()
	program, archive := filepath.Join(folder, "probe"), filepath.Join(folder, "probe.tar")
	compiler := exec.Command("go", "build", "-o", program, "./testdata/probe")
	compiler.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := compiler.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	if err := imageOf(program, "localhost/probe:1", archive); err != nil {
		t.Fatal(err)
	}
	s.mustRun(t, "load-image", archive)
	s.kubectl(t, "apply", "-f", "testdata/probe.yaml")
	s.kubectl(t, "rollout", "status", "-n", "selftest", "deployment/probe", "--timeout=60s")
	nodes := s.probes(t, "{.spec.nodeName}")
	if !slices.Equal(nodes, []string{"node-0", "node-1"}) {
		t.Errorf("the probes run on %v", nodes)
	}
}

// probes reads a field of each probe that is not being deleted.
func (s *selftest) probes(t *testing.T, field string) []string {
	t.Helper()
	values := strings.Fields(s.kubectl(t, "get", "pods", "-n", "selftest", "-l", "app=probe", "-o", "jsonpath={range .items[*]}"+field+"{\"\\n\"}{end}"))
	slices.Sort(values)
	return values
}

func (s *selftest) serviceIsReachedFromEverywhere(t *testing.T) {
	service := "http://" + s.kubectl(t, "get", "service", "-n", "selftest", "probe", "-o", "jsonpath={.spec.clusterIP}")
	expectBothNodes(t, service+"/")
	for _, pod := range s.probes(t, "{.status.podIP}") {
		expectPage(t, "http://"+pod+":8080/", "node-")
		fetch := "http://" + pod + ":8080/fetch?url="
		expectBothNodes(t, fetch+url.QueryEscape("http://probe.selftest.svc.cluster.local/"))
		expectBothNodes(t, fetch+url.QueryEscape("http://probe/"))
	}
}

func (s *selftest) podsReachTheHost(t *testing.T) {
	listener, err := net.Listen("tcp", hostAddress+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the host") }))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()
	for _, pod := range s.probes(t, "{.status.podIP}") {
		expectPage(t, "http://"+pod+":8080/fetch?url="+url.QueryEscape(server.URL), "the host")
	}
}

func (s *selftest) hostPortIsMapped(t *testing.T) {
	s.kubectl(t, "apply", "-f", "testdata/hostport.yaml")
	s.kubectl(t, "wait", "--for=condition=Ready", "pod/hostport", "--timeout=30s")
	expectPage(t, "http://"+hostAddress+":28080/", "by-host-port")
}

func (s *selftest) logsWork(t *testing.T) {
	for _, pod := range s.probes(t, "{.metadata.name}") {
		if logs := s.kubectl(t, "logs", "-n", "selftest", pod); !strings.Contains(logs, "probe is listening") {
			t.Errorf("the logs of %s are %q", pod, logs)
		}
		// The image has nothing else to run; that it is tried shows that exec
		// got as far as the container.
		arguments := []string{"--kubeconfig", s.cluster.adminKubeconfig(), "exec", "-n", "selftest", pod, "--", "/absent"}
		output, _ := exec.Command(s.cluster.folders.program(kubePart, "kubectl"), arguments...).CombinedOutput()
		if !strings.Contains(string(output), "no such file or directory") {
			t.Errorf("exec in %s said: %s", pod, output)
		}
	}
}

func (s *selftest) podSecurityIsEnforced(t *testing.T) {
	arguments := []string{"--kubeconfig", s.cluster.adminKubeconfig(), "apply", "-f", "testdata/privileged.yaml"}
	output, err := exec.Command(s.cluster.folders.program(kubePart, "kubectl"), arguments...).CombinedOutput()
	if err == nil || !strings.Contains(string(output), "violates PodSecurity") {
		t.Errorf("a privileged pod was answered with: %s", output)
	}
}

func (s *selftest) cutNodeComesBack(t *testing.T) {
	start := time.Now()
	s.mustRun(t, "node", "cut", "node-1")
	s.kubectl(t, "wait", "--for=condition=Ready=Unknown", "node/node-1", "--timeout=60s")
	t.Logf("noticed after %.1f s", time.Since(start).Seconds())
	start = time.Now()
	s.mustRun(t, "node", "join", "node-1")
	s.kubectl(t, "wait", "--for=condition=Ready", "node/node-1", "--timeout=60s")
	t.Logf("ready again after %.1f s", time.Since(start).Seconds())
}

func (s *selftest) stoppedNodeComesBack(t *testing.T) {
	for _, n := range s.cluster.nodes {
		s.mustRun(t, "node", "stop", n.name)
		if left := processesIn(n.group()); len(left) > 0 {
			t.Errorf("processes %v of %s are left", left, n.name)
		}
		s.mustRun(t, "node", "start", n.name)
	}
	s.mustRun(t, "status")
	s.kubectl(t, "rollout", "restart", "-n", "selftest", "deployment/probe")
	s.kubectl(t, "rollout", "status", "-n", "selftest", "deployment/probe", "--timeout=90s")
	service := "http://" + s.kubectl(t, "get", "service", "-n", "selftest", "probe", "-o", "jsonpath={.spec.clusterIP}")
	expectPage(t, service+"/", "node-")
}

func (s *selftest) killedControlPlaneComesBack(t *testing.T) {
	before := s.probes(t, "{.metadata.uid}")
	for _, names := range [][]string{{"kube-apiserver"}, {"etcd"}, {"etcd", "kube-apiserver"}} {
		s.mustRun(t, append([]string{"component", "kill"}, names...)...)
		for _, name := range names {
			if output, err := s.run("status"); err == nil || !strings.Contains(output, name+" is not running") {
				t.Errorf("status said: %s", output)
			}
		}
		s.mustRun(t, append([]string{"component", "start"}, names...)...)
	}
	// What was stored is still there, and pods were not touched.
	// Those of before the restart above may have been on their way out.
	after := s.probes(t, "{.metadata.uid}")
	isNew := func(uid string) bool { return !slices.Contains(before, uid) }
	if len(after) < 2 || slices.ContainsFunc(after, isNew) {
		t.Errorf("the probes were %v and are %v", before, after)
	}
	if output, err := s.run("component", "kill", "kubelet"); err == nil || !strings.Contains(output, "what can is etcd, kube-apiserver") {
		t.Errorf("killing what is no component said: %v %s", err, output)
	}
}

func (s *selftest) deathIsReported(t *testing.T) {
	s.kill(t, "node-1-containerd")
	eventually(t, "status to notice", func() error {
		if output, err := s.run("status"); err == nil || !strings.Contains(output, "node-1-containerd is not running") {
			return fmt.Errorf("status said: %s", output)
		}
		return nil
	})
}

// expectBothNodes asks until pods of both nodes have answered.
func expectBothNodes(t *testing.T, page string) {
	t.Helper()
	missing := []string{"node-0", "node-1"}
	eventually(t, page+" from both nodes", func() error {
		answer, err := get(page)
		if err != nil {
			return err
		}
		missing = slices.DeleteFunc(missing, func(node string) bool { return node == answer })
		if len(missing) > 0 {
			return fmt.Errorf("no answer from %v yet", missing)
		}
		return nil
	})
}

func expectPage(t *testing.T, page, start string) {
	t.Helper()
	eventually(t, page, func() error {
		answer, err := get(page)
		if err == nil && !strings.HasPrefix(answer, start) {
			err = fmt.Errorf("the answer is %q", answer)
		}
		return err
	})
}

func get(page string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(page)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	if err := new(cluster).waitFor(context.Background(), what, 20*time.Second, func(context.Context) error { return condition() }); err != nil {
		t.Fatal(err)
	}
}
