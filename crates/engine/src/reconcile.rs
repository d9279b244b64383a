//! Takes the next step for a stack, again and again, until what is seen is what is wanted.
//!
//! A pass has no input but a stack's id: it looks at what is known, asks
//! [`stackd_core::lifecycle::next`], and begins what that says. What it begins reports back here
//! when it ends. Passes come from callers, observations, timers and the sweep alike, and one too
//! many changes nothing.

use std::sync::Arc;
use std::time::Duration;

use stackd_core::clock::BootTime;
use stackd_core::event::EventKind;
use stackd_core::isolation::pids_limit;
use stackd_core::lifecycle::{self, Seen, Step, Work};
use stackd_core::runtime::{EnsureRequest, ErrorKind};
use stackd_core::stack::{Condition, reason};
use stackd_core::{Desired, RuntimeError, StackId};
use stackd_store::Change;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::book::{Entry, SharedEngine};
use crate::shared::Shared;
use crate::starts::Turn;

/// How long to wait before a failed call of the runtime is made again: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

pub(crate) fn backoff(attempts: u32) -> Duration {
    let (first, longest) = RETRY;
    first.saturating_mul(1 << attempts.min(10)).min(longest)
}

impl Shared {
    /// Takes the next step for a stack.
    pub(crate) fn drive(self: &SharedEngine, id: StackId) {
        if !self.may_act() {
            return;
        }
        {
            let mut book = self.book.lock();
            let now = self.clock.boot();
            let Some(entry) = book.entries.get_mut(&id) else { return };
            let mut step = lifecycle::next(&entry.facts(now));
            if step == Step::Expire {
                self.expire(entry);
                step = lifecycle::next(&entry.facts(now));
            }
            self.begin(entry, step);
            self.arm(&mut book, id, now);
        }
        self.flush(id);
    }

    fn begin(self: &SharedEngine, entry: &mut Entry, step: Step) {
        let id = entry.stack.id;
        let before = entry.work.take();
        let (work, task) = match step {
            Step::Wait | Step::Expire => {
                entry.work = before;
                return;
            }
            Step::Start => {
                let shared = Arc::clone(self);
                let request = self.ensure_request(entry);
                let tenant = entry.stack.owner.tenant.clone();
                let task = self.tasks.spawn(async move {
                    let result = shared.start(&tenant, request).await;
                    shared.started(id, result);
                });
                (Work::Starting, task)
            }
            Step::Fail(condition) => (Work::Stopping, self.stop(id, before, Some(condition))),
            Step::CleanUp => (Work::Stopping, self.stop(id, before, None)),
            Step::Remove => {
                let shared = Arc::clone(self);
                let grace = entry.grace;
                let wait = entry.retry_at.take();
                let task = self.tasks.spawn(async move {
                    give_up(before).await;
                    if let Some(at) = wait {
                        tokio::select! {
                            () = shared.clock.sleep_until(at) => {}
                            () = shared.stop.cancelled() => return,
                        }
                    }
                    if !shared.may_act() {
                        return;
                    }
                    let result = shared.runtime.remove(id, grace).await;
                    shared.removed(id, result);
                });
                (Work::Removing, task)
            }
        };
        entry.work = Some((work, task));
    }

    fn stop(
        self: &SharedEngine,
        id: StackId,
        before: Option<(Work, JoinHandle<()>)>,
        failure: Option<Condition>,
    ) -> JoinHandle<()> {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            give_up(before).await;
            if !shared.may_act() {
                return;
            }
            let mut attempts = 0;
            // What failed must not go on running: there is nothing else to do but to try again.
            while let Err(error) = shared.runtime.stop(id, Duration::ZERO).await {
                tracing::warn!(stack = %id, error = error.operator, "a stack could not be stopped yet");
                let again = shared.clock.boot().after(backoff(attempts));
                tokio::select! {
                    () = shared.clock.sleep_until(again) => attempts += 1,
                    () = shared.stop.cancelled() => return,
                }
                if !shared.may_act() {
                    return;
                }
            }
            // A stack that was never accepted holds its ports still.
            shared.runtime.unclaim_ports(id);
            shared.stopped(id, failure);
        })
    }

    fn ensure_request(&self, entry: &Entry) -> EnsureRequest {
        let stack = &entry.stack;
        EnsureRequest {
            id: stack.id,
            generation: stack.generation,
            epoch: self.runtime_epoch(),
            spec: stack.spec.told(),
            ports: stack.ports.clone(),
            runtime_class: stack.runtime_class.clone(),
            labels: stack.labels.clone(),
            pids_limit: pids_limit(self.config.pids_limit, &stack.spec.restrictions),
            disk_bytes: stack.requested.disk_bytes,
            profile: self.config.profile,
        }
    }

    /// The epoch toward the runtime: nobody else asks one of a machine whose only server this is,
    /// also when the next server there has another database.
    fn runtime_epoch(&self) -> u64 {
        let of_machine = self.runtime.capabilities().machine.is_some();
        if self.right.alone && of_machine { 0 } else { self.right.epoch }
    }

    async fn start(
        self: &SharedEngine,
        tenant: &str,
        request: EnsureRequest,
    ) -> Result<(), RuntimeError> {
        for container in request.spec.all_containers() {
            self.runtime.prepare(&container.image, container.image_pull_policy).await?;
        }
        let _slot = self.slot(tenant, request.id).await;
        if !self.may_act() {
            // Whoever leads starts it; this task is given up with the term.
            return std::future::pending().await;
        }
        self.runtime.ensure(request).await
    }

    /// Waits for a start slot, visibly.
    async fn slot(self: &SharedEngine, tenant: &str, id: StackId) -> Slot {
        let turn = self.book.lock().starts.enter(tenant, id);
        let mut slot = Slot { shared: Arc::clone(self), id, turn: None };
        if let Turn::Later(turn) = turn {
            self.note(id, Condition::new(reason::QUEUED, "waiting for a start slot"));
            // The queue keeps the sender until the turn comes or `Slot` gives up: no error.
            let _ = slot.turn.insert(turn).await;
            slot.turn = None;
            self.note(id, Condition::new(reason::CONTAINER_CREATING, "the stack is being started"));
        }
        slot
    }

    /// Shows a condition that is not worth an event or a write.
    fn note(&self, id: StackId, condition: Condition) {
        let mut book = self.book.lock();
        let Some(entry) = book.entries.get_mut(&id) else { return };
        if entry.stack.desired == Desired::Running && entry.stack.observed.phase.is_active() {
            entry.stack.observed.condition = Some(condition);
            self.publish(&entry.stack);
        }
    }

    fn started(self: &SharedEngine, id: StackId, result: Result<(), RuntimeError>) {
        {
            let mut book = self.book.lock();
            let round = book.round;
            let now = self.clock.boot();
            let Some(entry) = book.entries.get_mut(&id) else { return };
            if matches!(entry.work, Some((Work::Starting, _))) {
                entry.work = None;
            }
            match result {
                Ok(()) => {
                    entry.accepted_in = round;
                    entry.attempts = 0;
                    if entry.seen == Seen::Absent {
                        entry.seen = Seen::Present;
                    }
                }
                Err(error) => self.start_failed(entry, error, now),
            }
        }
        self.drive(id);
    }

    fn start_failed(&self, entry: &mut Entry, error: RuntimeError, now: BootTime) {
        let (id, kind, reason) = (entry.stack.id, error.kind, error.condition.reason.as_str());
        let told = entry.stack.observed.condition.as_ref() == Some(&error.condition);
        if told && matches!(kind, ErrorKind::Saturated | ErrorKind::Retry) {
            tracing::debug!(stack = %id, ?kind, reason, error = error.operator, "still not started");
        } else {
            let error = &error.operator;
            tracing::warn!(stack = %id, ?kind, reason, error, "a stack could not be started");
        }
        // Nobody was told that it is accepted, so that it can still be refused: whoever waits for
        // the verdict withdraws it.
        let mut refused = false;
        if matches!(error.kind, ErrorKind::Rejected | ErrorKind::Saturated) {
            refused = entry.verdict.is_some();
            entry.decide(Err(error.clone()));
        }
        match error.kind {
            ErrorKind::Rejected if refused => {
                entry.retry_at = Some(now.after(RETRY.1));
            }
            ErrorKind::Rejected | ErrorKind::Failed => entry.failure = Some(error.condition),
            ErrorKind::Saturated | ErrorKind::Retry => {
                entry.retry_at = Some(now.after(backoff(entry.attempts)));
                entry.attempts += 1;
                let mut observed = entry.stack.observed.clone();
                observed.condition = Some(error.condition);
                self.settle(entry, observed);
            }
        }
    }

    fn stopped(self: &SharedEngine, id: StackId, failure: Option<Condition>) {
        {
            let mut book = self.book.lock();
            let Some(entry) = book.entries.get_mut(&id) else { return };
            entry.work = None;
            entry.seen = Seen::Ended;
            if let Some(condition) = failure
                && entry.stack.observed.phase.is_active()
            {
                let observed =
                    lifecycle::failed(&entry.stack.observed, condition, self.clock.wall());
                self.settle(entry, observed);
            }
            book.uncount(id);
        }
        self.drive(id);
    }

    fn removed(self: &SharedEngine, id: StackId, result: Result<(), RuntimeError>) {
        {
            let mut book = self.book.lock();
            let now = self.clock.boot();
            let Some(entry) = book.entries.get_mut(&id) else { return };
            entry.work = None;
            match result {
                Ok(()) => {
                    entry.removed = true;
                    entry.pending.push(Change::Event(self.event(&entry.stack, EventKind::Removed)));
                    entry.pending.push(Change::RemoveStack(id));
                }
                Err(error) => {
                    tracing::warn!(stack = %id, error = error.operator, "a stack could not be removed yet");
                    entry.retry_at = Some(now.after(backoff(entry.attempts)));
                    entry.attempts += 1;
                }
            }
        }
        self.drive(id);
    }

    /// A deadline is kept from memory, also while the database is away: the stack goes now, its
    /// row when it can be written.
    fn expire(&self, entry: &mut Entry) {
        tracing::info!(stack = %entry.stack.id, "stack expired");
        entry.stack.desired = Desired::Gone;
        entry.stack.generation += 1;
        entry.stack.updated_at = self.clock.wall();
        entry.grace = Duration::ZERO;
        entry.begin_anew();
        entry.pending.push(Change::Desire {
            id: entry.stack.id,
            desired: Desired::Gone,
            generation: entry.stack.generation,
            at: entry.stack.updated_at,
        });
        entry.pending.push(Change::Event(self.event(&entry.stack, EventKind::Expired)));
        self.runtime.close_ports(entry.stack.id);
        self.hide(entry.stack.id);
    }
}

/// Ends a start under way and waits until it has let go of the runtime.
async fn give_up(before: Option<(Work, JoinHandle<()>)>) {
    if let Some((Work::Starting, task)) = before {
        task.abort();
        // An aborted task is an error here, and the expected one.
        let _ = task.await;
    }
}

/// A start slot, or a place in the queue for one; given back when dropped.
struct Slot {
    shared: SharedEngine,
    id: StackId,
    /// What is waited for; none once the slot is taken.
    turn: Option<oneshot::Receiver<()>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut book = self.shared.book.lock();
        // The turn may have come after the last look at it.
        let taken = self.turn.as_mut().is_none_or(|turn| turn.try_recv().is_ok());
        if taken { book.starts.leave() } else { book.starts.give_up(self.id) }
    }
}
