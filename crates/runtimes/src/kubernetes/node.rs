//! What is taken from a node.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use super::config::{DialAddress, KubernetesConfig};
use super::objects::{NODE_TAINTS, OS_LABEL};
use super::status::NodeView;

impl NodeView {
    /// Takes what matters from a node.
    pub(super) fn of(config: &KubernetesConfig, node: &Node) -> Self {
        let status = node.status.as_ref();
        let address = |kind: &str| {
            let addresses = status?.addresses.iter().flatten();
            addresses.into_iter().find(|a| a.type_ == kind).map(|a| a.address.clone())
        };
        let written = |key: &String| {
            let labels = node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
            let notes = || node.metadata.annotations.as_ref().and_then(|notes| notes.get(key));
            labels.or_else(notes).cloned()
        };
        let internal = address("InternalIP");
        let public = address("ExternalIP")
            .or_else(|| config.public_address_key.as_ref().and_then(written))
            .or_else(|| internal.clone().filter(|_| config.internal_address_is_public));
        let dial = match config.dial {
            DialAddress::Internal => internal,
            DialAddress::Public => public.clone(),
        };
        Self {
            ready: is_ready(node),
            public_ip: public.map(Into::into),
            dial: dial.and_then(|address| address.parse().ok()),
        }
    }
}

/// Whether a node answers.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether stacks can go to a node, as soon as it answers.
pub(super) fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let closed = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
    let taints = spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let os = node.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL.0));
    !closed
        && os.is_some_and(|os| os == OS_LABEL.1)
        && taints.into_iter().all(|taint| {
            taint.effect == "PreferNoSchedule" || NODE_TAINTS.contains(&taint.key.as_str())
        })
}

/// Why the stacks of a handler get no user namespace, where they get none: not every node that they
/// can go to makes them. What does not answer now is not asked, unless nothing does.
pub(super) fn no_user_namespaces(nodes: &[Node], handler: &str) -> Option<String> {
    let open: Vec<_> = nodes.iter().filter(|node| takes_pods(node)).collect();
    let any_ready = open.iter().any(|node| is_ready(node));
    let asked = || open.iter().filter(|node| is_ready(node) || !any_ready);
    let without: Vec<_> =
        asked().filter(|n| !makes_user_namespaces(n, handler)).map(|n| n.name_any()).collect();
    match (open.is_empty(), without.is_empty()) {
        (true, _) => Some("there is no node that stacks can go to".to_owned()),
        (false, true) => None,
        (false, false) => Some(format!("{} cannot make them", without.join(", "))),
    }
}

/// Whether a handler of a node says that it makes user namespaces; the default one has no name.
fn makes_user_namespaces(node: &Node, handler: &str) -> bool {
    let handlers = node.status.as_ref().and_then(|status| status.runtime_handlers.as_ref());
    let found = handlers
        .into_iter()
        .flatten()
        .find(|found| found.name.as_deref().unwrap_or_default() == handler);
    let features = found.and_then(|found| found.features.as_ref());
    features.and_then(|features| features.user_namespaces).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(addresses: &[(&str, &str)], label: Option<(&str, &str)>) -> Node {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|(kind, address)| serde_json::json!({"type": kind, "address": address}))
            .collect();
        let labels: std::collections::BTreeMap<_, _> = label.into_iter().collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "labels": labels},
            "status": {
                "addresses": addresses,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn each_handler_says_for_itself_whether_it_makes_user_namespaces() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n"},
            "status": {"runtimeHandlers": [
                {"name": "", "features": {"userNamespaces": true}},
                {"name": "second", "features": {"userNamespaces": false}},
                {"name": "third"},
            ]},
        }))
        .unwrap();
        assert!(makes_user_namespaces(&node, ""));
        for handler in ["second", "third", "missing"] {
            assert!(!makes_user_namespaces(&node, handler), "{handler}");
        }
    }

    #[test]
    fn only_nodes_that_stacks_can_go_to_decide_about_user_namespaces() {
        let node = |name: &str, ready: bool, makes: bool, spec: serde_json::Value| -> Node {
            let ready = if ready { "True" } else { "Unknown" };
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
                "spec": spec,
                "status": {
                    "conditions": [{"type": "Ready", "status": ready}],
                    "runtimeHandlers": [
                        {"name": "", "features": {"userNamespaces": makes}},
                        {"name": "other", "features": {"userNamespaces": false}},
                    ],
                },
            }))
            .unwrap()
        };
        let open = || serde_json::json!({});
        let taint = |key: &str, effect: &str| {
            let taint = serde_json::json!({"key": key, "effect": effect});
            serde_json::json!({"taints": [taint]})
        };
        let silent = || taint("node.kubernetes.io/unreachable", "NoSchedule");
        let mut nodes = vec![
            node("good", true, true, taint("k", "PreferNoSchedule")),
            node(
                "control",
                true,
                false,
                taint("node-role.kubernetes.io/control-plane", "NoSchedule"),
            ),
            node("cordoned", true, false, serde_json::json!({"unschedulable": true})),
            node("away", false, false, silent()),
            node("windows", true, false, open()),
        ];
        nodes[4].metadata.labels = Some([("kubernetes.io/os".into(), "windows".into())].into());
        assert_eq!(no_user_namespaces(&nodes, ""), None);
        assert_eq!(no_user_namespaces(&nodes, "other").as_deref(), Some("good cannot make them"));
        nodes.push(node("old", true, false, open()));
        assert_eq!(no_user_namespaces(&nodes, "").as_deref(), Some("old cannot make them"));
        // Where nothing answers, it is of all of them that one may come back.
        let away = [node("one", false, true, silent()), node("two", false, false, silent())];
        assert_eq!(no_user_namespaces(&away, "").as_deref(), Some("two cannot make them"));
        assert_eq!(no_user_namespaces(&away[..1], ""), None);
        assert!(no_user_namespaces(&nodes[1..3], "").unwrap().starts_with("there is no node"));
    }

    #[test]
    fn the_public_address_is_the_external_one_then_the_label_then_the_internal_one() {
        let mut config = KubernetesConfig::default();
        let shown = |config: &KubernetesConfig, node: &Node| {
            NodeView::of(config, node).public_ip.map(String::from)
        };
        let inside = ("InternalIP", "10.0.0.1");
        let outside = ("ExternalIP", "203.0.113.1");
        let label = Some(("example.org/address", "203.0.113.2"));
        assert_eq!(shown(&config, &node(&[inside], label)), None);
        config.internal_address_is_public = true;
        assert_eq!(shown(&config, &node(&[inside], label)).as_deref(), Some("10.0.0.1"));
        config.public_address_key = Some("example.org/address".to_owned());
        assert_eq!(shown(&config, &node(&[inside], label)).as_deref(), Some("203.0.113.2"));
        let all = node(&[inside, outside], label);
        assert_eq!(shown(&config, &all).as_deref(), Some("203.0.113.1"));
        assert_eq!(NodeView::of(&config, &all).dial, Some("10.0.0.1".parse().unwrap()));
        config.dial = DialAddress::Public;
        assert_eq!(NodeView::of(&config, &all).dial, Some("203.0.113.1".parse().unwrap()));
    }
}
