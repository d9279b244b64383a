//! From the moment at which an engine may act to the moment at which it may not: in a server by
//! itself its whole life, in a replica the time for which it holds the lease. It begins as after a
//! restart, from what the database holds; a failover is a restart on another machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stackd_core::admission::Usage as Used;
use stackd_core::clock::BootTime;
use stackd_core::lifecycle::Seen;
use stackd_store::Snapshot;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::book::{Book, Entry, SharedEngine, Times, held};
use crate::idempotency::Idempotency;
use crate::ports::Ports;
use crate::shared::Shared;
use crate::starts::Starts;
use crate::view::View;
use crate::{challenges, jobs};

/// How long a replica may act without hearing from the database, on its own clock: never longer
/// than the database thinks, since it is counted from before the database was asked.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
    until_nanos: AtomicU64,
}

impl Tenure {
    pub(crate) fn extend(&self, until: BootTime) {
        let nanos = u64::try_from(until.0.as_nanos()).unwrap_or(u64::MAX);
        self.until_nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    pub(crate) fn until(&self) -> BootTime {
        BootTime(Duration::from_nanos(self.until_nanos.load(Ordering::Relaxed)))
    }
}

/// Under which right a term acts.
#[derive(Debug, Clone)]
pub(crate) struct Right {
    /// Which of all terms; 0 where no lease is held, since nobody else reaches the database.
    pub(crate) epoch: u64,
    /// Until when the lease is known to be held; none where there is none.
    pub(crate) tenure: Option<Arc<Tenure>>,
    /// Of a server by itself: it acts on from memory while the database is away.
    pub(crate) alone: bool,
}

impl Right {
    /// Of the only server that reaches its database.
    pub(crate) fn of_owner() -> Self {
        Self { epoch: 0, tenure: None, alone: true }
    }
}

impl Shared {
    /// Begins to act: observes the runtime, and works off what is due.
    pub(crate) fn begin_term(
        view: &Arc<View>,
        snapshot: Snapshot,
        right: Right,
        seed: u64,
    ) -> SharedEngine {
        let config = view.config.clone();
        let (wall, boot) = (view.clock.wall(), view.clock.boot());
        let capabilities = view.runtime.capabilities();
        let mut book = Book {
            entries: Default::default(),
            ports: Ports::new(&config.node_ports, capabilities.protocols_apart, seed),
            used: Used::default(),
            starts: Starts::new(capabilities.concurrent_starts),
            timers: Default::default(),
            round: 0,
            synced: false,
            orphans: Default::default(),
        };
        view.reset(&snapshot);
        for stack in snapshot.stacks {
            let times = Times::of(&stack, &config, wall, boot);
            book.ports.occupy(&held(&stack));
            let entry = Entry::new(stack, Seen::Unknown, times);
            if entry.counted {
                book.used = book.used.with(&entry.stack.requested);
            }
            book.entries.insert(entry.stack.id, entry);
        }
        let store = match right.epoch {
            0 => view.store.clone(),
            epoch => view.store.at_epoch(epoch),
        };
        let shared = Arc::new(Shared {
            idempotency: Idempotency::new(snapshot.idempotency),
            admission: config.admission(view.runtime.capabilities().machine),
            config,
            store,
            runtime: Arc::clone(&view.runtime),
            clock: Arc::clone(&view.clock),
            book: Mutex::new(book),
            right,
            superseded: Notify::new(),
            timers_changed: Notify::new(),
            store_fault: Default::default(),
            tasks: TaskTracker::new(),
            stop: view.stop.child_token(),
            view: Arc::clone(view),
        });
        let all: Vec<_> = shared.book.lock().entries.keys().copied().collect();
        for id in all {
            shared.drive(id);
        }
        for job in shared.view.jobs.unfinished() {
            jobs::run(&shared, job);
        }
        challenges::resume(&shared);
        shared.tasks.spawn(Arc::clone(&shared).run_timers());
        shared.tasks.spawn(Arc::clone(&shared).run_sweeps());
        shared.tasks.spawn(Arc::clone(&shared).watch());
        shared
    }

    /// Whether this engine may act. Looked at before each step: a process that was stopped for a
    /// while finds out here that its time is over.
    pub(crate) fn may_act(&self) -> bool {
        !self.stop.is_cancelled() && (self.right.alone || self.holds_lease())
    }

    /// Whether nobody else can have begun to decide meanwhile.
    pub(crate) fn holds_lease(&self) -> bool {
        self.right.tenure.as_ref().is_none_or(|tenure| self.clock.boot() < tenure.until())
    }

    /// Acts no more from here on. What is under way is given up; use cases come to their end, and
    /// write only if the lease still holds.
    pub(crate) fn end_term(&self) {
        self.stop.cancel();
        for entry in self.book.lock().entries.values() {
            if let Some((_, task)) = &entry.work {
                task.abort();
            }
        }
        self.tasks.close();
    }
}
