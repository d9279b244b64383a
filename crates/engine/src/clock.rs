//! The machine's own clock.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use stackd_core::Clock;
use stackd_core::clock::BootTime;
use stackd_core::runtime::BoxFuture;

/// A sleep is cut into steps of this length: the executor's clock stands still while the machine is
/// suspended, `CLOCK_BOOTTIME` does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// Time from the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

fn boot() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    BootTime(Duration::new(seconds, nanos))
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn boot(&self) -> BootTime {
        boot()
    }

    fn sleep_until(&self, deadline: BootTime) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let left = boot().until(deadline);
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
            }
        })
    }
}
