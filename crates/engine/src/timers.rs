//! One queue of deadlines for all stacks, and the slow sweep that looks at everything again.

use std::time::Duration;

use jiff::SignedDuration;

use crate::book::SharedEngine;
use crate::shared::Shared;
use crate::{idempotency, jobs};

/// How often everything is looked at, also when nothing was reported.
const SWEEP: Duration = Duration::from_secs(60);
/// How many sweeps lie between two prunings of the database.
const SWEEPS_A_PRUNE: u32 = 10;

impl Shared {
    /// Drives stacks whose time has come, until the engine ends.
    pub(crate) async fn run_timers(self: SharedEngine) {
        loop {
            let changed = self.timers_changed.notified();
            let (due, next) = {
                let mut book = self.book.lock();
                let due = book.due(self.clock.boot());
                (due, book.timers.first().map(|(at, _)| *at))
            };
            if !due.is_empty() {
                for id in due {
                    self.drive(id);
                }
                continue;
            }
            let sleep = async {
                match next {
                    Some(at) => self.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = changed => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Drives every stack from time to time, and forgets what is no longer needed.
    pub(crate) async fn run_sweeps(self: SharedEngine) {
        let mut sweeps = 0;
        loop {
            let next = self.clock.boot().after(SWEEP);
            tokio::select! {
                () = self.clock.sleep_until(next) => {}
                () = self.stop.cancelled() => return,
            }
            let known: Vec<_> = self.book.lock().entries.keys().copied().collect();
            for id in known {
                self.drive(id);
            }
            sweeps += 1;
            if sweeps % SWEEPS_A_PRUNE == 0 {
                self.prune().await;
            }
        }
    }

    async fn prune(&self) {
        let now = self.clock.wall();
        self.idempotency.prune(now);
        let longest = idempotency::KEEP.max(jobs::KEEP);
        let before = SignedDuration::try_from(longest)
            .ok()
            .and_then(|longest| now.checked_sub(longest).ok());
        let Some(before) = before else { return };
        self.view.jobs.prune(before);
        if let Err(error) = self.store.prune(self.config.keep_events, before).await {
            tracing::warn!(%error, "old rows could not be removed; they are tried again later");
        }
    }
}
