//! From settings to a connection: which cluster, as whom, and whether it has what is named.

use std::collections::{HashMap, HashSet};
use std::future::Future;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{ListParams, PostParams};
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
use super::make::NOT_KEPT;
use super::node::no_user_namespaces;
use super::objects;

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
    /// Every stack is to have a user namespace, and none can.
    #[error("user namespaces are asked for always, and {NOT_KEPT}")]
    NoUserNamespaces,
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
    let connection = connection(config).await?;
    let url = connection.cluster_url.to_string();
    Ok((made(connection)?, url))
}

fn made(connection: Config) -> Result<Client, ConnectError> {
    Client::try_from(connection).map_err(|error| ConnectError::Settings(chain(&error)))
}

/// A client for watches, which are tried again by who follows them.
fn watching(config: &KubernetesConfig, mut connection: Config) -> Result<Client, ConnectError> {
    connection.read_timeout = Some(config.watch_timeout.saturating_add(config.api_timeout));
    connection.reset_reader_on_write = true;
    connection.default_retry = false;
    made(connection)
}

async fn connection(config: &KubernetesConfig) -> Result<Config, ConnectError> {
    let settings = |error: &dyn std::error::Error| ConnectError::Settings(chain(error));
    let options = KubeConfigOptions { context: config.context.clone(), ..Default::default() };
    let read = match &config.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| settings(&error))?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None => match Config::incluster() {
            Ok(inside) if config.context.is_none() => return Ok(inside),
            _ => Config::from_kubeconfig(&options).await,
        },
    };
    read.map_err(|error| settings(&error))
}

/// Whether the API server keeps what asks for a user namespace, by a trial that makes nothing. Where
/// it takes no such trial, every pod is looked at when it is made.
pub(super) async fn keeps_user_namespaces(
    config: &KubernetesConfig,
    client: &Client,
) -> kube::Result<bool> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &config.namespace);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match pods.create(&params, &objects::trial(config)).await {
        Ok(pod) => Ok(pod.spec.is_some_and(|spec| spec.host_users == Some(false))),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            tracing::warn!(why = status.message, "user namespaces cannot be tried here");
            Ok(true)
        }
        Err(failure) => Err(failure),
    }
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
    if config.user_namespaces == UserNamespaces::Always {
        return Ok(classes.collect());
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let can = |class: &String| {
        let handler = handlers.get(class.as_str()).map_or("", String::as_str);
        let Some(why) = no_user_namespaces(&nodes, handler) else { return true };
        tracing::warn!(
            class,
            why,
            "stacks get no user namespace: root in a stack is root on its node"
        );
        false
    };
    Ok(classes.filter(can).collect())
}

/// A call before there is a runtime that would make it again.
pub(super) async fn in_time<T>(
    config: &KubernetesConfig,
    call: impl Future<Output = kube::Result<T>>,
) -> kube::Result<T> {
    let late =
        |_| kube::Error::Service(format!("no answer within {:?}", config.api_timeout).into());
    tokio::time::timeout(config.api_timeout, call).await.map_err(late)?
}

/// Connects, and looks for what the settings name.
pub(super) async fn open(config: KubernetesConfig) -> Result<Inner, ConnectError> {
    let connection = connection(&config).await?;
    let url = connection.cluster_url.to_string();
    let (client, watching) = (made(connection.clone())?, watching(&config, connection)?);
    let unreachable = |error: kube::Error| {
        let why = chain(&error);
        ConnectError::Unreachable { url: url.clone(), why }
    };
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
    let kept = match config.user_namespaces {
        UserNamespaces::Never => false,
        _ => {
            in_time(&config, keeps_user_namespaces(&config, &client)).await.map_err(unreachable)?
        }
    };
    let user_namespaces = match config.user_namespaces {
        UserNamespaces::Always if !kept => return Err(ConnectError::NoUserNamespaces),
        UserNamespaces::Auto if !kept => {
            tracing::warn!("root in a stack is root on its node: {NOT_KEPT}");
            HashSet::new()
        }
        UserNamespaces::Never => HashSet::new(),
        _ => in_time(&config, user_namespaces(&config, &client, &handlers)).await.map_err(
            |error| {
                let why = format!("its nodes cannot be listed: {}", chain(&error));
                ConnectError::Unreachable { url: url.clone(), why }
            },
        )?,
    };
    let capabilities = Capabilities {
        name: "kubernetes".to_owned(),
        runtime_classes: config.classes(),
        concurrent_starts: config.concurrent_starts,
        machine: None,
        // The API server counts numbers, whatever the protocol.
        protocols_apart: false,
        https_probes: true,
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
        watching,
        capabilities,
        user_namespaces,
        config,
        state: Mutex::new(State::default()),
        listing: Default::default(),
        told: Default::default(),
        stop: CancellationToken::new(),
    })
}
