package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
)

// entry is the chain that all traffic of pods goes through.
const entry = "NETPOL"

// hooks are where traffic meets it: in the mangle table, so after addresses were translated and
// before kube-proxy's rules accept what they have marked. INPUT is the way to the node itself.
var hooks = []string{"FORWARD", "INPUT"}

// firewall is what has been written into the kernel.
type firewall struct {
	chains []string
	last   string
}

// apply replaces the rules by these, all at once.
func (f *firewall) apply(chains []chain) error {
	var names []string
	var declared, rules strings.Builder
	for _, chain := range chains {
		names = append(names, chain.name)
		fmt.Fprintf(&declared, ":%s - [0:0]\n", chain.name)
		for _, rule := range chain.rules {
			fmt.Fprintf(&rules, "-A %s %s\n", chain.name, rule)
		}
	}
	wanted := declared.String() + rules.String()
	if wanted == f.last {
		return nil
	}
	// A chain is declared, which empties it, before it is removed.
	for _, name := range f.chains {
		if !strings.Contains(declared.String(), ":"+name+" ") {
			fmt.Fprintf(&declared, ":%s - [0:0]\n", name)
			fmt.Fprintf(&rules, "-X %s\n", name)
		}
	}
	input := "*mangle\n" + declared.String() + rules.String() + "COMMIT\n"
	if err := run(input, "iptables-restore", "-w", "--noflush"); err != nil {
		return err
	}
	for _, hook := range hooks {
		if run("", "iptables", "-w", "-t", "mangle", "-C", hook, "-j", entry) == nil {
			continue
		}
		if err := run("", "iptables", "-w", "-t", "mangle", "-I", hook, "-j", entry); err != nil {
			return err
		}
	}
	f.chains, f.last = names, wanted
	return nil
}

func run(input string, name string, args ...string) error {
	command := exec.Command(name, args...)
	command.Stdin = strings.NewReader(input)
	var said bytes.Buffer
	command.Stderr = &said
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s%s", name, err, said.String(), input)
	}
	return nil
}
