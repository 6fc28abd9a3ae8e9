// Command dns is the cluster's name server: CoreDNS with only the plugins the
// cluster's Corefile names.
//
// The full CoreDNS server links every plugin it has, and with them the client
// libraries of several clouds. The few that are needed here build in a
// fraction of the time.
package main

import (
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"

	"github.com/coredns/coredns/coremain"
)

func main() {
	coremain.Run()
}
