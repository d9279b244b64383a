//! What happens to a real runtime by accident, on demand.

use std::sync::Arc;

use stackd_core::port::Protocol;
use stackd_core::runtime::{ErrorKind, ObservedStack, Outcome};
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId};

use super::SimulatedRuntime;
use super::state::Shared;

/// How [`Handle::end`] lets a stack end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// With which code.
    pub exit_code: Option<i32>,
    /// Why.
    pub condition: Condition,
}

impl End {
    /// Every container ended with 0.
    pub fn completed() -> Self {
        let condition = Condition::new(reason::COMPLETED, "every container ended with code 0");
        Self { outcome: Outcome::Completed, exit_code: Some(0), condition }
    }

    /// A container ended with this code.
    pub fn failed(exit_code: i32) -> Self {
        let message = format!("container ended with code {exit_code}");
        let condition = Condition::new(reason::ERROR, message);
        Self { outcome: Outcome::Failed, exit_code: Some(exit_code), condition }
    }

    /// The machine is gone.
    pub fn node_lost() -> Self {
        let condition = Condition::new(reason::LOST, "the machine is gone");
        Self { outcome: Outcome::NodeLost, exit_code: None, condition }
    }
}

/// Makes things happen in a [`SimulatedRuntime`]. Clones act on the same runtime.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Lets a stack end by itself. False when it is unknown or has ended already.
    pub fn end(&self, id: StackId, end: End) -> bool {
        self.shared.end(id, end.outcome, end.exit_code, end.condition)
    }

    /// Makes a running stack ready or not ready for traffic.
    pub fn set_ready(&self, id: StackId, ready: bool) -> bool {
        self.shared.set_ready(id, ready)
    }

    /// Lets a stack vanish and says so to observers, as when somebody removed it by hand.
    pub fn vanish(&self, id: StackId) -> bool {
        self.shared.vanish(id, true)
    }

    /// Lets a stack vanish without a word: only the next inventory shows it.
    pub fn forget(&self, id: StackId) -> bool {
        self.shared.vanish(id, false)
    }

    /// Ends every stream of observations. Calls go on to work, and a new stream can be asked for.
    pub fn lose_connection(&self) {
        self.shared.cut();
    }

    /// Makes the runtime unreachable, or reachable again: every call is answered with
    /// [`ErrorKind::Retry`], and streams of observations end at once.
    pub fn set_reachable(&self, reachable: bool) {
        self.shared.set_reachable(reachable);
    }

    /// Lets the next start fail with this kind of error. Further calls queue up.
    pub fn fail_next(&self, kind: ErrorKind) {
        let condition = Condition::new(reason::START_ERROR, "failed on demand");
        self.fail_next_with(RuntimeError::new(kind, condition, "failed on demand"));
    }

    /// Lets the next start fail with this error.
    pub fn fail_next_with(&self, error: RuntimeError) {
        self.shared.lock().failures.push_back(error);
    }

    /// Lets new stacks find no machine, or find one again.
    pub fn set_room(&self, room: bool) {
        self.shared.lock().full = !room;
    }

    /// Lets nothing be removed, or be removed again: removals are answered with
    /// [`ErrorKind::Retry`].
    pub fn set_removable(&self, removable: bool) {
        self.shared.lock().unremovable = !removable;
    }

    /// Lets a foreign process hold these node ports, and no others.
    pub fn hold_ports(&self, ports: impl IntoIterator<Item = (Protocol, u16)>) {
        self.shared.lock().foreign = ports.into_iter().collect();
    }

    /// The node ports that stacks hold here.
    pub fn claimed_ports(&self) -> Vec<(Protocol, u16)> {
        let mut ports: Vec<_> = self.shared.lock().held.keys().copied().collect();
        ports.sort_unstable();
        ports
    }

    /// A stack as observers see it.
    pub fn get(&self, id: StackId) -> Option<ObservedStack> {
        self.shared.lock().stacks.get(&id).map(|sim| sim.observed.clone())
    }

    /// How many stacks are here, ended ones too.
    pub fn count(&self) -> usize {
        self.shared.lock().stacks.len()
    }

    /// How often a start was asked for, all stacks together; repeated requests count.
    pub fn ensure_calls(&self) -> u64 {
        self.shared.lock().ensure_calls
    }

    /// How often a removal was refused on demand.
    pub fn refused_removals(&self) -> u64 {
        self.shared.lock().refused_removals
    }

    /// The runtime as it is after its machine's service was started anew: observers are cut off,
    /// and the stacks are there still (`keep`) or not. The runtime before must not be used further.
    pub fn restarted(&self, keep: bool) -> SimulatedRuntime {
        self.shared.cut();
        let mut state = self.shared.lock();
        let before = std::mem::take(&mut *state);
        drop(state);
        let next = Shared::new(self.shared.config.clone());
        if keep {
            *next.lock() = before;
        } else {
            next.lock().foreign = before.foreign;
        }
        let shared = Arc::new(next);
        shared.resume_starts(|id, run| {
            tokio::spawn(SimulatedRuntime::drive(Arc::clone(&shared), id, run));
        });
        SimulatedRuntime { shared }
    }
}
