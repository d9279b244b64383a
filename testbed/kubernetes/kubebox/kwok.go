package main

import (
	"context"
	"os"

	"github.com/spf13/pflag"
	"sigs.k8s.io/kwok/pkg/config"
	"sigs.k8s.io/kwok/pkg/kwok/cmd"
	"sigs.k8s.io/kwok/pkg/log"
)

// kwok plays kubelets that start nothing: nodes and pods that cost a few kilobytes each.
func kwok(args []string) int {
	// Kubernetes has put a --version of another type among the flags that all commands share.
	pflag.CommandLine = pflag.NewFlagSet("kwok", pflag.ExitOnError)
	// Its defaults come with its configuration, whose own flags are not wanted here.
	os.Args = os.Args[:1]
	ctx := log.NewContext(context.Background(), log.NewLogger(os.Stderr, 0))
	ctx, err := config.InitFlags(ctx, pflag.NewFlagSet("configuration", pflag.ContinueOnError))
	if err != nil {
		return fail(err)
	}
	command := cmd.NewCommand(ctx)
	command.SetArgs(args)
	if err := command.ExecuteContext(ctx); err != nil {
		return fail(err)
	}
	return 0
}
