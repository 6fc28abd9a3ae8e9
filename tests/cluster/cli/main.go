// Command cluster runs a real Kubernetes of two nodes on this one machine,
// for the project's end-to-end tests and for its developers.
//
// There is no container engine, no virtual machine and no download of
// binaries: etcd, Kubernetes, containerd, runc and CoreDNS are compiled from
// their Go modules and started as ordinary processes. What this tool promises
// above all is that `down` leaves the machine as `up` found it.
//
// Deliberately not in it: more than one cluster at a time, more than two
// nodes, cgroup v2, storage classes, a load balancer and an image registry.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `Runs a real Kubernetes of two nodes on this machine, as root.

Usage: cluster COMMAND

  build                  build every program into the cache (first time: about
                         11 minutes on two cores; later: nothing to do)
  up [--if-needed]       start the cluster and wait until pods can run;
                         with --if-needed a running, healthy one is fine
  down [--keep-logs DIR] stop everything and remove every trace of it;
                         idempotent; components' and pods' logs can be kept
  load-image FILE.tar... import image archives into both nodes
  status                 what runs and whether it is well (exit code 0 or 1)
  kubeconfig             print the path of the administrator's kubeconfig
  env                    print lines for: eval "$(cluster env)"
                         (KUBECONFIG, and kubectl in PATH)
  node stop NAME         kill a node and all its pods at once (a power cut)
  node start NAME        boot it again
  node cut node-1        take node-1 off the network (a partition)
  node join node-1       put it back
  component kill NAME... kill etcd, kube-apiserver, or both at once
  component start NAME...
                         start them again and wait until the API answers

Environment:
  ORTOLAN_CACHE          where programs are kept ($HOME/.cache/ortolan)
  ORTOLAN_CLUSTER_DIR    where the running cluster keeps its files
                         ($ORTOLAN_CACHE/cluster/run)
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// errUsage is returned for a command line that makes no sense.
var errUsage = errors.New("see `cluster --help`")

func run(ctx context.Context, arguments []string) error {
	if len(arguments) == 0 {
		fmt.Print(usage)
		return errUsage
	}
	command, arguments := arguments[0], arguments[1:]
	if command == "--help" || command == "-h" || command == "help" {
		fmt.Print(usage)
		return nil
	}
	folders, err := findFolders()
	if err != nil {
		return err
	}
	c := newCluster(folders)
	switch command {
	case "build":
		return c.build(ctx)
	case "up":
		return runUp(ctx, c, arguments)
	case "down":
		return runDown(ctx, c, arguments)
	case "load-image":
		return c.loadImages(ctx, arguments)
	case "status":
		return c.status(ctx)
	case "kubeconfig":
		fmt.Println(c.adminKubeconfig())
		return nil
	case "env":
		c.printEnvironment()
		return nil
	case "node":
		return runNode(ctx, c, arguments)
	case "component":
		return runComponent(ctx, c, arguments)
	}
	return fmt.Errorf("unknown command %q: %w", command, errUsage)
}

func runUp(ctx context.Context, c *cluster, arguments []string) error {
	ifNeeded := len(arguments) == 1 && arguments[0] == "--if-needed"
	if len(arguments) > 0 && !ifNeeded {
		return fmt.Errorf("up takes only --if-needed: %w", errUsage)
	}
	return c.up(ctx, ifNeeded)
}

func runDown(ctx context.Context, c *cluster, arguments []string) error {
	switch {
	case len(arguments) == 0:
		return c.down(ctx, "")
	case len(arguments) == 2 && arguments[0] == "--keep-logs":
		return c.down(ctx, arguments[1])
	}
	return fmt.Errorf("down takes only --keep-logs DIR: %w", errUsage)
}

// printEnvironment prints what a shell needs to talk to the cluster. kubectl
// keeps its discovery cache in the run folder, so that `down` removes it too.
func (c *cluster) printEnvironment() {
	fmt.Printf("export KUBECONFIG=%s\n", shellQuote(c.adminKubeconfig()))
	fmt.Printf("export KUBECACHEDIR=%s\n", shellQuote(c.folders.inRun("kubectl-cache")))
	fmt.Printf("export PATH=%s:\"$PATH\"\n", shellQuote(c.folders.bin(kubePart)))
}
