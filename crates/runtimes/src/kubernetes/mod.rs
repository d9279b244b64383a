//! Stacks as Pods of a cluster: the way past one machine.
//!
//! Each stack is a NetworkPolicy, which owns a Service and a Pod, so that one deletion takes all.
//! What the cluster has is known from one watch for each kind and from nothing else: no call is
//! made to learn how a stack is. This module knows the cluster; what should run is decided in the
//! engine. Of itself it changes something (ends what has failed, makes a deleted Service anew) only
//! while it is observed: of several servers, only the one that leads does that.

mod access;
mod cache;
mod config;
mod connect;
mod dial;
mod end;
mod entry;
mod error;
mod exec;
mod inner;
mod inspect;
mod logs;
mod make;
mod names;
mod node;
mod objects;
mod pull;
mod room;
mod status;
mod usage;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use stackd_core::port::PortMapping;
use stackd_core::runtime::{
    BoxFuture, BoxStream, Capabilities, EnsureRequest, ExecRequest, ExecSession, LogLine,
    LogOptions, Observation, Placement, PortsTaken, Runtime, Usage,
};
use stackd_core::spec::ImagePullPolicy;
use stackd_core::{RuntimeError, StackId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::DropGuard;

pub use access::{PERMISSIONS, Permission};
pub use config::{DialAddress, KubernetesConfig, UserNamespaces};
pub use connect::ConnectError;
use inner::Inner;
pub use inspect::{Finding, Rating, inspect};

/// The Kubernetes runtime. Clones are the same runtime. When the last is dropped, stacks go on
/// running, and the next one that is opened on the same namespace adopts them.
#[derive(Clone)]
pub struct KubernetesRuntime {
    inner: Arc<Inner>,
    _alive: Arc<DropGuard>,
}

impl KubernetesRuntime {
    /// Connects to the cluster, looks whether it has what the settings name, and begins to watch.
    pub async fn open(config: KubernetesConfig) -> Result<Self, ConnectError> {
        let inner = Arc::new(connect::open(config).await?);
        watches::begin(&inner);
        let alive = Arc::new(inner.stop.clone().drop_guard());
        Ok(Self { inner, _alive: alive })
    }

    /// The address of a node that answers, once the nodes are known. Node ports are reached at each.
    pub async fn node_address(&self) -> Option<std::net::IpAddr> {
        let mut observations = self.observe();
        while let Some(observation) = observations.next().await {
            if observation == Observation::Synced {
                break;
            }
        }
        let state = self.inner.state.lock();
        state.nodes.values().filter(|node| node.view.ready).find_map(|node| node.view.dial)
    }
}

impl Runtime for KubernetesRuntime {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn placement(&self) -> Option<Placement> {
        None
    }

    fn claim_ports(&self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken> {
        self.inner.state.lock().claim(id, ports)
    }

    fn unclaim_ports(&self, id: StackId) {
        self.inner.state.lock().unclaim(id);
    }

    /// The nodes pull images themselves; what else is wrong with one is seen when a stack needs it.
    fn prepare<'a>(
        &'a self,
        image: &'a str,
        _policy: Option<ImagePullPolicy>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move { pull::check(&self.inner.config, image) })
    }

    fn ensure(&self, request: EnsureRequest) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.ensure(request).await })
    }

    /// The grace is the pod's own, which is at most that of a delete.
    fn stop(&self, id: StackId, _grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.stop(id).await })
    }

    fn remove(&self, id: StackId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.remove(id, grace).await })
    }

    fn observe(&self) -> BoxStream<'static, Observation> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inner.observe(sender);
        Box::pin(UnboundedReceiverStream::new(receiver))
    }

    fn logs(
        &self,
        id: StackId,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError>>
    {
        Box::pin(async move { self.inner.logs(id, options).await })
    }

    fn exec(
        &self,
        id: StackId,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, RuntimeError>> {
        Box::pin(async move { self.inner.exec(id, request).await })
    }

    fn usage(&self, id: StackId) -> BoxFuture<'_, Result<Usage, RuntimeError>> {
        Box::pin(async move { self.inner.usage(id).await })
    }
}

/// Goes on to its end once it has begun, whether or not the caller still waits: what is half done
/// would be in the way of the next call about the same stack.
fn to_its_end(
    work: impl Future<Output = Result<(), RuntimeError>> + Send + 'static,
) -> BoxFuture<'static, Result<(), RuntimeError>> {
    Box::pin(async move {
        let result = tokio::spawn(work).await;
        result.unwrap_or_else(|e| Err(error::failed(e.to_string())))
    })
}
