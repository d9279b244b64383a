//! The engine's own view: every stack with what was seen of it and what is being done for it, and
//! what all of them hold together. One lock guards it; nothing is awaited under that lock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use stackd_core::admission::Usage;
use stackd_core::clock::BootTime;
use stackd_core::event::EventKind;
use stackd_core::lifecycle::{Facts, Seen, Work};
use stackd_core::stack::{Condition, reason};
use stackd_core::{Desired, Phase, RuntimeError, Stack, StackId, Timestamp};
use stackd_store::Change;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::config::EngineConfig;
use crate::ports::Ports;
use crate::starts::Starts;

/// A stack, and what the engine knows of it beyond its row.
pub(crate) struct Entry {
    pub(crate) stack: Stack,
    pub(crate) seen: Seen,
    /// The observation round in which the runtime accepted it; an inventory of that round or an
    /// earlier one may not know it yet.
    pub(crate) accepted_in: u64,
    /// Why it has failed, though what runs of it may not have ended yet.
    pub(crate) failure: Option<Condition>,
    pub(crate) work: Option<(Work, JoinHandle<()>)>,
    pub(crate) attempts: u32,
    pub(crate) retry_at: Option<BootTime>,
    pub(crate) expires: BootTime,
    pub(crate) start_by: BootTime,
    pub(crate) place_by: BootTime,
    /// Who waits for the runtime's word on whether it takes the stack.
    pub(crate) verdict: Option<oneshot::Sender<Result<(), RuntimeError>>>,
    pub(crate) armed: Option<BootTime>,
    /// How long its containers may take to end when it is removed.
    pub(crate) grace: Duration,
    pub(crate) removed: bool,
    /// A caller's delete is being written.
    pub(crate) deleting: bool,
    /// Whether its resources count against quota and room.
    pub(crate) counted: bool,
    /// Changes that are to be written, in order, and whether some are being written.
    pub(crate) pending: Vec<Change>,
    pub(crate) flushing: bool,
}

impl Entry {
    /// A stack that was accepted just now, or loaded (`seen` unknown).
    pub(crate) fn new(stack: Stack, seen: Seen, times: Times) -> Self {
        Self {
            counted: stack.desired == Desired::Running && stack.observed.phase.is_active(),
            stack,
            seen,
            accepted_in: 0,
            failure: None,
            work: None,
            attempts: 0,
            retry_at: None,
            expires: times.expires,
            start_by: times.start_by,
            place_by: times.place_by,
            verdict: None,
            armed: None,
            grace: Duration::ZERO,
            removed: false,
            deleting: false,
            pending: Vec::new(),
            flushing: false,
        }
    }

    pub(crate) fn facts(&self, now: BootTime) -> Facts {
        Facts {
            desired: self.stack.desired,
            phase: self.stack.observed.phase,
            seen: self.seen,
            expired: now >= self.expires,
            start_overdue: now >= self.start_by,
            unplaced: self.no_place().filter(|_| now >= self.place_by).cloned(),
            backing_off: self.retry_at.is_some_and(|at| now < at),
            failure: self.failure.clone(),
            work: self.work.as_ref().map(|(work, _)| *work),
            removed: self.removed,
        }
    }

    /// Why no machine takes it, while none does.
    pub(crate) fn no_place(&self) -> Option<&Condition> {
        let observed = &self.stack.observed;
        let waits = observed.phase == Phase::Creating && observed.node.is_none();
        observed.condition.as_ref().filter(|c| waits && c.reason == reason::UNSCHEDULABLE)
    }

    /// Tells who waits whether the runtime takes the stack.
    pub(crate) fn decide(&mut self, verdict: Result<(), RuntimeError>) {
        if let Some(waiting) = self.verdict.take() {
            // It may have waited long enough.
            let _ = waiting.send(verdict);
        }
    }

    /// What is wanted has changed: how often something else has failed is no reason to wait.
    pub(crate) fn begin_anew(&mut self) {
        self.retry_at = None;
        self.attempts = 0;
    }

    /// It is not wanted any more, and that is durable. What was noted of it meanwhile is still
    /// written, since it may give ports back, but is no news.
    pub(crate) fn unwanted(&mut self, generation: u64, at: Timestamp, grace: Duration) {
        self.stack.desired = Desired::Gone;
        self.stack.generation = generation;
        self.stack.updated_at = at;
        self.grace = grace;
        self.begin_anew();
        self.pending.retain_mut(|change| match change {
            Change::Observe { generation: of, .. } => {
                *of = generation;
                true
            }
            Change::Event(event) => event.kind != EventKind::Changed,
            _ => true,
        });
    }

    /// When time alone may change the next step.
    pub(crate) fn wake_at(&self, now: BootTime) -> Option<BootTime> {
        let retry = self.retry_at.filter(|at| *at > now);
        if self.stack.desired == Desired::Gone {
            return retry;
        }
        let creating = self.stack.observed.phase == Phase::Creating;
        let start_by = Some(self.start_by).filter(|at| creating && *at > now);
        let place_by = Some(self.place_by).filter(|at| *at > now && self.no_place().is_some());
        [Some(self.expires), start_by, place_by, retry].into_iter().flatten().min()
    }
}

/// A stack's deadlines on the clock that only moves forward.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) expires: BootTime,
    pub(crate) start_by: BootTime,
    pub(crate) place_by: BootTime,
}

impl Times {
    /// Carries a stack's wall-clock times over; the wall clock is trusted here only, when a stack
    /// is made or loaded.
    pub(crate) fn of(
        stack: &Stack,
        config: &EngineConfig,
        wall: Timestamp,
        boot: BootTime,
    ) -> Self {
        let until = |at: Timestamp| Duration::try_from(at.duration_since(wall)).unwrap_or_default();
        let age = Duration::try_from(wall.duration_since(stack.created_at)).unwrap_or_default();
        Self {
            expires: boot.after(until(stack.expires_at)),
            start_by: boot.after(config.start_timeout.saturating_sub(age)),
            place_by: boot.after(config.schedule_timeout.saturating_sub(age)),
        }
    }
}

/// All stacks, and what they hold together.
pub(crate) struct Book {
    pub(crate) entries: HashMap<StackId, Entry>,
    pub(crate) ports: Ports,
    pub(crate) used: Usage,
    pub(crate) starts: Starts,
    pub(crate) timers: BTreeSet<(BootTime, StackId)>,
    /// The current observation round, and whether its inventory is complete.
    pub(crate) round: u64,
    pub(crate) synced: bool,
    /// What has no row and is being removed.
    pub(crate) orphans: HashSet<StackId>,
}

impl Book {
    /// Sets when to look at a stack again. True when the first timer of all has changed.
    pub(crate) fn arm(&mut self, id: StackId, now: BootTime) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let at = entry.wake_at(now);
        let before = std::mem::replace(&mut entry.armed, at);
        if before == at {
            return false;
        }
        let first = self.timers.first().copied();
        if let Some(before) = before {
            self.timers.remove(&(before, id));
        }
        if let Some(at) = at {
            self.timers.insert((at, id));
        }
        self.timers.first().copied() != first
    }

    /// Takes the timers that are due.
    pub(crate) fn due(&mut self, now: BootTime) -> Vec<StackId> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, id));
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.armed = None;
            }
            due.push(id);
        }
        due
    }

    /// Gives back what a stack counts for.
    pub(crate) fn uncount(&mut self, id: StackId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if std::mem::replace(&mut entry.counted, false) {
            let requested = entry.stack.requested;
            self.used = self.used.without(&requested);
        }
    }

    /// Forgets a stack of which nothing is left.
    pub(crate) fn forget(&mut self, id: StackId) {
        self.uncount(id);
        if let Some(entry) = self.entries.remove(&id) {
            self.ports.give_back(&held(&entry.stack));
            if let Some(at) = entry.armed {
                self.timers.remove(&(at, id));
            }
        }
    }
}

/// The ports that a stack holds now: an ended one shows them still, but has given them back.
pub(crate) fn held(stack: &Stack) -> Vec<stackd_core::PortMapping> {
    if stack.observed.phase.is_active() { stack.ports.clone() } else { Vec::new() }
}

/// A handle that everything in the engine shares.
pub(crate) type SharedEngine = Arc<crate::shared::Shared>;
