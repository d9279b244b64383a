//! Makes stacks so.
//!
//! The engine writes down what is wanted before it touches a runtime, compares what is wanted with
//! what the runtime reports, and takes the next step, again and again, until both agree. It is the
//! only one that decides; dialects ask it, runtimes obey it. It knows [`stackd_core::Runtime`],
//! never a driver, and nothing of HTTP.

pub mod challenges;
pub mod clock;
pub mod command;
pub mod config;
pub mod keys;
pub mod live;

mod alone;
mod book;
mod calls;
mod create;
mod events;
mod extend;
mod idempotency;
mod jobs;
mod owners;
mod ports;
mod reconcile;
mod remove;
mod replica;
mod shared;
mod starts;
mod term;
mod timers;
mod view;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use stackd_core::event::{Event, Seq};
use stackd_core::runtime::{
    BoxStream, Capabilities, ExecRequest, ExecSession, LogLine, LogOptions, Usage,
};
use stackd_core::{Clock, JobId, Phase, Runtime, RuntimeError, StackId};
use stackd_store::{Candidate, Job, Store, StoreError};
use tokio::sync::watch as watched;
use tokio_util::task::TaskTracker;

use crate::alone::Hold;
use crate::book::SharedEngine;
use crate::challenges::{Challenges, Players};
use crate::replica::Replica;
use crate::shared::Shared;
use crate::term::Right;
use crate::view::View;

pub use clock::SystemClock;
pub use command::{
    CallError, CreateError, CreateStack, DeleteError, EventMessage, ExtendError, IdempotencyKey,
    Unavailable, WaitFor,
};
pub use config::{EngineConfig, PlayerLimits};
pub use create::Created;
pub use keys::Keys;
pub use live::{Cursor, LiveStack, Stats};
pub use replica::{Leadership, ReplicaConfig, ReplicaHealth};

/// The engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database could not be read.
    #[error("the database could not be read")]
    Store(#[from] StoreError),
    /// Another server holds the lease, and renews it.
    #[error("another server decides on this database")]
    Held(Candidate),
}

/// A handle to the engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    view: Arc<View>,
    role: Role,
    keys: Keys,
    tasks: TaskTracker,
}

/// Who decides here.
#[derive(Clone)]
enum Role {
    /// This server, which is by itself; with its lease, where others reach the database.
    Alone(SharedEngine, Option<Arc<Hold>>),
    /// Whichever replica leads.
    Replica(Arc<Replica>),
}

/// A page of the list of stacks.
#[derive(Debug, Clone)]
pub struct Page {
    /// The stacks, oldest first.
    pub stacks: Vec<Arc<LiveStack>>,
    /// Where the next page begins, if there may be one.
    pub next: Option<Cursor>,
    /// Changes whenever any stack does, also across restarts: what an `ETag` is made of.
    pub revision: String,
}

/// How well the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether the last write was made durable; the reason where not.
    pub store: Result<(), String>,
    /// Whether the runtime has told its inventory, so that starts and removals go on.
    pub runtime_synced: bool,
    /// How many stacks wait for a start slot.
    pub waiting_starts: usize,
    /// How it takes part, where there are several.
    pub replica: Option<ReplicaHealth>,
}

impl Engine {
    /// Loads what is kept, begins to observe the runtime and to work off what is due. For a database
    /// that no other server reaches.
    pub async fn start(
        config: EngineConfig,
        store: Store,
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let snapshot = store.load().await?;
        let seed = random();
        let keys = Keys::new(store.clone(), snapshot.api_keys.clone());
        let view = Arc::new(View::new(config, store, runtime, clock, seed));
        let term = Shared::begin_term(&view, snapshot, Right::of_owner(), seed);
        Ok(Self { view, role: Role::Alone(term, None), keys, tasks: TaskTracker::new() })
    }

    /// The same on a database that other servers reach too: it holds the lease that a replica leads
    /// by, and is refused where another does.
    pub async fn start_alone(
        config: EngineConfig,
        lease: ReplicaConfig,
        store: Store,
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let hold = Arc::new(Hold::take(&store, &clock, lease).await?);
        let snapshot = store.load().await?;
        // Reading may have taken longer than the lease: then somebody may have it by now.
        if !hold.renew().await {
            return Err(StartError::Store(StoreError::Superseded));
        }
        let seed = random();
        let keys = Keys::new(store.clone(), snapshot.api_keys.clone());
        let view = Arc::new(View::new(config, store, runtime, clock, seed));
        let term = Shared::begin_term(&view, snapshot, hold.right(), seed);
        let tasks = TaskTracker::new();
        tasks.spawn(Arc::clone(&hold).keep(Arc::clone(&term)));
        Ok(Self { view, role: Role::Alone(term, Some(hold)), keys, tasks })
    }

    /// Begins as one of several on this database: it follows, and leads when no other does.
    pub async fn start_replica(
        config: EngineConfig,
        replica: ReplicaConfig,
        store: Store,
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let keys = Keys::of_replicas(store.clone(), store.api_keys().await?);
        let view = Arc::new(View::new(config, store, runtime, clock, random()));
        let replica = Replica::new(Arc::clone(&view), keys.clone(), replica);
        let tasks = TaskTracker::new();
        tasks.spawn(Arc::clone(&replica).run());
        Ok(Self { view, role: Role::Replica(replica), keys, tasks })
    }

    /// What may act here now; an error where another replica leads.
    pub(crate) fn term(&self) -> Result<SharedEngine, Unavailable> {
        match &self.role {
            Role::Alone(term, _) => Ok(Arc::clone(term)),
            Role::Replica(replica) => replica.term().ok_or_else(Unavailable::superseded),
        }
    }

    /// Completes when what this engine shows is at least as new as what any replica has
    /// acknowledged before the call. In a server by itself, and in the leader, that is at once.
    pub async fn in_step(&self) -> Result<(), Unavailable> {
        match &self.role {
            Role::Alone(..) => Ok(()),
            Role::Replica(replica) => replica.in_step().await,
        }
    }

    /// Completes when another server has taken the database from this one, which was by itself: it
    /// decides nothing more, and has to end. Elsewhere it never does.
    pub async fn ousted(&self) {
        match &self.role {
            Role::Alone(_, Some(hold)) => hold.ousted().await,
            Role::Alone(_, None) | Role::Replica(_) => std::future::pending().await,
        }
    }

    /// Who may change things, now and later. `None` in a server by itself.
    pub fn leadership(&self) -> Option<watched::Receiver<Leadership>> {
        match &self.role {
            Role::Alone(..) => None,
            Role::Replica(replica) => Some(replica.leadership()),
        }
    }

    /// Lets another replica lead, for good. Use cases under way come to their end first. Nothing
    /// happens in a server by itself.
    pub async fn resign(&self) {
        if let Role::Replica(replica) = &self.role {
            replica.resign().await;
        }
    }

    /// Makes a stack: durable when this returns, started in the background. Runs to its end also
    /// when the caller goes away.
    pub async fn create(&self, command: CreateStack) -> Result<Created, CreateError> {
        let term = self.term()?;
        finish(&term, create::create(Arc::clone(&term), command)).await
    }

    /// One stack.
    pub fn get(&self, id: StackId) -> Option<Arc<LiveStack>> {
        self.view.live.read().get(id)
    }

    /// Stacks after `cursor` that `keep` accepts, oldest first, at most `limit` of them.
    pub fn list(
        &self,
        cursor: Option<Cursor>,
        limit: Option<usize>,
        mut keep: impl FnMut(&LiveStack) -> bool,
    ) -> Page {
        let live = self.view.live.read();
        let mut found = live.after(cursor).filter(|stack| keep(stack)).cloned();
        let stacks: Vec<_> = found.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
        let more = limit.is_some() && found.next().is_some();
        let next = stacks.last().filter(|_| more).map(|last| Cursor::of(&last.stack));
        let revision = self.view.revision(&live);
        Page { stacks, next, revision }
    }

    /// What [`Page::revision`] would be now, without making a page.
    pub fn revision(&self) -> String {
        self.view.revision(&self.view.live.read())
    }

    /// Numbers over all stacks.
    pub fn stats(&self) -> Stats {
        self.view.live.read().stats().clone()
    }

    /// Waits until the stack is as asked or `timeout` has passed, and gives it as it then is.
    /// `None` when it is unknown, or gone meanwhile.
    pub async fn wait(
        &self,
        id: StackId,
        until: WaitFor,
        timeout: Duration,
    ) -> Option<Arc<LiveStack>> {
        let deadline = self.view.clock.boot().after(timeout);
        let mut sleep = self.view.clock.sleep_until(deadline);
        loop {
            // Registered before the look, so that no change between the two is missed.
            let changed = self.view.waiter(id).notified_owned();
            let stack = self.get(id)?;
            let phase = stack.stack.observed.phase;
            let there = match until {
                WaitFor::Running => phase != Phase::Creating,
                WaitFor::Ended => !phase.is_active(),
            };
            if there {
                return Some(stack);
            }
            tokio::select! {
                () = changed => {}
                () = &mut sleep => return self.get(id),
                () = self.view.stop.cancelled() => return self.get(id),
            }
        }
    }

    /// The place in the queue of a stack that waits for a start slot (from 1), and the queue's
    /// length. Worked out when asked, since it changes with every start of another.
    pub fn queue_place(&self, id: StackId) -> Option<(usize, usize)> {
        self.term().ok()?.book.lock().starts.place(id)
    }

    /// Takes a stack away. From the return on it is unknown to every reader.
    pub async fn delete(&self, id: StackId) -> Result<(), DeleteError> {
        let term = self.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { remove::delete(&shared, id, None).await }).await
    }

    /// Takes many stacks away, one after another, in the background, across restarts. The ids are
    /// trimmed, not blank; duplicates count once.
    pub async fn batch_delete(&self, stack_ids: Vec<String>) -> Result<JobId, Unavailable> {
        let term = self.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { jobs::accept(&shared, stack_ids).await }).await
    }

    /// A batch delete.
    pub fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.view.jobs.get(id)
    }

    /// What a container of a stack has written; also after the stack has ended.
    pub async fn logs(
        &self,
        id: StackId,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, CallError> {
        calls::logs(&self.view, id, options).await
    }

    /// Runs a further command in a container of a running stack.
    pub async fn exec(&self, id: StackId, request: ExecRequest) -> Result<ExecSession, CallError> {
        calls::exec(&self.view, id, request).await
    }

    /// What a stack uses right now.
    pub async fn usage(&self, id: StackId) -> Result<Usage, CallError> {
        calls::usage(&self.view, id).await
    }

    /// What has happened to a stack that a reader can see, oldest first.
    pub async fn events_of(&self, id: StackId) -> Result<Vec<Event>, CallError> {
        calls::events_of(&self.view, id).await
    }

    /// The stream of all changes, after `after` or from now on. It ends with the engine.
    pub fn events(&self, after: Option<Seq>) -> BoxStream<'static, EventMessage> {
        events::stream(&self.view, after)
    }

    /// Moves a stack's deadline to `ttl` from now, at most `longest` after it was made.
    pub async fn extend(
        &self,
        id: StackId,
        ttl: Duration,
        longest: Duration,
    ) -> Result<Arc<LiveStack>, ExtendError> {
        let term = self.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { extend::extend(&shared, id, ttl, longest).await }).await
    }

    /// The catalogue of challenges.
    pub fn challenges(&self) -> Challenges<'_> {
        Challenges::new(self)
    }

    /// What players do.
    pub fn players(&self) -> Players<'_> {
        Players::new(self)
    }

    /// The API keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What the runtime can do.
    pub fn capabilities(&self) -> Capabilities {
        self.view.runtime.capabilities().clone()
    }

    /// How well the engine is.
    pub fn health(&self) -> Health {
        let replica = match &self.role {
            Role::Alone(..) => None,
            Role::Replica(replica) => Some(replica.health()),
        };
        match self.term() {
            Ok(term) => {
                let book = term.book.lock();
                Health {
                    store: term.store_fault.lock().clone().map_or(Ok(()), Err),
                    runtime_synced: book.synced,
                    waiting_starts: book.starts.waiting(),
                    replica,
                }
            }
            // Who follows needs the database only to read, and the runtime not at all.
            Err(_) => {
                let in_step = replica.is_some_and(|replica| replica.in_step);
                let away = || "the database cannot be reached".to_owned();
                let store = if in_step { Ok(()) } else { Err(away()) };
                Health { store, runtime_synced: true, waiting_starts: 0, replica }
            }
        }
    }

    /// Ends background work, and gives the lease back where there is one. Stacks go on, use cases
    /// under way come to their end, and steps under way are given up: the next start finds them
    /// where they are.
    pub async fn shutdown(&self) {
        self.resign().await;
        self.view.stop.cancel();
        if let Role::Alone(term, hold) = &self.role {
            term.end_term();
            term.tasks.wait().await;
            if let Some(hold) = hold {
                hold.give_back().await;
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs a use case to its end, whatever becomes of the caller.
pub(crate) async fn finish<T, E>(
    shared: &SharedEngine,
    case: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Unavailable> + Send + 'static,
{
    match shared.tasks.spawn(case).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a use case did not come to its end");
            Err(Unavailable { reason: "internal error".to_owned() }.into())
        }
    }
}

/// A number for what need not be secret, only different each time.
pub(crate) fn random() -> u64 {
    let mut bits = [0u8; 8];
    match getrandom::fill(&mut bits) {
        Ok(()) => u64::from_ne_bytes(bits),
        Err(_) => u64::from(std::process::id()),
    }
}
