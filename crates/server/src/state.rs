//! What every handler has at hand.

use std::sync::{Arc, OnceLock};

use stackd_core::pod::PodDefaults;
use stackd_engine::Engine;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::config::ConfigError;
use crate::config::ServerConfig;
use crate::metrics::Metrics;
use crate::player::Tokens;
use crate::replicas::Forwarder;

/// The engine, the settings and the meters; clones share them.
#[derive(Clone)]
pub struct ServerState(Arc<Inner>);

struct Inner {
    engine: Engine,
    config: ServerConfig,
    pod_defaults: PodDefaults,
    metrics: Arc<Metrics>,
    forwarder: Forwarder,
    tokens: OnceLock<Tokens>,
    stopping: CancellationToken,
    watcher: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl ServerState {
    /// Ties the API to an engine. `pod_defaults` fill in what a Pod leaves open. When `stopping`
    /// is cancelled, answers that have no end of their own (streams, waits) end.
    ///
    /// Must be called inside a tokio runtime: a task begins to count the engine's events.
    pub fn new(
        engine: Engine,
        config: ServerConfig,
        pod_defaults: PodDefaults,
        stopping: CancellationToken,
    ) -> Self {
        let metrics = Arc::new(Metrics::new(engine.clone()));
        let watcher = tokio::spawn(Arc::clone(&metrics).watch(engine.clone())).abort_handle();
        let forwarder = Forwarder::default();
        let tokens = OnceLock::new();
        Self(Arc::new(Inner {
            engine,
            config,
            pod_defaults,
            metrics,
            forwarder,
            tokens,
            stopping,
            watcher,
        }))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// The settings.
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    pub(crate) fn pod_defaults(&self) -> &PodDefaults {
        &self.0.pod_defaults
    }

    pub(crate) fn forwarder(&self) -> &Forwarder {
        &self.0.forwarder
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Makes ready what verifies players' tokens. Done once, before the first request.
    pub(crate) fn prepare_tokens(&self) -> Result<(), ConfigError> {
        let tokens = Tokens::new(&self.config().player)?;
        let _ = self.0.tokens.set(tokens);
        Ok(())
    }

    /// What verifies players' tokens; `None` before [`ServerState::prepare_tokens`].
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        self.0.tokens.get()
    }

    /// Cancelled when the server stops.
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }
}
