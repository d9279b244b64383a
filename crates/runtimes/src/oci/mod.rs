//! The embedded runtime: no daemon. Each stack has a shim, a small process that outlives this one;
//! here is what hands stacks to shims, listens to them, finds them again after a restart, and
//! makes sure that nothing is left when a stack is removed.

mod config;
mod disks;
mod exec;
mod ids;
pub mod images;
mod inventory;
mod logs;
mod plan;
mod pool;
pub mod process;
mod requirements;
mod start;

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

use crate::host::{client, machine, ports};
pub use config::{DiskKind, OciConfig};
use images::ImageStore;
use inventory::Inner;
pub use requirements::{Requirement, requirements};

/// The embedded runtime. Clones are the same runtime. When the last is dropped, stacks go on
/// running, and the next one that is opened on the same data directory adopts them.
#[derive(Clone)]
pub struct OciRuntime {
    inner: Arc<Inner>,
}

impl OciRuntime {
    /// Opens the runtime: finds the stacks that run, and clears away what is left of others. The
    /// images must lie below the data directory.
    pub async fn open(config: OciConfig, images: ImageStore) -> std::io::Result<Self> {
        Ok(Self { inner: Inner::open(config, images).await? })
    }

    /// Removes every stack and the control group of them all: for one who will not be back.
    pub async fn remove_all(self) {
        let ids: Vec<_> = self.inner.state.lock().entries.keys().copied().collect();
        for id in ids {
            if let Err(error) = self.inner.remove(id, Duration::ZERO).await {
                tracing::warn!(stack = %id, error = error.operator, "a stack cannot be removed");
            }
        }
        machine::remove_unused_groups(&self.inner.cgroups, "");
    }

    /// Waits until as many empty stacks are ready as are configured.
    pub async fn ready(&self) {
        while !self.inner.pool.is_full() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Runtime for OciRuntime {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.inner.placement.clone())
    }

    fn claim_ports(&self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken> {
        self.inner.state.lock().claims.claim(self.inner.config.node_port_bind, id, ports)
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
        Box::pin(async move {
            self.inner.images.ensure(image, policy, &images::no_progress).await.map(drop)?;
            Ok(())
        })
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
        Box::pin(async move { exec::run(self.inner.client(id)?, request).await })
    }

    fn usage(&self, id: StackId) -> BoxFuture<'_, Result<Usage, RuntimeError>> {
        Box::pin(async move {
            let client = self.inner.client(id)?;
            client.usage().await.map_err(|_| not_running())
        })
    }
}

/// Goes on to its end once it has begun, whether or not the caller still waits: what is half done
/// would be in the way of the next call about the same stack.
fn to_its_end(
    work: impl Future<Output = Result<(), RuntimeError>> + Send + 'static,
) -> BoxFuture<'static, Result<(), RuntimeError>> {
    Box::pin(async move {
        let result = tokio::spawn(work).await;
        result.unwrap_or_else(|e| Err(plan::failed(e.to_string())))
    })
}

fn not_running() -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::LOST, "the stack is not running")
}

fn unknown() -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::LOST, "there is no such stack")
}
