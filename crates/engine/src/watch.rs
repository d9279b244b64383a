//! Follows what the runtime reports, and finds what is there and should not be, or should and is
//! not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use stackd_core::lifecycle::{self, Seen, Work};
use stackd_core::runtime::{Observation, ObservedStack, RuntimeState};
use stackd_core::{Phase, StackId};

use crate::book::{Book, SharedEngine};
use crate::reconcile::backoff;
use crate::shared::Shared;

/// How long to wait before a lost runtime is asked again.
const RETRY: Duration = Duration::from_millis(500);

impl Shared {
    /// Follows the runtime until the engine ends.
    pub(crate) async fn watch(self: SharedEngine) {
        loop {
            tokio::select! {
                () = self.watch_once() => {}
                () = self.stop.cancelled() => return,
            }
            tracing::warn!("the runtime's observations have ended; asking again");
            let again = self.clock.boot().after(RETRY);
            tokio::select! {
                () = self.clock.sleep_until(again) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn watch_once(self: &SharedEngine) {
        {
            let mut book = self.book.lock();
            book.round += 1;
            book.synced = false;
        }
        let mut observations = self.runtime.observe();
        let mut inventory = Some(HashSet::new());
        while let Some(observation) = observations.next().await {
            if !self.may_act() {
                return;
            }
            match observation {
                Observation::Stack(seen) => {
                    if let Some(inventory) = &mut inventory {
                        inventory.insert(seen.id);
                    }
                    self.seen(&seen, inventory.is_none());
                }
                Observation::Synced => {
                    if let Some(inventory) = inventory.take() {
                        self.synced(&inventory);
                    }
                }
                Observation::Gone(id) => {
                    if let Some(inventory) = &mut inventory {
                        inventory.remove(&id);
                    }
                    self.gone(id);
                }
            }
        }
    }

    fn seen(self: &SharedEngine, seen: &ObservedStack, complete: bool) {
        {
            let mut book = self.book.lock();
            let round = book.round;
            let Some(entry) = book.entries.get_mut(&seen.id) else {
                if complete {
                    self.remove_orphan(&mut book, seen.id);
                }
                return;
            };
            let ended = matches!(seen.state, RuntimeState::Ended { .. });
            entry.seen = match seen.state {
                RuntimeState::Ended { .. } => Seen::Ended,
                RuntimeState::Incomplete if entry.stack.observed.phase == Phase::Creating => {
                    Seen::Absent
                }
                RuntimeState::Incomplete => Seen::Lost,
                RuntimeState::Starting { .. } | RuntimeState::Running { .. } => Seen::Present,
            };
            entry.accepted_in = round;
            // How a stack ends that we end ourselves is told by why we do.
            if !matches!(entry.work, Some((Work::Stopping, _))) {
                let observed = lifecycle::observe(&entry.stack.observed, seen, self.clock.wall());
                self.settle(entry, observed);
            }
            let observed = &entry.stack.observed;
            if observed.node.is_some() || observed.phase != Phase::Creating {
                entry.decide(Ok(()));
            }
            if ended {
                book.uncount(seen.id);
            }
        }
        self.drive(seen.id);
    }

    /// The inventory is complete: what it does not name is not there, and what we do not know is
    /// nobody's.
    fn synced(self: &SharedEngine, inventory: &HashSet<StackId>) {
        let known: Vec<_> = {
            let mut book = self.book.lock();
            book.synced = true;
            let round = book.round;
            for (id, entry) in &mut book.entries {
                let starting = matches!(entry.work, Some((Work::Starting, _)));
                if inventory.contains(id) || starting {
                    continue;
                }
                entry.seen = match entry.seen {
                    Seen::Unknown if entry.stack.observed.phase == Phase::Creating => Seen::Absent,
                    Seen::Unknown => Seen::Lost,
                    Seen::Present if entry.accepted_in < round => Seen::Lost,
                    other => other,
                };
            }
            let orphans: Vec<_> =
                inventory.iter().filter(|id| !book.entries.contains_key(id)).copied().collect();
            let count = orphans.len();
            tracing::info!(stacks = inventory.len(), orphans = count, "the runtime is synced");
            for id in orphans {
                self.remove_orphan(&mut book, id);
            }
            book.entries.keys().copied().collect()
        };
        for id in known {
            self.drive(id);
        }
    }

    fn gone(self: &SharedEngine, id: StackId) {
        {
            let mut book = self.book.lock();
            let Some(entry) = book.entries.get_mut(&id) else { return };
            if entry.seen == Seen::Present {
                entry.seen = Seen::Lost;
            }
        }
        self.drive(id);
    }

    /// Removes what runs and has no row: left by a crash between a removal's write and its end, or
    /// by a database that was put back from an older copy. Tried until it is gone, since the runtime
    /// need not report it again; never while another server may have made it.
    fn remove_orphan(self: &SharedEngine, book: &mut Book, id: StackId) {
        if !book.orphans.insert(id) {
            return;
        }
        tracing::warn!(stack = %id, "removing a stack that has no row");
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut attempts = 0;
            loop {
                if shared.may_act() && shared.holds_lease() {
                    match shared.runtime.remove(id, Duration::ZERO).await {
                        Ok(()) => break,
                        Err(error) => {
                            tracing::warn!(stack = %id, error = error.operator, "it could not be removed yet");
                        }
                    }
                }
                let again = shared.clock.boot().after(backoff(attempts));
                tokio::select! {
                    () = shared.clock.sleep_until(again) => attempts += 1,
                    () = shared.stop.cancelled() => return,
                }
            }
            shared.book.lock().orphans.remove(&id);
        });
    }
}
