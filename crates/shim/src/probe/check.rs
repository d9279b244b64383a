//! One probe of one container: counting successes and failures as Kubernetes does.

use std::time::{Duration, Instant};

use stackd_core::spec::{Probe, ProbeAction};

/// Kubernetes' default of a period, in seconds.
const PERIOD_SECONDS: u32 = 10;
const TIMEOUT_SECONDS: u32 = 1;
const FAILURE_THRESHOLD: u32 = 3;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Startup,
    Readiness,
    Liveness,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        }
    }
}

/// What a result means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing new.
    Same,
    /// The probe holds now, or holds no more.
    Changed,
    /// The stack is to be ended.
    Unhealthy,
}

/// A probe and its record.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) container: usize,
    pub(super) role: Role,
    pub(super) probe: Probe,
    /// Whether it holds; liveness holds until it fails.
    pub(super) holds: bool,
    /// It is not tried before the container's startup probe has held.
    pub(super) waits_for_startup: bool,
    /// It is tried no more.
    pub(super) stopped: bool,
    held_once: bool,
    successes: u32,
    failures: u32,
    retry: Duration,
    last_counted: Option<Instant>,
}

impl Check {
    pub(super) fn new(container: usize, role: Role, probe: Probe, has_startup: bool) -> Self {
        let retry = match probe.action {
            // A command costs a process each time.
            ProbeAction::Exec { .. } => Duration::from_millis(100),
            _ => Duration::from_millis(2),
        };
        Self {
            container,
            role,
            probe,
            holds: role == Role::Liveness,
            waits_for_startup: has_startup && role != Role::Startup,
            stopped: false,
            held_once: false,
            successes: 0,
            failures: 0,
            retry,
            last_counted: None,
        }
    }

    pub(super) fn initial_delay(&self) -> Duration {
        Duration::from_secs(self.probe.initial_delay_seconds.unwrap_or(0).into())
    }

    pub(super) fn timeout(&self) -> Duration {
        seconds(self.probe.timeout_seconds.unwrap_or(TIMEOUT_SECONDS))
    }

    fn period(&self) -> Duration {
        seconds(self.probe.period_seconds.unwrap_or(PERIOD_SECONDS))
    }

    /// Takes an attempt's result; says what it means and when to try again.
    pub(super) fn result(&mut self, succeeded: bool) -> (Verdict, Option<Duration>) {
        let before = self.holds;
        if succeeded {
            self.failures = 0;
            self.last_counted = None;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.probe.success_threshold.unwrap_or(1).max(1) {
                self.holds = true;
                self.held_once = true;
            }
            let verdict = if self.holds == before { Verdict::Same } else { Verdict::Changed };
            if self.role == Role::Startup && self.holds {
                self.stopped = true;
                return (verdict, None);
            }
            return (verdict, Some(self.period()));
        }
        self.successes = 0;
        // Tries between two periods are only there to notice the first success soon.
        if self.last_counted.is_none_or(|at| at.elapsed() >= self.period()) {
            self.last_counted = Some(Instant::now());
            self.failures = self.failures.saturating_add(1);
        }
        let next = if self.held_once || self.role == Role::Liveness {
            self.last_counted = None;
            self.period()
        } else {
            let retry = self.retry.min(self.period());
            self.retry = self.retry.mul_f32(1.5).min(Duration::from_secs(1));
            retry
        };
        if self.failures < self.probe.failure_threshold.unwrap_or(FAILURE_THRESHOLD).max(1) {
            return (Verdict::Same, Some(next));
        }
        match self.role {
            Role::Startup | Role::Liveness => {
                self.stopped = true;
                self.holds = false;
                (Verdict::Unhealthy, None)
            }
            Role::Readiness => {
                self.holds = false;
                let verdict = if before { Verdict::Changed } else { Verdict::Same };
                (verdict, Some(next))
            }
        }
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.max(1).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stackd_core::spec::ProbePort;

    fn check(role: Role) -> Check {
        let port = ProbePort { number: 80, name: None };
        let probe = Probe {
            action: ProbeAction::TcpSocket { port },
            initial_delay_seconds: None,
            period_seconds: None,
            timeout_seconds: None,
            success_threshold: None,
            failure_threshold: None,
        };
        Check::new(0, role, probe, false)
    }

    #[test]
    fn readiness_comes_with_the_first_success_and_goes_with_the_third_failure() {
        let mut check = check(Role::Readiness);
        let (verdict, next) = check.result(false);
        assert_eq!(verdict, Verdict::Same);
        assert!(next.is_some_and(|n| n < Duration::from_millis(100)), "{next:?}");
        let ten = Some(Duration::from_secs(10));
        assert_eq!(check.result(true), (Verdict::Changed, ten));
        assert!(check.holds);
        assert_eq!(check.result(false), (Verdict::Same, ten));
        assert_eq!(check.result(false), (Verdict::Same, ten));
        assert_eq!(check.result(false), (Verdict::Changed, ten));
        assert!(!check.holds);
    }

    #[test]
    fn tries_between_periods_do_not_count_as_failures() {
        let mut check = check(Role::Startup);
        for _ in 0..50 {
            assert_eq!(check.result(false).0, Verdict::Same);
        }
        assert_eq!(check.result(true), (Verdict::Changed, None));
    }

    #[test]
    fn liveness_ends_the_stack_after_three_failures() {
        let mut check = check(Role::Liveness);
        assert_eq!(check.result(false).0, Verdict::Same);
        assert_eq!(check.result(true).0, Verdict::Same);
        assert_eq!(check.result(false).0, Verdict::Same);
        assert_eq!(check.result(false).0, Verdict::Same);
        assert_eq!(check.result(false), (Verdict::Unhealthy, None));
    }
}
