package main

import (
	"context"
	"flag"
	"log"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// netpol enforces NetworkPolicy (networking.k8s.io/v1, IPv4) for the pods of one node, in whose
// network namespace it runs. At every change it writes its rules anew, in one transaction: right
// for the small clusters of tests.
func netpol(args []string) int {
	flags := flag.NewFlagSet("netpol", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API server")
	node := flags.String("node", "", "whose pods to enforce policies for")
	flags.Parse(args)

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return fail(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fail(err)
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	view := &view{
		node:       *node,
		pods:       shared.Core().V1().Pods().Lister(),
		namespaces: shared.Core().V1().Namespaces().Lister(),
		policies:   shared.Networking().V1().NetworkPolicies().Lister(),
	}

	dirty := make(chan struct{}, 1)
	mark := func() {
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	changed := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { mark() },
		UpdateFunc: func(any, any) { mark() },
		DeleteFunc: func(any) { mark() },
	}
	shared.Core().V1().Pods().Informer().AddEventHandler(changed)
	shared.Core().V1().Namespaces().Informer().AddEventHandler(changed)
	shared.Networking().V1().NetworkPolicies().Informer().AddEventHandler(changed)
	ctx := context.Background()
	shared.Start(ctx.Done())
	shared.WaitForCacheSync(ctx.Done())
	mark()

	var firewall firewall
	for range dirty {
		if err := firewall.apply(view.rules()); err != nil {
			log.Print(err)
			time.AfterFunc(time.Second, mark)
		}
		// Changes come in crowds.
		time.Sleep(50 * time.Millisecond)
	}
	return 0
}
