// Command kube is etcd, the whole Kubernetes control plane, the node agents
// and kubectl in one binary.
//
// One binary because they share nearly all of their code: linked together
// they cost one link step and 140 MB, apart they cost seven. Which program it
// is follows from the name it is called by, the way busybox does it, or from
// its first argument when it is called by its own name.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	etcd "go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	program := filepath.Base(os.Args[0])
	if program == "kube" && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		program = os.Args[0]
	}
	os.Exit(run(program))
}

func run(program string) int {
	switch program {
	case "etcd":
		etcd.Main(os.Args)
		return 0
	case "kubectl":
		// kubectl prints its errors itself, in its own way, and exits.
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
		return 0
	}
	command := component(program)
	if command == nil {
		fmt.Fprintf(os.Stderr, "kube: no program named %q\n", program)
		return 2
	}
	return cli.Run(command)
}

func component(program string) *cobra.Command {
	switch program {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	case "kube-proxy":
		return proxy.NewProxyCommand()
	case "kubelet":
		return kubelet.NewKubeletCommand(context.Background())
	}
	return nil
}
