//! Whether a download gets on. A registry that sends a byte now and then keeps every other clock
//! from running out.

use std::time::Duration;

use tokio::time::Instant;

/// What the rate is averaged over: a network may well be silent for a moment.
const WINDOW: Duration = Duration::from_secs(60);

/// Measures one download, over all its requests and the pauses between them.
#[derive(Debug)]
pub(super) struct Pace {
    least_bytes: u64,
    window_ends: Instant,
    bytes: u64,
}

impl Pace {
    /// With this many bytes a second as the least.
    pub(super) fn new(least_rate: u64, now: Instant) -> Self {
        let least_bytes = least_rate.saturating_mul(WINDOW.as_secs());
        Self { least_bytes, window_ends: now + WINDOW, bytes: 0 }
    }

    /// Counts what has come.
    pub(super) fn count(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// When the next answer of [`Pace::keeps_up`] is due.
    pub(super) fn window_ends(&self) -> Instant {
        self.window_ends
    }

    /// Whether enough has come; looked at as often as one likes.
    pub(super) fn keeps_up(&mut self, now: Instant) -> bool {
        if now < self.window_ends {
            return true;
        }
        let enough = self.bytes >= self.least_bytes;
        (self.window_ends, self.bytes) = (now + WINDOW, 0);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_not_enough() {
        let start = Instant::now();
        let mut pace = Pace::new(100, start);
        let mut at = start;
        for _ in 0..2 {
            pace.count(1);
            at += Duration::from_secs(29);
            assert!(pace.keeps_up(at), "the minute is not over");
        }
        pace.count(1);
        assert!(!pace.keeps_up(start + WINDOW));
    }

    #[test]
    fn bursts_are_averaged_and_each_minute_counts_anew() {
        let start = Instant::now();
        let mut pace = Pace::new(100, start);
        pace.count(6_000);
        assert!(pace.keeps_up(pace.window_ends()), "all of it came at once");
        pace.count(5_999);
        assert!(!pace.keeps_up(pace.window_ends()), "an earlier burst is no excuse");
        let mut any = Pace::new(0, start);
        assert!(any.keeps_up(any.window_ends()), "nothing is asked for");
    }
}
