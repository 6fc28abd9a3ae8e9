package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// startDNS starts the cluster's name server and makes the Service that leads
// to it. It asks the machine's own name servers about all other names.
func (c *cluster) startDNS(ctx context.Context) error {
	objects, err := render("dns.yaml", map[string]string{
		"Service": dnsServiceIP, "Port": strconv.Itoa(dnsPort), "Address": hostAddress,
	})
	if err != nil {
		return err
	}
	if err := c.apply(ctx, objects); err != nil {
		return err
	}
	settings := c.folders.inRun("dns", "Corefile")
	err = renderTo(settings, "Corefile", map[string]any{
		"Port": dnsPort, "Address": hostAddress, "Kubeconfig": c.kubeconfig("dns"), "Upstream": hasResolver(),
	})
	if err != nil {
		return err
	}
	_, err = c.start("dns", controlGroup, c.folders.program(dnsPart, "dns"), "-conf", settings)
	return err
}

// hasResolver tells whether the machine has a name server to forward to.
func hasResolver() bool {
	content, _ := os.ReadFile("/etc/resolv.conf")
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "nameserver") {
			return true
		}
	}
	return false
}

// dnsAnswers asks for the API server's name by the Service's address, so that
// a right answer shows that kube-proxy works as well.
func dnsAnswers(ctx context.Context) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(dnsServiceIP, "53"))
	}}
	addresses, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	if err == nil && (len(addresses) != 1 || addresses[0] != apiServiceIP) {
		err = fmt.Errorf("the API server's name resolves to %v", addresses)
	}
	return err
}
