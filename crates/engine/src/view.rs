//! What readers are served from: the live set and the jobs, whoever keeps them up to date. In a
//! server by itself, or in the replica that leads, that is the engine's own work; in a replica that
//! follows it is the news from the database.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use stackd_core::isolation::EffectiveSecurity;
use stackd_core::{Clock, Desired, Runtime, Stack, StackId};
use stackd_store::{Catalogue, Snapshot, Store};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::challenges::Board;
use crate::config::EngineConfig;
use crate::jobs::Jobs;
use crate::live::{LiveSet, LiveStack};
use crate::owners::OwnerWaiters;

pub(crate) struct View {
    pub(crate) config: EngineConfig,
    pub(crate) store: Store,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) live: RwLock<LiveSet>,
    pub(crate) jobs: Jobs,
    /// Who waits for a change of a stack.
    waiters: Mutex<HashMap<StackId, Arc<Notify>>>,
    /// Who waits for a change of any stack of an owner.
    pub(crate) owners: OwnerWaiters,
    /// Challenges, and who plays them.
    pub(crate) board: Board,
    /// Distinguishes revisions of this run from those of earlier ones.
    run: String,
    /// Cancelled when the engine ends.
    pub(crate) stop: CancellationToken,
}

impl View {
    pub(crate) fn new(
        config: EngineConfig,
        store: Store,
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
        seed: u64,
    ) -> Self {
        Self {
            config,
            store,
            runtime,
            clock,
            live: RwLock::default(),
            jobs: Jobs::default(),
            waiters: Mutex::default(),
            owners: OwnerWaiters::default(),
            board: Board::new(Catalogue::default()),
            run: format!("{seed:x}"),
            stop: CancellationToken::new(),
        }
    }

    /// A version of a stack, as readers see it.
    pub(crate) fn seen(&self, stack: &Stack) -> Arc<LiveStack> {
        let security = EffectiveSecurity::new(
            self.config.profile,
            self.config.pids_limit,
            stack.requested.disk_bytes,
            &stack.spec.restrictions,
            &self.runtime.capabilities().enforcement,
        );
        Arc::new(LiveStack { stack: stack.clone(), security, rendered: Default::default() })
    }

    /// Shows readers what the database has of a stack.
    pub(crate) fn show(&self, stack: &Stack) {
        if stack.desired == Desired::Gone {
            return self.hide(stack.id);
        }
        let known = self.live.read().get(stack.id);
        // What has not changed keeps its rendered form, and the list its revision.
        if known.is_some_and(|known| known.stack == *stack) {
            return;
        }
        let live = self.seen(stack);
        self.live.write().put(live);
        self.wake(stack.id);
        self.owners.wake(&stack.owner);
    }

    /// Hides a stack from all readers.
    pub(crate) fn hide(&self, id: StackId) {
        let before = self.live.write().hide(id);
        self.wake(id);
        if let Some(before) = before {
            self.owners.wake(&before.stack.owner);
        }
    }

    /// Shows readers what a snapshot has, and nothing else.
    pub(crate) fn reset(&self, snapshot: &Snapshot) {
        let wanted = |stack: &&Stack| stack.desired != Desired::Gone;
        let there: HashMap<_, _> =
            snapshot.stacks.iter().filter(wanted).map(|stack| (stack.id, stack)).collect();
        let known: Vec<_> = self.live.read().after(None).map(|live| live.stack.id).collect();
        for id in known.into_iter().filter(|id| !there.contains_key(id)) {
            self.hide(id);
        }
        for stack in there.values() {
            self.show(stack);
        }
        self.jobs.reset(snapshot.jobs.clone());
        self.follow(snapshot.catalogue.clone());
    }

    /// Takes over what the database has of challenges and their players.
    pub(crate) fn follow(&self, catalogue: Catalogue) {
        self.board.replace(catalogue);
        self.owners.wake_all();
    }

    /// What changes with every change of the live set.
    pub(crate) fn revision(&self, live: &LiveSet) -> String {
        format!("{}-{:x}", self.run, live.revision())
    }

    /// Lets everybody look again who waits for a change of a stack.
    pub(crate) fn wake(&self, id: StackId) {
        if let Some(waiter) = self.waiters.lock().remove(&id) {
            waiter.notify_waiters();
        }
    }

    /// What is notified at the next change of a stack.
    pub(crate) fn waiter(&self, id: StackId) -> Arc<Notify> {
        Arc::clone(self.waiters.lock().entry(id).or_default())
    }
}
