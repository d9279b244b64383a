//! A runtime that starts nothing and otherwise behaves like the rest.
//!
//! For people who write a client, for tests of everything above the seam, and for scale: a stack
//! costs a few hundred bytes and, while it starts, one timer. Delays and failures are drawn from a
//! seed and the stack's id, so that the same stacks fail in every run. What a real runtime only
//! does by accident (to lose its connection, to forget a stack), a [`Handle`] does on demand.

mod config;
mod directory;
mod handle;
mod session;
mod state;

use std::sync::Arc;
use std::time::Duration;

use stackd_core::port::PortMapping;
use stackd_core::runtime::{
    BoxFuture, BoxStream, Capabilities, EnsureRequest, ErrorKind, ExecRequest, ExecSession,
    LogLine, LogOptions, Observation, Outcome, Placement, PortsTaken, Runtime, Usage,
};
use stackd_core::spec::ImagePullPolicy;
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId, Timestamp};
use tokio_stream::wrappers::UnboundedReceiverStream;

pub use config::SimulatedConfig;
use directory::Directory;
pub use handle::{End, Handle};
use state::{Begin, Shared};

/// The simulated runtime. Clones are the same runtime.
#[derive(Clone)]
pub struct SimulatedRuntime {
    shared: Arc<Shared>,
}

impl SimulatedRuntime {
    /// A runtime without stacks.
    pub fn new(config: SimulatedConfig) -> Self {
        Self { shared: Arc::new(Shared::new(config)) }
    }

    /// A runtime with the stacks of the configured directory, if there is one.
    pub fn open(config: SimulatedConfig) -> std::io::Result<Self> {
        let directory = config.directory.as_deref().map(Directory::open).transpose()?;
        let runtime = Self::new(config);
        runtime.shared.lock().directory = directory;
        Ok(runtime)
    }

    /// What tests and demonstrations hold to make things happen.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// Lets the configured delays pass, then makes the start what it is to be.
    async fn drive(shared: Arc<Shared>, id: StackId, run: u64) {
        let config = &shared.config;
        pause(config.start_delay).await;
        shared.containers_started(id, run);
        if shared.draw(id, run, "fail") < config.failure_rate {
            let condition = Condition::new(reason::ERROR, "container ended with code 1");
            shared.end_run(id, run, Outcome::Failed, Some(1), condition);
            return;
        }
        pause(config.ready_delay).await;
        shared.ready(id, run);
    }
}

async fn pause(length: Duration) {
    if !length.is_zero() {
        tokio::time::sleep(length).await;
    }
}

impl Runtime for SimulatedRuntime {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn placement(&self) -> Option<Placement> {
        (!self.shared.config.late_placement).then(|| self.shared.config.placement())
    }

    fn claim_ports(&self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken> {
        self.shared.claim(id, ports)
    }

    fn unclaim_ports(&self, id: StackId) {
        self.shared.unclaim(id);
    }

    fn prepare<'a>(
        &'a self,
        _image: &'a str,
        _policy: Option<ImagePullPolicy>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.shared.reach()?;
            pause(self.shared.config.prepare_delay).await;
            Ok(())
        })
    }

    fn ensure(&self, request: EnsureRequest) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let id = request.id;
            match self.shared.begin(request)? {
                Begin::Known => {}
                Begin::Unplaced => return Ok(()),
                // The start goes on by itself when the caller goes away, as in a shim.
                Begin::New(run) => {
                    tokio::spawn(Self::drive(Arc::clone(&self.shared), id, run));
                }
            }
            self.shared.wait_for_start(id).await;
            Ok(())
        })
    }

    fn stop(&self, id: StackId, _grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.shared.reach()?;
            self.shared.note(format_args!("stop {id}"));
            let condition = Condition::new(reason::COMPLETED, "stopped on request");
            self.shared.end(id, Outcome::Completed, Some(0), condition);
            // As with real containers, observers have heard of the end when the call returns.
            tokio::task::yield_now().await;
            Ok(())
        })
    }

    fn remove(&self, id: StackId, _grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.shared.reach()?;
            pause(self.shared.config.remove_delay).await;
            self.shared.may_remove()?;
            self.shared.note(format_args!("remove {id}"));
            self.shared.remove(id);
            Ok(())
        })
    }

    fn observe(&self) -> BoxStream<'static, Observation> {
        self.shared.adopt(|id, run| {
            tokio::spawn(Self::drive(Arc::clone(&self.shared), id, run));
        });
        Box::pin(UnboundedReceiverStream::new(self.shared.observe()))
    }

    fn logs(
        &self,
        id: StackId,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError>>
    {
        self.shared.fetch(id);
        Box::pin(async move { session::logs(&self.shared, id, &options) })
    }

    fn exec(
        &self,
        id: StackId,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, RuntimeError>> {
        self.shared.fetch(id);
        Box::pin(async move { session::exec(&self.shared, id, request) })
    }

    fn usage(&self, id: StackId) -> BoxFuture<'_, Result<Usage, RuntimeError>> {
        self.shared.fetch(id);
        Box::pin(async move { self.shared.usage(id) })
    }
}

fn unknown(id: StackId) -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::LOST, format!("{id} is not here"))
}

fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests;
