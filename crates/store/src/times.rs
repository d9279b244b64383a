//! When events happened, in the order of their numbers.

use std::sync::atomic::{AtomicI64, Ordering};

use stackd_core::Timestamp;
use stackd_core::event::Event;

use crate::rows::{nanos, timestamp};

/// A step back of the clock that is smoothed out: 10 s.
const SMALL_STEP_NANOS: i64 = 10_000_000_000;

/// Times do not go back where events have met on their way to the writer, or where the clock was
/// put right by a little. A clock that was far ahead is not kept to.
#[derive(Debug)]
pub(crate) struct EventTimes {
    last: AtomicI64,
}

impl EventTimes {
    pub(crate) fn after(newest: Option<&Event>) -> Self {
        Self { last: AtomicI64::new(newest.map_or(i64::MIN, |newest| nanos(newest.event.at))) }
    }

    /// The time of the next event, which says that it happened at `at`.
    pub(crate) fn no_earlier(&self, at: Timestamp) -> Timestamp {
        let last = self.last.load(Ordering::Relaxed);
        let behind = last.saturating_sub(nanos(at));
        let at = match timestamp(last) {
            Some(last) if (0..SMALL_STEP_NANOS).contains(&behind) => last,
            _ => at,
        };
        self.last.store(nanos(at), Ordering::Relaxed);
        at
    }
}
