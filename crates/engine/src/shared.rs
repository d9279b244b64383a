//! What all parts of the engine share, and the two things that they all do: show a stack to
//! readers, and write down what has changed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use stackd_core::admission::Admission;
use stackd_core::clock::BootTime;
use stackd_core::event::{EventKind, NewEvent};
use stackd_core::{Clock, Desired, Observed, Runtime, Stack, StackId};
use stackd_store::{Change, Store, StoreError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::book::{Book, Entry, SharedEngine};
use crate::command::Unavailable;
use crate::config::EngineConfig;
use crate::idempotency::Idempotency;
use crate::live::LiveStack;
use crate::term::Right;
use crate::view::View;

/// How long to wait before a failed write is tried again: first, and at most.
const WRITE_RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) admission: Admission,
    pub(crate) store: Store,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Locked before the view's live set where both are needed.
    pub(crate) book: Mutex<Book>,
    pub(crate) view: Arc<View>,
    pub(crate) idempotency: Idempotency,
    pub(crate) right: Right,
    /// A write has shown that another replica leads.
    pub(crate) superseded: Notify,
    /// The earliest timer has changed.
    pub(crate) timers_changed: Notify,
    /// Why the last write failed, while writes fail.
    pub(crate) store_fault: Mutex<Option<String>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Shared {
    /// Shows readers the present version of a stack, and gives it.
    pub(crate) fn publish(&self, stack: &Stack) -> Arc<LiveStack> {
        let seen = self.view.seen(stack);
        let mut live = self.view.live.write();
        // Once the term is over, the database decides what is shown.
        if !self.stop.is_cancelled() {
            live.put(Arc::clone(&seen));
        }
        drop(live);
        self.wake(stack.id);
        self.view.owners.wake(&stack.owner);
        seen
    }

    /// Hides a stack from all readers.
    pub(crate) fn hide(&self, id: StackId) {
        if !self.stop.is_cancelled() {
            self.view.hide(id);
        }
    }

    /// Lets everybody look again who waits for a change of a stack.
    pub(crate) fn wake(&self, id: StackId) {
        self.view.wake(id);
    }

    /// What is notified at the next change of a stack.
    pub(crate) fn waiter(&self, id: StackId) -> Arc<Notify> {
        self.view.waiter(id)
    }

    /// An event about a stack as it is now.
    pub(crate) fn event(&self, stack: &Stack, kind: EventKind) -> NewEvent {
        let condition = stack.observed.condition.as_ref();
        NewEvent {
            at: self.clock.wall(),
            stack: stack.id,
            kind,
            phase: stack.observed.phase,
            reason: condition.map(|c| c.reason.clone()),
            message: condition.map(|c| c.message.clone()),
        }
    }

    /// Takes over what is newly known of a stack: shows it, and notes it to be written. Ports and
    /// resources go back when the stack has ended.
    pub(crate) fn settle(&self, entry: &mut Entry, observed: Observed) {
        let before = &entry.stack.observed;
        // What becomes of a stack that nobody wants any more is nobody's news: showing it would
        // bring it back.
        if *before == observed || entry.stack.desired == Desired::Gone {
            return;
        }
        let word = |o: &Observed| o.condition.as_ref().map(|c| c.reason.clone());
        // A new wording alone (a pull's progress) is shown, but is not an event.
        let told = before.phase != observed.phase
            || before.node != observed.node
            || word(before) != word(&observed);
        let ended = before.phase.is_active() && !observed.phase.is_active();
        entry.stack.observed = observed;
        entry.stack.updated_at = self.clock.wall();
        self.publish(&entry.stack);
        if !told {
            return;
        }
        tracing::info!(
            stack = %entry.stack.id,
            phase = %entry.stack.observed.phase,
            reason = entry.stack.observed.condition.as_ref().map(|c| c.reason.as_str()),
            "stack changed"
        );
        entry.pending.push(Change::Observe {
            id: entry.stack.id,
            generation: entry.stack.generation,
            observed: entry.stack.observed.clone(),
            release_ports: ended,
            at: entry.stack.updated_at,
        });
        entry.pending.push(Change::Event(self.event(&entry.stack, EventKind::Changed)));
    }

    /// Writes what is noted for a stack, in order, for as long as it takes.
    pub(crate) fn flush(self: &SharedEngine, id: StackId) {
        let changes = {
            let mut book = self.book.lock();
            let Some(entry) = book.entries.get_mut(&id) else { return };
            // While a delete is being written, what happens meanwhile waits: told after it, it would
            // bring the stack back for who follows the events.
            if entry.flushing || entry.deleting || entry.pending.is_empty() {
                return;
            }
            entry.flushing = true;
            std::mem::take(&mut entry.pending)
        };
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            if shared.write_until_done(id, &changes).await {
                shared.written(id, &changes);
            }
        });
    }

    /// Writes until it is durable. False when the engine ends before, or the database refuses for
    /// good; the next start then finds out anew.
    async fn write_until_done(&self, id: StackId, changes: &[Change]) -> bool {
        let (mut pause, longest) = WRITE_RETRY;
        loop {
            match self.write(changes.to_vec()).await {
                Ok(()) => return true,
                // Who waits for this write need not wait for the database.
                Err(StoreError::Unavailable { .. }) => self.wake(id),
                Err(StoreError::Superseded) => return false,
                // Whoever made the database refuse it may mend that.
                Err(error @ StoreError::Refused(_)) => {
                    tracing::error!(%error, "a change of a stack cannot be written yet");
                    self.wake(id);
                }
                Err(error) => {
                    tracing::error!(error = %error, "a change of a stack was refused by the database");
                    return true;
                }
            }
            let again = self.clock.boot().after(pause);
            tokio::select! {
                () = self.clock.sleep_until(again) => {}
                () = self.stop.cancelled() => return false,
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// One write, with its outcome noted for [`crate::Health`].
    pub(crate) async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let result = self.store.write(changes).await;
        if matches!(result, Err(StoreError::Superseded)) {
            self.superseded.notify_one();
        }
        let mut fault = self.store_fault.lock();
        match &result {
            Err(StoreError::Unavailable { reason, operator }) => {
                if fault.as_ref() != Some(reason) {
                    tracing::error!(reason, operator, "the database cannot be written");
                }
                *fault = Some(reason.clone());
            }
            _ => {
                if fault.take().is_some() {
                    tracing::info!("the database can be written again");
                }
            }
        }
        result.map(|_| ())
    }

    fn written(self: &SharedEngine, id: StackId, changes: &[Change]) {
        {
            let mut book = self.book.lock();
            let book = &mut *book;
            for change in changes {
                match change {
                    Change::Observe { release_ports: true, .. } => {
                        let Some(entry) = book.entries.get(&id) else { continue };
                        book.ports.give_back(&entry.stack.ports);
                    }
                    Change::RemoveStack(_) => book.forget(id),
                    _ => {}
                }
            }
            if let Some(entry) = book.entries.get_mut(&id) {
                entry.flushing = false;
            }
        }
        self.wake(id);
        self.flush(id);
    }

    /// Sets when to look at a stack again.
    pub(crate) fn arm(&self, book: &mut Book, id: StackId, now: BootTime) {
        if book.arm(id, now) {
            self.timers_changed.notify_one();
        }
    }
}

/// How a failed write looks to a caller.
pub(crate) fn unavailable(error: StoreError) -> Unavailable {
    match error {
        StoreError::Unavailable { reason, .. } => Unavailable { reason },
        StoreError::Superseded => Unavailable::superseded(),
        other => refused(&other),
    }
}

/// The same for a write that the database refuses: why is for the log.
pub(crate) fn refused(error: &dyn std::fmt::Display) -> Unavailable {
    tracing::error!(%error, "the database refused a write");
    Unavailable { reason: "the database refused the write".to_owned() }
}
