// kubebox holds the programs of a Kubernetes cluster in one binary, so that they share what they
// are made of: one link instead of seven, and a fifth of the disk. The first argument chooses one.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var programs = map[string]func(args []string) int{
	"etcd":                    etcd,
	"kube-apiserver":          of(apiserver.NewAPIServerCommand),
	"kube-controller-manager": of(controllers.NewControllerManagerCommand),
	"kube-scheduler":          of(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubelet":                 of(kubelet.NewKubeletCommand),
	"kube-proxy":              of(proxy.NewProxyCommand),
	"kubectl":                 of(kubectl.NewDefaultKubectlCommand),
	"kwok":                    kwok,
	"netpol":                  netpol,
}

func main() {
	var run func([]string) int
	if len(os.Args) > 1 {
		run = programs[os.Args[1]]
	}
	if run == nil {
		var names []string
		for name := range programs {
			names = append(names, name)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "usage: kubebox %s [ARGUMENT…]\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	// Each believes that it was started under its own name.
	os.Args = os.Args[1:]
	os.Exit(run(os.Args[1:]))
}

func of(command func() *cobra.Command) func([]string) int {
	return func([]string) int { return cli.Run(command()) }
}

func etcd([]string) int {
	etcdmain.Main(os.Args)
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
