//! An engine over a real database and a simulated runtime, with the time in the test's hands.

use std::sync::Arc;

use stackd_core::{Clock, Runtime, StackId, StackSpec};
use stackd_engine::{CreateStack, Engine, EngineConfig, LiveStack, WaitFor};
use stackd_runtimes::simulated::{Handle, SimulatedConfig, SimulatedRuntime};
use stackd_store::{Store, StoreConfig};
use tempfile::TempDir;

use crate::clock::ManualClock;
use crate::{PATIENCE, within};

/// An engine and all that it stands on. [`TestEngine::finish`] ends a test: it takes away what is
/// left and proves that nothing remains.
pub struct TestEngine {
    /// The engine.
    pub engine: Engine,
    /// What happens to its runtime.
    pub runtime: Handle,
    /// Its time.
    pub clock: ManualClock,
    /// Its database.
    pub store: Store,
    config: EngineConfig,
    database: StoreConfig,
    _directory: Option<TempDir>,
}

/// How a [`TestEngine`] is made.
#[derive(Default)]
pub struct Setup {
    /// The engine's settings.
    pub engine: EngineConfig,
    /// The runtime's settings; instant where not given.
    pub runtime: Option<SimulatedConfig>,
    /// The database; SQLite in a directory of its own where not given.
    pub database: Option<StoreConfig>,
    /// The time at the start.
    pub clock: ManualClock,
}

/// A stack as a platform's back end asks for it.
pub fn create_command(tenant: &str, spec: StackSpec) -> CreateStack {
    CreateStack {
        dialect: "provisioner",
        tenant: tenant.to_owned(),
        slot: None,
        spec,
        runtime_class: None,
        labels: Default::default(),
        ttl: None,
        idempotency: None,
    }
}

impl TestEngine {
    /// An engine without stacks, as most tests want it.
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// An engine without stacks.
    pub async fn with(setup: Setup) -> Self {
        let config = setup.runtime.unwrap_or_else(SimulatedConfig::instant);
        let runtime = SimulatedRuntime::new(config);
        let (database, directory) = match setup.database {
            Some(database) => (database, None),
            None => {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let path = directory.path().join("stackd.db");
                (StoreConfig::Sqlite { path, ballast_bytes: 0 }, Some(directory))
            }
        };
        let handle = runtime.handle();
        let (engine, store) =
            run(setup.engine.clone(), database.clone(), runtime, setup.clock.clone()).await;
        Self {
            engine,
            store,
            runtime: handle,
            clock: setup.clock,
            config: setup.engine,
            database,
            _directory: directory,
        }
    }

    /// The engine stops and starts anew on the same database. The runtime keeps its stacks, or has
    /// lost them as after a reboot.
    pub async fn restart(mut self, keep_stacks: bool) -> Self {
        self.engine.shutdown().await;
        let runtime = self.runtime.restarted(keep_stacks);
        self.runtime = runtime.handle();
        (self.engine, self.store) =
            run(self.config.clone(), self.database.clone(), runtime, self.clock.clone()).await;
        self
    }

    /// A stack of this spec, durable and perhaps not yet running.
    pub async fn create(&self, spec: StackSpec) -> Arc<LiveStack> {
        let command = create_command("test", spec);
        within("a stack is created", self.engine.create(command)).await.expect("created").stack
    }

    /// A stack of this spec that runs.
    pub async fn running(&self, spec: StackSpec) -> Arc<LiveStack> {
        let live = self.create(spec).await;
        let id = live.stack.id;
        let live = self.engine.wait(id, WaitFor::Running, PATIENCE).await.expect("is there");
        assert_eq!(live.stack.observed.phase, stackd_core::Phase::Running, "{:?}", live.stack);
        live
    }

    /// Waits until the runtime has nothing of a stack.
    pub async fn removed(&self, id: StackId) {
        within("the runtime has removed the stack", async {
            while self.runtime.get(id).is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Deletes what is left, and fails when the runtime, the ports or the database still hold
    /// anything of it.
    pub async fn finish(self) {
        for live in self.engine.list(None, None, |_| true).stacks {
            // Its deadline may have taken it meanwhile.
            let _ = self.engine.delete(live.stack.id).await;
        }
        within("the runtime is empty", async {
            while self.runtime.count() > 0 || !self.runtime.claimed_ports().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        within("no row of a stack is left", async {
            while !self.store.load().await.expect("the database is read").stacks.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let stats = self.engine.stats();
        let held = [stats.total_stacks, stats.used_node_ports, stats.reserved_memory_bytes];
        assert_eq!(held, [0, 0, 0], "numbers of an engine without stacks: {stats:?}");
        self.engine.shutdown().await;
    }
}

async fn run(
    config: EngineConfig,
    database: StoreConfig,
    runtime: SimulatedRuntime,
    clock: ManualClock,
) -> (Engine, Store) {
    let store = Store::open(database).await.expect("the database opens");
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let engine = Engine::start(config, store.clone(), runtime, clock).await;
    (engine.expect("the engine starts"), store)
}
