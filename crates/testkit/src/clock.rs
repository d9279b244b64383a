//! A time that stands still until a test moves it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use stackd_core::clock::BootTime;
use stackd_core::runtime::BoxFuture;
use stackd_core::{Clock, Timestamp};
use tokio::sync::watch;

/// A clock that is moved by hand. Clones show the same time.
#[derive(Debug, Clone)]
pub struct ManualClock {
    wall: Arc<Mutex<Timestamp>>,
    boot: Arc<watch::Sender<BootTime>>,
}

impl ManualClock {
    /// A clock at this wall-clock time, an hour after boot.
    pub fn at(wall: Timestamp) -> Self {
        let (boot, _) = watch::channel(BootTime(Duration::from_secs(3600)));
        Self { wall: Arc::new(Mutex::new(wall)), boot: Arc::new(boot) }
    }

    /// Lets time pass: both readings move, and who slept until then wakes up.
    pub fn advance(&self, by: Duration) {
        *self.wall.lock() += by;
        self.boot.send_modify(|now| *now = now.after(by));
    }

    /// Sets the wall clock, as an administrator or a time service does. Nothing else moves.
    pub fn set_wall(&self, to: Timestamp) {
        *self.wall.lock() = to;
    }

    /// How many wait for a time to come.
    pub fn sleepers(&self) -> usize {
        self.boot.receiver_count()
    }
}

impl Default for ManualClock {
    /// The moment of the provisioner document's examples.
    fn default() -> Self {
        Self::at("2026-02-10T02:02:26.535664Z".parse().expect("a time"))
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        *self.wall.lock()
    }

    fn boot(&self) -> BootTime {
        *self.boot.borrow()
    }

    fn sleep_until(&self, deadline: BootTime) -> BoxFuture<'static, ()> {
        let mut boot = self.boot.subscribe();
        Box::pin(async move {
            if boot.wait_for(|now| *now >= deadline).await.is_err() {
                // The clock is gone with its test: no deadline ever comes.
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_wakes_when_its_time_has_come_and_not_before() {
        let clock = ManualClock::default();
        let deadline = clock.boot().after(Duration::from_secs(10));
        let mut sleep = clock.sleep_until(deadline);
        clock.advance(Duration::from_secs(9));
        assert!(futures_util::poll!(&mut sleep).is_pending());
        clock.set_wall("2030-01-01T00:00:00Z".parse().unwrap());
        assert!(futures_util::poll!(&mut sleep).is_pending());
        clock.advance(Duration::from_secs(1));
        crate::within("the sleeper wakes", sleep).await;
    }
}
