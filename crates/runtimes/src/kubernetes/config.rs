//! Settings of the Kubernetes runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How stackd uses a cluster: the `[runtime.kubernetes]` section of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// The kubeconfig to read; without it, the service account of the Pod that this runs in, else
    /// `KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; its current one where absent.
    pub context: Option<String>,
    /// The namespace that stacks are made in: the one that the API shows.
    #[serde(skip)]
    pub namespace: String,
    /// Tells the stacks of several servers in one namespace apart. What carries this name and has
    /// no row in the database is removed.
    pub installation: String,
    /// The RuntimeClass of each runtime class. `default` is the cluster's own unless named here.
    pub runtime_classes: BTreeMap<String, String>,
    /// A label or annotation of nodes that holds their public address, where they have no
    /// `ExternalIP`.
    pub public_address_key: Option<String>,
    /// Whether a node's `InternalIP` is shown as its public address where it has no other.
    pub internal_address_is_public: bool,
    /// The address of a node that this server dials to learn that a node port takes traffic.
    pub dial: DialAddress,
    /// Whether stacks get a user namespace of their own.
    pub user_namespaces: UserNamespaces,
    /// Refuse images that run as root, as the `restricted` policy asks.
    pub run_as_non_root: bool,
    /// Secrets of the namespace with the credentials of registries.
    pub image_pull_secrets: Vec<String>,
    /// An image that has the program `stackd` as `/stackd`, to probe the isolation with.
    pub probe_image: Option<String>,
    /// How long a node may be unreachable before its stacks are given up.
    #[serde(with = "stackd_core::duration")]
    pub node_lost_after: Duration,
    /// How long one call of the API server may take.
    #[serde(with = "stackd_core::duration")]
    pub api_timeout: Duration,
    /// How long one request for a watch lasts. One that says nothing for some seconds longer is given up:
    /// its connection is dead.
    #[serde(with = "stackd_core::duration")]
    pub watch_timeout: Duration,
    /// How many stacks may be on their way to the API server at once.
    pub concurrent_starts: usize,
    /// Registries that images may be of; empty means any.
    #[serde(skip)]
    pub allowed_registries: Vec<String>,
    /// The disk of a container that names none: the engine's default.
    #[serde(skip)]
    pub default_disk_bytes: u64,
    /// The longest that containers may take to end after a delete: the engine's.
    #[serde(skip)]
    pub delete_grace: Duration,
}

/// Which of a node's addresses is dialled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DialAddress {
    /// `InternalIP`: this server is in the nodes' network.
    #[default]
    Internal,
    /// The address that callers are told.
    Public,
}

/// Whether stacks get a user namespace of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserNamespaces {
    /// Where every node says that it can.
    #[default]
    Auto,
    /// Always: a node that cannot refuses the stack.
    Always,
    /// Never.
    Never,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: "stacks".to_owned(),
            installation: "stackd".to_owned(),
            runtime_classes: BTreeMap::new(),
            public_address_key: None,
            internal_address_is_public: false,
            dial: DialAddress::Internal,
            user_namespaces: UserNamespaces::Auto,
            run_as_non_root: false,
            image_pull_secrets: Vec::new(),
            probe_image: None,
            node_lost_after: Duration::from_secs(30),
            api_timeout: Duration::from_secs(10),
            watch_timeout: Duration::from_secs(30),
            concurrent_starts: 64,
            allowed_registries: Vec::new(),
            default_disk_bytes: 256 << 20,
            delete_grace: Duration::from_secs(5),
        }
    }
}

/// The runtime class that is served in any case.
pub(super) const DEFAULT_CLASS: &str = "default";

impl KubernetesConfig {
    /// The runtime classes that are served; the first is the default.
    pub(super) fn classes(&self) -> Vec<String> {
        let others = self.runtime_classes.keys().filter(|class| *class != DEFAULT_CLASS);
        std::iter::once(&DEFAULT_CLASS.to_owned()).chain(others).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_class_comes_first_and_once() {
        let mut config = KubernetesConfig::default();
        assert_eq!(config.classes(), ["default"]);
        for class in ["default", "a-sandbox"] {
            config.runtime_classes.insert(class.to_owned(), "kata".to_owned());
        }
        assert_eq!(config.classes(), ["default", "a-sandbox"]);
    }
}
