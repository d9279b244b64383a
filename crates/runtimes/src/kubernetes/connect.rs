//! From settings to a connection: which cluster, as whom, and whether it has what is named.

use std::collections::{HashMap, HashSet};
use std::future::Future;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use parking_lot::Mutex;
use stackd_core::isolation::Enforcement;
use stackd_core::runtime::Capabilities;
use tokio_util::sync::CancellationToken;

use super::cache::State;
use super::config::{KubernetesConfig, UserNamespaces};
use super::error::chain;
use super::inner::Inner;
use super::node::makes_user_namespaces;
use super::status::NodeView;

/// The cluster cannot be used as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No cluster is named that could be read.
    #[error("no cluster is configured: {0}")]
    Settings(String),
    /// It does not answer.
    #[error("the cluster at {url} does not answer: {why}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// A runtime class is mapped to what is not there.
    #[error("runtime class {class:?} is mapped to the RuntimeClass {object:?}, which is not there")]
    NoRuntimeClass {
        /// The class of the settings.
        class: String,
        /// The object that it names.
        object: String,
    },
}

/// The connection that the settings describe, not yet tried.
pub(super) async fn client(config: &KubernetesConfig) -> Result<(Client, String), ConnectError> {
    let settings = |error: &dyn std::error::Error| ConnectError::Settings(chain(error));
    let options = KubeConfigOptions { context: config.context.clone(), ..Default::default() };
    let connection = match &config.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| settings(&error))?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| settings(&error))?
        }
        None => match Config::incluster() {
            Ok(inside) if config.context.is_none() => inside,
            _ => Config::from_kubeconfig(&options).await.map_err(|error| settings(&error))?,
        },
    };
    let url = connection.cluster_url.to_string();
    let client = Client::try_from(connection).map_err(|error| settings(&error))?;
    Ok((client, url))
}

/// The classes whose stacks get a user namespace: decided once, so that a node that joins later and
/// cannot make one refuses stacks, and none is isolated less than was told. `handlers` are those of
/// the classes.
async fn user_namespaces(
    config: &KubernetesConfig,
    client: &Client,
    handlers: &HashMap<&str, String>,
) -> kube::Result<HashSet<String>> {
    let classes = config.classes().into_iter();
    match config.user_namespaces {
        UserNamespaces::Always => return Ok(classes.collect()),
        UserNamespaces::Never => return Ok(HashSet::new()),
        UserNamespaces::Auto => {}
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let mut nodes = nodes.list(&ListParams::default()).await?.items;
    nodes.retain(|node| NodeView::of(config, node).ready);
    let can = |class: &String| {
        let handler = handlers.get(class.as_str()).map_or("", String::as_str);
        let can = !nodes.is_empty() && nodes.iter().all(|n| makes_user_namespaces(n, handler));
        if !can {
            tracing::warn!(
                class,
                "not every node makes user namespaces: root in a stack is root on its node"
            );
        }
        can
    };
    Ok(classes.filter(can).collect())
}

/// A call at the start; why it has failed.
async fn in_time<T>(
    config: &KubernetesConfig,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, String> {
    match tokio::time::timeout(config.api_timeout, call).await {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_) => Err(format!("nothing within {:?}", config.api_timeout)),
    }
}

/// Connects, and looks for what the settings name.
pub(super) async fn open(config: KubernetesConfig) -> Result<Inner, ConnectError> {
    let (client, url) = client(&config).await?;
    let unreachable = |why: String| ConnectError::Unreachable { url: url.clone(), why };
    let version = in_time(&config, client.apiserver_version()).await.map_err(unreachable)?;
    tracing::info!(url, version = version.git_version, "the cluster answers");
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    let mut handlers = HashMap::new();
    for (class, object) in &config.runtime_classes {
        if object.is_empty() {
            continue;
        }
        let found = in_time(&config, classes.get_opt(object)).await.map_err(unreachable)?;
        let Some(found) = found else {
            let (class, object) = (class.clone(), object.clone());
            return Err(ConnectError::NoRuntimeClass { class, object });
        };
        handlers.insert(class.as_str(), found.handler);
    }
    let user_namespaces = in_time(&config, user_namespaces(&config, &client, &handlers))
        .await
        .map_err(|why| unreachable(format!("its nodes cannot be listed: {why}")))?;
    let capabilities = Capabilities {
        name: "kubernetes".to_owned(),
        runtime_classes: config.classes(),
        concurrent_starts: config.concurrent_starts,
        machine: None,
        // The API server counts numbers, whatever the protocol.
        protocols_apart: false,
        enforcement: Enforcement {
            user_namespace: config.classes().iter().all(|class| user_namespaces.contains(class)),
            seccomp: "RuntimeDefault".to_owned(),
            // The kubelet's own limit holds.
            pids_limit: false,
        },
    };
    let namespace = config.namespace.clone();
    Ok(Inner {
        policies: Api::namespaced(client.clone(), &namespace),
        services: Api::namespaced(client.clone(), &namespace),
        pods: Api::namespaced(client.clone(), &namespace),
        nodes: Api::all(client.clone()),
        client,
        capabilities,
        user_namespaces,
        config,
        state: Mutex::new(State::default()),
        told: Default::default(),
        stop: CancellationToken::new(),
    })
}
