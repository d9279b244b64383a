//! How often a user may make a stack: a fixed window that begins with the first one.
//!
//! It is kept in memory only. After a restart a user may make one more than allowed, once, which
//! is no reason to write a row for every create.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use stackd_core::clock::BootTime;

use crate::config::PlayerLimits;

/// Above this many, windows that are over are forgotten.
const MANY: usize = 4096;

#[derive(Default)]
pub(crate) struct Rate(Mutex<HashMap<String, Window>>);

#[derive(Clone, Copy)]
struct Window {
    ends: BootTime,
    used: u32,
}

impl Rate {
    /// Whether a user may make another stack now.
    pub(super) fn is_left(&self, user: &str, limits: &PlayerLimits, now: BootTime) -> bool {
        let windows = self.0.lock();
        let used = windows.get(user).filter(|w| now < w.ends).map_or(0, |w| w.used);
        used < limits.create_max
    }

    /// Uses up one; or tells how long the window lasts.
    pub(super) fn take(
        &self,
        user: &str,
        limits: &PlayerLimits,
        now: BootTime,
    ) -> Result<(), Duration> {
        let mut windows = self.0.lock();
        if windows.len() > MANY {
            windows.retain(|_, window| now < window.ends);
        }
        let fresh = Window { ends: now.after(limits.create_window), used: 0 };
        let window = windows.entry(user.to_owned()).or_insert(fresh);
        if now >= window.ends {
            *window = fresh;
        }
        if window.used >= limits.create_max {
            return Err(now.until(window.ends));
        }
        window.used += 1;
        Ok(())
    }

    /// How long the window lasts of a user who may make none now. Where nobody may make any there is
    /// none that ends.
    pub(super) fn left(&self, user: &str, limits: &PlayerLimits, now: BootTime) -> Duration {
        let windows = self.0.lock();
        windows.get(user).map_or(limits.create_window, |window| now.until(window.ends))
    }

    /// Gives back one that led to nothing.
    pub(super) fn give_back(&self, user: &str) {
        if let Some(window) = self.0.lock().get_mut(user) {
            window.used = window.used.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_begins_with_the_first_create() {
        let limits = PlayerLimits { create_max: 2, ..PlayerLimits::default() };
        let rate = Rate::default();
        let at = |seconds| BootTime(Duration::ZERO).after(Duration::from_secs(seconds));
        assert_eq!(rate.take("7", &limits, at(100)), Ok(()));
        assert_eq!(rate.take("7", &limits, at(130)), Ok(()));
        assert!(!rate.is_left("7", &limits, at(131)));
        assert_eq!(rate.take("7", &limits, at(131)), Err(Duration::from_secs(29)));
        assert_eq!(rate.take("8", &limits, at(131)), Ok(()));
        rate.give_back("7");
        assert_eq!(rate.take("7", &limits, at(132)), Ok(()));
        assert!(rate.is_left("7", &limits, at(160)));
        assert_eq!(rate.take("7", &limits, at(160)), Ok(()));
        assert_eq!(rate.left("7", &limits, at(161)), Duration::from_secs(59));
    }
}
