package main

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	net "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	corelist "k8s.io/client-go/listers/core/v1"
	netlist "k8s.io/client-go/listers/networking/v1"
)

// view is what is known of the cluster, seen from one node.
type view struct {
	node       string
	pods       corelist.PodLister
	namespaces corelist.NamespaceLister
	policies   netlist.NetworkPolicyLister
}

// chain is a list of rules of iptables, without the word that appends each.
type chain struct {
	name  string
	rules []string
}

// direction is one of the two that a policy can isolate a pod in.
type direction struct {
	kind net.PolicyType
	self string // the match that says that the pod is this end
	peer string // the match for the other end
}

var directions = []direction{
	{net.PolicyTypeIngress, "-d", "-s"},
	{net.PolicyTypeEgress, "-s", "-d"},
}

// rules gives a chain for each pod and direction that a policy isolates: what is allowed returns,
// the rest is dropped. The first one, through which all traffic goes, leads to the others.
func (v *view) rules() []chain {
	pods, _ := v.pods.List(labels.Everything())
	slices.SortFunc(pods, func(a, b *core.Pod) int { return strings.Compare(string(a.UID), string(b.UID)) })
	policies, _ := v.policies.List(labels.Everything())
	slices.SortFunc(policies, func(a, b *net.NetworkPolicy) int {
		return strings.Compare(string(a.UID), string(b.UID))
	})
	all := []chain{{entry, []string{"-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"}}}
	for _, pod := range pods {
		if pod.Spec.NodeName != v.node || !live(pod) {
			continue
		}
		for _, d := range directions {
			allowed, isolated := v.allowed(pod, d, policies, pods)
			if !isolated {
				continue
			}
			name := chainName(pod, d.kind)
			all[0].rules = append(all[0].rules, fmt.Sprintf("%s %s/32 -j %s", d.self, pod.Status.PodIP, name))
			all = append(all, chain{name, append(allowed, "-j DROP")})
		}
	}
	return all
}

func chainName(pod *core.Pod, kind net.PolicyType) string {
	hash := fnv.New64a()
	fmt.Fprint(hash, pod.UID, kind)
	return fmt.Sprintf("%s-%s-%x", entry, kind[:1], hash.Sum64())
}

// live tells whether a pod has an address of its own.
func live(pod *core.Pod) bool {
	ended := pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed
	return pod.Status.PodIP != "" && !pod.Spec.HostNetwork && !ended
}

// allowed gives the rules of what a pod may do in a direction, and whether a policy isolates it.
func (v *view) allowed(pod *core.Pod, d direction, policies []*net.NetworkPolicy, pods []*core.Pod) ([]string, bool) {
	var rules []string
	isolated := false
	for _, policy := range policies {
		applies := policy.Namespace == pod.Namespace &&
			slices.Contains(policy.Spec.PolicyTypes, d.kind) &&
			selects(&policy.Spec.PodSelector, pod.Labels)
		if !applies {
			continue
		}
		isolated = true
		if d.kind == net.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				peers := v.peers(d, policy.Namespace, rule.From, pods)
				rules = append(rules, matches(peers, rule.Ports, pod)...)
			}
		} else {
			for _, rule := range policy.Spec.Egress {
				peers := v.peers(d, policy.Namespace, rule.To, pods)
				rules = append(rules, matches(peers, rule.Ports, nil)...)
			}
		}
	}
	slices.Sort(rules)
	return slices.Compact(rules), isolated
}

func selects(selector *meta.LabelSelector, of map[string]string) bool {
	s, err := meta.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(of))
}

// peer is the other end of a rule: a match of iptables, and the pod where it is one.
type peer struct {
	match string
	pod   *core.Pod
}

func (v *view) peers(d direction, namespace string, named []net.NetworkPolicyPeer, pods []*core.Pod) []peer {
	if len(named) == 0 {
		return []peer{{}}
	}
	var all []peer
	for _, one := range named {
		if one.IPBlock != nil {
			for _, prefix := range without(one.IPBlock.CIDR, one.IPBlock.Except) {
				all = append(all, peer{match: d.peer + " " + prefix.String()})
			}
			continue
		}
		for _, pod := range pods {
			if !live(pod) || !v.within(pod.Namespace, namespace, one.NamespaceSelector) {
				continue
			}
			if one.PodSelector != nil && !selects(one.PodSelector, pod.Labels) {
				continue
			}
			all = append(all, peer{d.peer + " " + pod.Status.PodIP + "/32", pod})
		}
	}
	return all
}

// within tells whether a namespace is the one of the policy, or one that it selects.
func (v *view) within(namespace, own string, selector *meta.LabelSelector) bool {
	if selector == nil {
		return namespace == own
	}
	found, err := v.namespaces.Get(namespace)
	return err == nil && selects(selector, found.Labels)
}

// matches gives the rules for these peers and ports. Named ports are those of the target; where
// that is nil, those of the peer.
func matches(peers []peer, ports []net.NetworkPolicyPort, target *core.Pod) []string {
	var all []string
	for _, peer := range peers {
		if len(ports) == 0 {
			all = append(all, strings.TrimSpace(peer.match+" -j RETURN"))
		}
		of := target
		if of == nil {
			of = peer.pod
		}
		for _, port := range ports {
			if match, ok := portMatch(port, of); ok {
				all = append(all, strings.TrimSpace(peer.match+" "+match+" -j RETURN"))
			}
		}
	}
	return all
}

func portMatch(port net.NetworkPolicyPort, of *core.Pod) (string, bool) {
	protocol := "tcp"
	if port.Protocol != nil {
		protocol = strings.ToLower(string(*port.Protocol))
	}
	match := "-p " + protocol
	if port.Port == nil {
		return match, true
	}
	number := port.Port.IntVal
	if port.Port.Type == intstr.String {
		number = numberOf(of, port.Port.StrVal, protocol)
		if number == 0 {
			return "", false
		}
	}
	match += fmt.Sprintf(" -m %s --dport %d", protocol, number)
	if port.EndPort != nil {
		match += fmt.Sprintf(":%d", *port.EndPort)
	}
	return match, true
}

func numberOf(pod *core.Pod, name, protocol string) int32 {
	if pod == nil {
		return 0
	}
	for _, container := range pod.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == name && strings.EqualFold(string(port.Protocol), protocol) {
				return port.ContainerPort
			}
		}
	}
	return 0
}
