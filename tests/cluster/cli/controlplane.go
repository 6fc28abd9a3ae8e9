package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"text/template"
)

//go:embed templates
var templateFiles embed.FS

// render fills in one of the templates.
func render(name string, values any) ([]byte, error) {
	parsed, err := template.New(name).Option("missingkey=error").ParseFS(templateFiles, "templates/"+name)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err = parsed.Execute(&text, values)
	return text.Bytes(), err
}

// renderTo fills in a template into a file.
func renderTo(path, name string, values any) error {
	content, err := render(name, values)
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

// startStorage starts etcd. What it stores does not outlive the cluster, so
// it need not wait for the disk.
func (c *cluster) startStorage() error {
	client := fmt.Sprintf("http://127.0.0.1:%d", etcdPort)
	peer := fmt.Sprintf("http://127.0.0.1:%d", etcdPeerPort)
	_, err := c.start("etcd", controlGroup, c.folders.program(kubePart, "etcd"),
		"--name=etcd", "--data-dir="+c.folders.inRun("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=etcd="+peer)
	return err
}

// startAPIServer starts the API server. Pods are moved away from a lost node
// after ten seconds instead of five minutes. The calls of the operator are
// written down.
func (c *cluster) startAPIServer() error {
	audit := c.folders.inRun("audit.yaml")
	if err := renderTo(audit, "audit.yaml", nil); err != nil {
		return err
	}
	_, err := c.start("kube-apiserver", controlGroup, c.folders.program(kubePart, "kube-apiserver"),
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcdPort),
		"--bind-address="+hostAddress, "--advertise-address="+hostAddress, "--secure-port="+strconv.Itoa(apiServerPort),
		"--cert-dir="+c.folders.inRun("pki"),
		"--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"), "--client-ca-file="+c.pki("ca.crt"),
		"--kubelet-client-certificate="+c.pki("kubelet-client.crt"), "--kubelet-client-key="+c.pki("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.pki("service-accounts.key"), "--service-account-signing-key-file="+c.pki("service-accounts.key"),
		"--service-cluster-ip-range="+serviceRange,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--requestheader-client-ca-file="+c.pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+c.pki("front-proxy.crt"), "--proxy-client-key-file="+c.pki("front-proxy.key"),
		"--default-not-ready-toleration-seconds=10", "--default-unreachable-toleration-seconds=10",
		"--audit-policy-file="+audit, "--audit-log-path="+c.folders.inRun("logs", "audit.json"),
		"--profiling=false")
	return err
}

// startControllers starts the controller manager and the scheduler. Autoscalers
// look every three seconds instead of every fifteen.
func (c *cluster) startControllers() error {
	asUser := func(user string) []string {
		path := c.kubeconfig(user)
		return []string{
			"--kubeconfig=" + path, "--authentication-kubeconfig=" + path, "--authorization-kubeconfig=" + path,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false", "--kube-api-qps=100", "--kube-api-burst=200",
		}
	}
	const manager, scheduler = "kube-controller-manager", "kube-scheduler"
	argv := append([]string{c.folders.program(kubePart, manager)}, asUser(manager)...)
	argv = append(argv,
		"--cert-dir="+c.folders.inRun("pki"),
		"--root-ca-file="+c.pki("ca.crt"), "--service-account-private-key-file="+c.pki("service-accounts.key"),
		"--cluster-signing-cert-file="+c.pki("ca.crt"), "--cluster-signing-key-file="+c.pki("ca.key"),
		"--use-service-account-credentials=true",
		"--flex-volume-plugin-dir="+c.folders.inRun("volume-plugins"),
		"--node-monitor-period=2s", "--node-monitor-grace-period=12s",
		"--horizontal-pod-autoscaler-sync-period=3s")
	if _, err := c.start(manager, controlGroup, argv...); err != nil {
		return err
	}
	argv = append([]string{c.folders.program(kubePart, scheduler)}, asUser(scheduler)...)
	_, err := c.start(scheduler, controlGroup, argv...)
	return err
}

// apply makes objects, given as YAML.
func (c *cluster) apply(ctx context.Context, manifests []byte) error {
	command := exec.CommandContext(ctx, c.folders.program(kubePart, "kubectl"),
		"--kubeconfig", c.adminKubeconfig(), "--cache-dir", c.folders.inRun("kubectl-cache"),
		"apply", "--server-side", "--validate=false", "-f", "-")
	command.Stdin = bytes.NewReader(manifests)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w\n%s", err, output)
	}
	return nil
}

// makeFolders makes the folders of the run folder.
func (c *cluster) makeFolders() error {
	names := []string{"logs", "processes", "pki", "etcd", "dns"}
	for _, n := range c.nodes {
		for _, point := range mountPoints {
			names = append(names, filepath.Join(n.name, point.folder))
		}
		names = append(names, filepath.Join(n.name, "network"))
	}
	for _, name := range names {
		if err := os.MkdirAll(c.folders.inRun(name), 0o700); err != nil {
			return err
		}
	}
	return nil
}
