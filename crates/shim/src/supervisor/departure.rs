//! Leaving the first container's control groups, in which this process waited for its stack (see
//! [`crate::launch::cgroup::Nursery`]). The move makes whoever asks for it wait in the kernel, so a
//! helper asks. CPU is limited from then on: not before, or this process would be throttled too.

use std::os::fd::OwnedFd;
use std::time::Duration;

use stackd_core::stack::{Condition, reason};

use super::Supervisor;
use super::containers::whole;
use crate::fault::{At, Fault};
use crate::launch::cgroup::{Group, Limits, move_to};
use crate::poll::{Interest, Kind, Token};
use crate::sys::{self, Child, Side};

/// The number of the helper among the limits.
pub(crate) const HELPER: u64 = 2 << 32;

/// What is needed to leave.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The first container's group, until that container is started.
    pub(crate) container: Option<Group>,
    pub(crate) exits: Vec<OwnedFd>,
    pub(crate) helper: Option<Child>,
}

impl Supervisor {
    /// Has this process moved out, while it goes on.
    pub(crate) fn depart(&mut self) {
        if self.inside.is_none() {
            return;
        }
        // SAFETY: this process has one thread, and the child leaves by `exit`.
        match unsafe { sys::fork(0, None) } {
            Ok(Side::Child) => sys::exit(i32::from(self.leave("1").is_err())),
            Ok(Side::Parent(child)) => {
                let token = Token::new(Kind::Limit, HELPER);
                let added = self.poll.add(&child.pidfd, token, Interest::IN);
                if let Some(inside) = &mut self.inside {
                    inside.helper = Some(child);
                }
                if added.is_err() && !self.departed() {
                    self.not_limited();
                }
            }
            Err(_) => {
                if !self.departed() {
                    self.not_limited();
                }
            }
        }
    }

    /// Moves a process, by its number in this namespace, out of the group and limits the CPU of
    /// what stays.
    fn leave(&self, process: &str) -> Result<(), Fault> {
        let Some(inside) = &self.inside else { return Ok(()) };
        move_to(&inside.exits, process).at("leave a control group")?;
        let cpu_milli = whole(&self.plan).cpu_milli;
        self.group.limit(Limits { cpu_milli, ..Limits::default() })?;
        let group = inside.container.as_ref();
        let group = group.or(self.running.iter().find(|c| c.index == 0).map(|c| &c.group));
        let first = self.plan.containers.first().map_or(0, |c| c.cpu_milli);
        let limits = Limits { cpu_milli: first, ..Limits::default() };
        group.map_or(Ok(()), |group| group.limit(limits))
    }

    /// The helper has ended, or there is none: this process is out, or does it itself. False where
    /// neither worked.
    pub(crate) fn departed(&mut self) -> bool {
        let Some(inside) = &self.inside else { return true };
        let done = inside.helper.as_ref().is_some_and(|helper| {
            self.poll.remove(&helper.pidfd);
            sys::wait(helper).is_ok_and(|exit| exit.code == 0)
        });
        let left = if done { Ok(()) } else { self.leave("0") };
        self.inside = None;
        if let Err(fault) = &left {
            eprintln!("shim: {}: {fault}", self.plan.id);
        }
        left.is_ok()
    }

    /// Ends a stack whose limits could not all be set.
    pub(crate) fn not_limited(&mut self) {
        let text = "the machine could not limit the containers";
        self.stop(Duration::ZERO, Some(Condition::new(reason::START_ERROR, text)));
    }
}
