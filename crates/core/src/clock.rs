//! Time as a port: the engine reads it here and never from the system, so that tests can hold it.

use std::time::Duration;

use crate::Timestamp;
use crate::runtime::BoxFuture;

/// A reading of a clock that only moves forward, also while the machine is suspended.
///
/// Deadlines are kept on this scale, so that a step of the wall clock ends no stack early. It has
/// no meaning across a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// This reading, `by` later.
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// How long until `later`; zero when it has passed.
    pub fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for people and for the database.
    fn wall(&self) -> Timestamp;

    /// Time since boot, for deadlines.
    fn boot(&self) -> BootTime;

    /// Completes when `boot` has reached `deadline`.
    fn sleep_until(&self, deadline: BootTime) -> BoxFuture<'static, ()>;
}
