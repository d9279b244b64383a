//! What a stack has run into, and what it uses: told by the kernel where it can, looked at now and
//! then where it cannot (the disk).

use std::time::Duration;

use stackd_core::runtime::{RuntimeState, Usage};
use stackd_core::stack::{Condition, reason};

use super::{Stage, Supervisor, Timer};
use crate::launch::cell::place;
use crate::launch::cgroup::Signal;
use crate::launch::volumes;
use crate::poll::{Interest, Kind, Token};

const DISK_LOOK: Duration = Duration::from_secs(3);
const OOM_LOOK: Duration = Duration::from_millis(50);
/// The disk counts as full when less than this is left, or than a part of a small one: a large
/// write that does not fit may leave some 800 KiB.
const DISK_SLACK_BYTES: u64 = 1 << 20;
const DISK_SLACK_PART: u64 = 8;
/// The number of the process limit among the limits; that of a container's memory is its place
/// in the plan.
const PIDS: u64 = 1 << 32;

/// What has been run into.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pids: Option<Signal>,
    oom: Option<String>,
    pids_reached: bool,
    disk_full: Option<String>,
}

impl Watch {
    /// What was seen of memory is of a container that is gone.
    pub(crate) fn forget_memory(&mut self) {
        self.oom = None;
    }
}

fn interest(signal: &Signal) -> Interest {
    match signal {
        Signal::Event(_) => Interest::IN,
        Signal::Priority(_) => Interest::PRI,
    }
}

/// What a file system has run out of.
fn used_up(path: &str) -> Option<&'static str> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let slack = DISK_SLACK_BYTES.min(disk.f_blocks * disk.f_frsize / DISK_SLACK_PART);
    if disk.f_bavail * disk.f_frsize < slack {
        Some("space")
    } else if disk.f_files > 0 && disk.f_ffree == 0 {
        Some("inodes")
    } else {
        None
    }
}

impl Supervisor {
    /// Begins to watch the limits of the whole stack.
    pub(crate) fn watch_limits(&mut self) {
        // Version 1 counts a refusal where it was tried, version 2 where the limit is.
        if let Some(signal) = self.group.pids_signal() {
            signal.rearm();
            let _ = self.poll.add(signal.fd(), Token::new(Kind::Limit, PIDS), interest(&signal));
            self.limits.pids = Some(signal);
        }
        self.timers.after(DISK_LOOK, Timer::Disk);
    }

    /// Begins to watch the memory of a container.
    pub(crate) fn watch_memory(&self, index: usize, signal: Option<&Signal>) {
        if let Some(signal) = signal {
            signal.rearm();
            let token = Token::new(Kind::Limit, index as u64);
            let _ = self.poll.add(signal.fd(), token, interest(signal));
        }
    }

    pub(crate) fn limit_event(&mut self, id: u64) {
        if id == super::departure::HELPER {
            if !self.departed() {
                self.not_limited();
            }
            return;
        }
        if id == PIDS {
            if let Some(signal) = &self.limits.pids {
                signal.rearm();
            }
        } else if let Some(container) = self.running.iter().find(|c| c.index as u64 == id) {
            if let Some(signal) = &container.oom {
                signal.rearm();
            }
            // Version 1 tells before it kills.
            self.timers.after(OOM_LOOK, Timer::Memory);
        }
        self.look_at_memory();
        self.look_at_pids();
        self.look_again();
    }

    pub(crate) fn look_at_memory(&mut self) {
        if let Some(container) = self.running.iter().find(|c| c.group.oom_kills() > 0) {
            let name = &self.plan.containers[container.index].name;
            self.limits.oom =
                Some(format!("a process of container {name:?} was killed at its memory limit"));
        }
    }

    fn look_at_pids(&mut self) {
        let refused = self.group.pids_refused()
            + self.running.iter().map(|c| c.group.pids_refused()).sum::<u64>();
        self.limits.pids_reached = refused > 0;
    }

    /// The disk, and the volumes that have a size of their own.
    fn look_at_disks(&mut self) {
        let full = |what, left| format!("its {what} has no {left} left");
        let disk = used_up(place::DISK).map(|left| full("disk".to_owned(), left));
        let volume = || {
            self.plan.volumes.iter().find_map(|plan| {
                let left = used_up(&volumes::own_mount(plan)?)?;
                Some(full(format!("volume {:?}", plan.volume.name), left))
            })
        };
        self.limits.disk_full = disk.or_else(volume);
    }

    /// Looks at every limit.
    pub(crate) fn look_at_limits(&mut self) {
        self.look_at_pids();
        self.look_at_memory();
        self.look_at_disks();
    }

    /// Whether containers run that are not to be ended.
    pub(crate) fn is_watched(&self) -> bool {
        matches!(self.stage, Stage::Init(_) | Stage::Main)
    }

    /// Looks at what the kernel does not tell of, and goes on to.
    pub(crate) fn look_now_and_then(&mut self) {
        if !self.is_watched() {
            return;
        }
        self.look_at_limits();
        self.look_again();
        self.timers.after(DISK_LOOK, Timer::Disk);
    }

    /// Works out the state again while containers run, and tells it where it changed.
    pub(crate) fn look_again(&mut self) {
        if let Stage::Init(index) = self.stage {
            let condition = self.limit_condition().unwrap_or_else(|| self.initializing(index));
            let state = RuntimeState::Starting { condition: Some(condition) };
            if state != self.state {
                self.state = state;
                self.publish();
            }
            return;
        }
        if self.stage != Stage::Main {
            return;
        }
        let was_ready = !matches!(self.state, RuntimeState::Starting { .. });
        let ready = self.health.is_ready();
        let condition = self.limit_condition();
        let state = if was_ready || ready {
            let not_ready =
                || Condition::new(reason::NOT_READY, "a readiness probe does not succeed");
            let condition = if ready { condition } else { condition.or_else(|| Some(not_ready())) };
            RuntimeState::Running { ready, condition }
        } else {
            let waiting =
                || Condition::new(reason::NOT_READY, "containers run and are not ready yet");
            RuntimeState::Starting { condition: condition.or_else(|| Some(waiting())) }
        };
        if state == self.state {
            return;
        }
        if !was_ready && ready {
            self.tcp.open(&self.poll);
            self.udp.open(&self.poll);
        }
        self.state = state;
        self.publish();
    }

    /// The limit that it has run into, if it has.
    pub(crate) fn limit_condition(&self) -> Option<Condition> {
        if let Some(text) = &self.limits.oom {
            return Some(Condition::new(reason::OOM_KILLED, text.clone()));
        }
        if self.limits.pids_reached {
            let text = format!("it has reached its limit of {} processes", self.plan.pids_limit);
            return Some(Condition::new(reason::PIDS_LIMIT, text));
        }
        let text = self.limits.disk_full.clone()?;
        Some(Condition::new(reason::DISK_FULL, text))
    }

    pub(crate) fn usage(&self) -> Usage {
        let mut usage = self.group.usage();
        if let Ok(disk) = rustix::fs::statvfs(place::DISK) {
            usage.disk_bytes = disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize;
        }
        usage
    }
}
