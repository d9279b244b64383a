//! What is taken from a node.

use k8s_openapi::api::core::v1::Node;

use super::config::{DialAddress, KubernetesConfig};
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
        let ready = status.is_some_and(|status| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.any(|c| c.type_ == "Ready" && c.status == "True")
        });
        Self {
            ready,
            public_ip: public.map(Into::into),
            dial: dial.and_then(|address| address.parse().ok()),
            user_namespaces: makes_user_namespaces(node, ""),
        }
    }
}

/// Whether a handler of a node says that it makes user namespaces; the default one has no name.
pub(super) fn makes_user_namespaces(node: &Node, handler: &str) -> bool {
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
