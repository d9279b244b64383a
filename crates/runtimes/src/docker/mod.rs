//! A Docker engine, through its API. The engine runs containers; everything else is as on the
//! embedded runtime: node ports are ours, and beside each stack a keeper of ours holds them, enters
//! the stack's network and checks its health. On an engine elsewhere the engine publishes the
//! ports, and its networks are used.
//!
//! Whatever is made carries labels that say whose it is. What carries others is never touched.

mod adopt;
mod capacity;
mod catalog;
mod config;
mod engine;
mod exec;
mod images;
mod inventory;
mod keeper;
mod logs;
mod networks;
mod objects;
mod pause;
mod plan;
mod pod;
mod start;
mod survey;
mod usage;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use stackd_core::RuntimeError;
use stackd_core::StackId;
use stackd_core::port::PortMapping;
use stackd_core::runtime::{
    BoxFuture, BoxStream, Capabilities, EnsureRequest, ErrorKind, ExecRequest, ExecSession,
    LogLine, LogOptions, Observation, Placement, PortsTaken, Runtime, Usage,
};
use stackd_core::spec::ImagePullPolicy;
use stackd_core::stack::reason;
use tokio_stream::wrappers::UnboundedReceiverStream;

pub use catalog::{EngineImage, EngineImages, EngineImport};
pub use config::{DockerConfig, MachineConfig};
pub use engine::EngineError;
use inventory::Inner;
pub use survey::{Finding, Fit, survey};

/// A Docker engine as a runtime. Clones are the same runtime. When the last is dropped, stacks go
/// on running, and the next one that is opened on the same data directory adopts them.
#[derive(Clone)]
pub struct DockerRuntime {
    inner: Arc<Inner>,
    _alive: Arc<tokio::sync::watch::Sender<()>>,
}

impl DockerRuntime {
    /// Connects to the engine, finds the stacks of this data directory there, and clears away what
    /// is left of others of its own.
    pub async fn open(config: DockerConfig) -> Result<Self, EngineError> {
        let (alive, receiver) = tokio::sync::watch::channel(());
        let inner = Inner::open(config, receiver).await?;
        Ok(Self { inner, _alive: Arc::new(alive) })
    }

    /// The engine's images.
    pub fn images(&self) -> EngineImages {
        let inner = &self.inner;
        EngineImages { docker: inner.docker.clone(), images: Arc::clone(&inner.images) }
    }

    /// Removes every stack of this data directory, and the networks that were made for them.
    pub async fn remove_all(&self) {
        let ids: Vec<_> = self.inner.state.lock().entries.keys().copied().collect();
        for id in ids {
            if let Err(error) = self.inner.remove(id, Duration::ZERO).await {
                tracing::warn!(stack = %id, error = error.operator, "a stack was not removed");
            }
        }
        if let Some(networks) = &self.inner.networks
            && let Err(error) = networks.clear().await
        {
            tracing::warn!(error = error.operator, "networks stay in the engine");
        }
    }

    /// Where a stack on an engine elsewhere finds its machine.
    pub fn gateway_of(&self, id: StackId) -> Option<std::net::Ipv4Addr> {
        self.inner.networks.as_ref()?.gateway_of(id)
    }
}

impl Runtime for DockerRuntime {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.inner.placement.clone())
    }

    fn claim_ports(&self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken> {
        if self.inner.outside.is_some() {
            // They are the other machine's.
            return Ok(());
        }
        let bind = self.inner.mold.config.machine.node_port_bind;
        self.inner.state.lock().claims.claim(bind, id, ports)
    }

    fn unclaim_ports(&self, id: StackId) {
        self.inner.state.lock().claims.release(id);
    }

    fn close_ports(&self, id: StackId) {
        self.inner.state.lock().claims.close(id);
    }

    fn prepare<'a>(
        &'a self,
        image: &'a str,
        policy: Option<ImagePullPolicy>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move { self.inner.images.prepare(image, policy).await })
    }

    fn ensure(&self, request: EnsureRequest) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.ensure(request).await })
    }

    fn stop(&self, id: StackId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.stop(id, grace).await })
    }

    fn remove(&self, id: StackId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.remove(id, grace).await })
    }

    fn observe(&self) -> BoxStream<'static, Observation> {
        Box::pin(UnboundedReceiverStream::new(self.inner.observe()))
    }

    fn logs(
        &self,
        id: StackId,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError>>
    {
        Box::pin(async move { logs::open(&self.inner, id, options) })
    }

    fn exec(
        &self,
        id: StackId,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, RuntimeError>> {
        Box::pin(async move { exec::run(&self.inner, id, request).await })
    }

    fn usage(&self, id: StackId) -> BoxFuture<'_, Result<Usage, RuntimeError>> {
        Box::pin(async move { usage::of(&self.inner, id).await })
    }
}

/// Goes on to its end once it has begun, whether or not the caller still waits: what is half done
/// would be in the way of the next call about the same stack.
fn to_its_end(
    work: impl Future<Output = Result<(), RuntimeError>> + Send + 'static,
) -> BoxFuture<'static, Result<(), RuntimeError>> {
    Box::pin(async move {
        let result = tokio::spawn(work).await;
        result.unwrap_or_else(|e| Err(engine::failed(e.to_string())))
    })
}

fn not_running() -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::LOST, "the stack is not running")
}

fn unknown() -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::LOST, "there is no such stack")
}
