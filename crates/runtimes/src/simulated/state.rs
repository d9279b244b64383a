//! What the simulated runtime knows, behind one lock. Nothing here waits while it holds the lock.

use std::collections::{HashMap, HashSet, VecDeque};

use parking_lot::{Mutex, MutexGuard};
use stackd_core::isolation::Enforcement;
use stackd_core::port::{PortMapping, Protocol};
use stackd_core::runtime::{
    Capabilities, EnsureRequest, ErrorKind, Observation, ObservedStack, Outcome, Placement,
    PortsTaken, RuntimeState, Usage,
};
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId, Timestamp};
use tokio::sync::{mpsc, watch};

use super::directory::{Directory, Saved};
use super::{SimulatedConfig, now, unknown};

/// One simulated stack.
pub(super) struct Sim {
    pub(super) request: EnsureRequest,
    pub(super) observed: ObservedStack,
    pub(super) started_at: Timestamp,
    /// Which start this is; a timer of an earlier start does nothing.
    run: u64,
    /// Moves with every change, and is dropped with the stack: who waits for a start or for an end
    /// holds a receiver.
    changed: watch::Sender<()>,
}

impl Sim {
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.observed.state, RuntimeState::Ended { .. })
    }

    fn saved(&self) -> Saved {
        let (request, state) = (self.request.clone(), self.observed.state.clone());
        Saved { request, state, started_at: self.started_at }
    }
}

/// Everything that changes.
#[derive(Default)]
pub(super) struct State {
    pub(super) stacks: HashMap<StackId, Sim>,
    pub(super) held: HashMap<(Protocol, u16), StackId>,
    claims: HashMap<StackId, Vec<(Protocol, u16)>>,
    pub(super) foreign: HashSet<(Protocol, u16)>,
    pub(super) failures: VecDeque<RuntimeError>,
    pub(super) ensure_calls: u64,
    /// Where stacks are kept that other servers are to find.
    pub(super) directory: Option<Directory>,
    unreachable: bool,
    pub(super) full: bool,
    pub(super) unremovable: bool,
    pub(super) refused_removals: u64,
    newest_epoch: u64,
    runs: u64,
    observers: Vec<mpsc::UnboundedSender<Observation>>,
}

impl State {
    fn tell(&mut self, observation: &Observation) {
        self.observers.retain(|observer| observer.send(observation.clone()).is_ok());
    }

    fn release(&mut self, id: StackId) {
        for port in self.claims.remove(&id).unwrap_or_default() {
            self.held.remove(&port);
            if let Some(directory) = &self.directory {
                directory.give_back(port, id);
            }
        }
    }

    /// Takes a stack over that another server has started.
    fn take_over(&mut self, saved: Saved, placement: Placement) -> Option<u64> {
        let id = saved.request.id;
        let starting = matches!(saved.state, RuntimeState::Starting { .. });
        if !matches!(saved.state, RuntimeState::Ended { .. }) {
            let ports: Vec<_> = saved.request.ports.iter().map(|mapping| mapping.node()).collect();
            self.held.extend(ports.iter().map(|port| (*port, id)));
            self.claims.insert(id, ports);
        }
        self.runs += 1;
        let observed = ObservedStack {
            id,
            generation: saved.request.generation,
            state: saved.state,
            placement: Some(placement),
            restarts: 0,
        };
        let (changed, _) = watch::channel(());
        let (request, started_at, run) = (saved.request, saved.started_at, self.runs);
        self.stacks.insert(id, Sim { request, observed, started_at, run, changed });
        starting.then_some(run)
    }

    fn claim(&mut self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken> {
        let other = |port: &(Protocol, u16)| {
            self.foreign.contains(port) || self.held.get(port).is_some_and(|holder| *holder != id)
        };
        let wanted: Vec<_> = ports.iter().map(|mapping| mapping.node()).collect();
        let taken: Vec<_> = wanted.iter().copied().filter(other).collect();
        if !taken.is_empty() {
            return Err(PortsTaken(taken));
        }
        for port in wanted {
            if self.held.insert(port, id).is_none() {
                self.claims.entry(id).or_default().push(port);
            }
        }
        Ok(())
    }

    /// Changes a stack's state and tells it, unless `change` declines.
    fn change(&mut self, id: StackId, change: impl FnOnce(&Sim) -> Option<RuntimeState>) -> bool {
        let Some(sim) = self.stacks.get_mut(&id) else { return false };
        let Some(state) = change(sim) else { return false };
        if sim.observed.state == state {
            return true;
        }
        sim.observed.state = state;
        sim.changed.send_replace(());
        let observation = Observation::Stack(sim.observed.clone());
        if let Some(Err(error)) = self.directory.as_ref().map(|d| d.save(&sim.saved())) {
            tracing::warn!(%error, stack = %id, "a simulated stack could not be written down");
        }
        self.tell(&observation);
        true
    }
}

/// What a request for a start meant.
pub(super) enum Begin {
    /// It runs, starts, or has run.
    Known,
    /// It has no machine, and goes no further.
    Unplaced,
    /// This start is to be driven.
    New(u64),
}

/// The runtime behind its clones, handles and timers.
pub(super) struct Shared {
    pub(super) config: SimulatedConfig,
    pub(super) capabilities: Capabilities,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(config: SimulatedConfig) -> Self {
        let capabilities = Capabilities {
            name: "simulated".to_owned(),
            runtime_classes: config.runtime_classes.clone(),
            concurrent_starts: config.concurrent_starts,
            machine: config.machine,
            protocols_apart: true,
            https_probes: true,
            enforcement: Enforcement::default(),
        };
        Self { config, capabilities, state: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A number from 0 to 1 that depends on the seed and the arguments only.
    pub(super) fn draw(&self, id: StackId, attempt: u64, what: &str) -> f64 {
        // SplitMix64, folded over the parts.
        let mut x = self.config.seed;
        for part in [id.bits(), attempt].into_iter().chain(what.bytes().map(u64::from)) {
            x = (x ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^= x >> 31;
        }
        (x >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn reach(&self) -> Result<(), RuntimeError> {
        if self.lock().unreachable { Err(unreachable()) } else { Ok(()) }
    }

    pub(super) fn claim(&self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken> {
        self.lock().claim(id, ports)
    }

    pub(super) fn unclaim(&self, id: StackId) {
        let mut state = self.lock();
        if !state.stacks.contains_key(&id) {
            state.release(id);
        }
    }

    pub(super) fn begin(&self, request: EnsureRequest) -> Result<Begin, RuntimeError> {
        let mut state = self.lock();
        state.ensure_calls += 1;
        if state.unreachable {
            return Err(unreachable());
        }
        if request.epoch < state.newest_epoch {
            return Err(outdated("epoch", request.epoch, state.newest_epoch));
        }
        state.newest_epoch = request.epoch;
        let id = request.id;
        let directory = state.directory.clone();
        if let Some(directory) = &directory {
            let newest = directory.newest_epoch(request.epoch).map_err(broken)?;
            let EnsureRequest { generation, epoch, .. } = request;
            let verdict = if epoch < newest { "refused" } else { "taken" };
            directory.note(&format!("ensure {id} {generation} {epoch} {verdict}"));
            if epoch < newest {
                return Err(outdated("epoch", epoch, newest));
            }
            if !state.stacks.contains_key(&id)
                && let Some(saved) = directory.get(id)
            {
                state.take_over(saved, self.config.placement());
            }
        }
        if let Some(sim) = state.stacks.get_mut(&id) {
            if request.generation < sim.observed.generation {
                return Err(outdated("generation", request.generation, sim.observed.generation));
            }
            // What runs is what was asked for: the spec of a stack never changes.
            sim.observed.generation = request.generation;
            sim.request = request;
            return Ok(Begin::Known);
        }
        if let Some(error) = state.failures.pop_front() {
            return Err(error);
        }
        if !self.capabilities.runtime_classes.contains(&request.runtime_class) {
            let message = format!("runtime class {:?} is not served here", request.runtime_class);
            return Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, message));
        }
        let attempt = state.ensure_calls;
        if self.config.retry_rate > 0.0 && self.draw(id, attempt, "retry") < self.config.retry_rate
        {
            return Err(unreachable());
        }
        state.claim(id, &request.ports).map_err(|taken| {
            RuntimeError::open(ErrorKind::Retry, reason::RETRYING, taken.to_string())
        })?;
        if let Some(directory) = &directory {
            for port in request.ports.iter().map(|mapping| mapping.node()) {
                if !directory.take(port, id).map_err(broken)? {
                    directory.note(&format!("conflict {id} {}", port.1));
                    state.release(id);
                    return Err(RuntimeError::open(
                        ErrorKind::Retry,
                        reason::RETRYING,
                        format!("node port {} is another stack's", port.1),
                    ));
                }
            }
        }
        state.runs += 1;
        let run = state.runs;
        let full = state.full;
        let condition = match full {
            true => Condition::new(reason::UNSCHEDULABLE, "0/1 nodes are available"),
            false => Condition::new(reason::CONTAINER_CREATING, "containers are being made"),
        };
        let observed = ObservedStack {
            id,
            generation: request.generation,
            state: RuntimeState::Starting { condition: Some(condition) },
            placement: (!full).then(|| self.config.placement()),
            restarts: 0,
        };
        let (changed, _) = watch::channel(());
        let observation = Observation::Stack(observed.clone());
        let sim = Sim { request, observed, started_at: now(), run, changed };
        if let Some(directory) = &directory {
            let made = directory.make(&sim.saved()).map_err(broken)?;
            directory.note(&format!("{} {id}", if made { "start" } else { "twice" }));
        }
        state.stacks.insert(id, sim);
        state.tell(&observation);
        Ok(if full { Begin::Unplaced } else { Begin::New(run) })
    }

    /// Waits while the containers of a stack are on their way.
    pub(super) async fn wait_for_start(&self, id: StackId) {
        let starting = |state: &RuntimeState| {
            matches!(state, RuntimeState::Starting { condition: Some(c) }
                if c.reason == reason::CONTAINER_CREATING)
        };
        let Some(mut changed) = self.watch(id) else { return };
        while self.lock().stacks.get(&id).is_some_and(|sim| starting(&sim.observed.state)) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Something to wait on until a stack changes; it closes when the stack is gone.
    pub(super) fn watch(&self, id: StackId) -> Option<watch::Receiver<()>> {
        self.lock().stacks.get(&id).map(|sim| sim.changed.subscribe())
    }

    pub(super) fn containers_started(&self, id: StackId, run: u64) {
        let condition = Condition::new(reason::NOT_READY, "not ready for traffic yet");
        self.lock().change(id, |sim| match sim.observed.state {
            RuntimeState::Starting { .. } if sim.run == run => {
                Some(RuntimeState::Starting { condition: Some(condition) })
            }
            _ => None,
        });
    }

    pub(super) fn ready(&self, id: StackId, run: u64) {
        self.lock().change(id, |sim| match sim.observed.state {
            RuntimeState::Starting { .. } if sim.run == run => {
                Some(RuntimeState::Running { ready: true, condition: None })
            }
            _ => None,
        });
    }

    pub(super) fn set_ready(&self, id: StackId, ready: bool) -> bool {
        let condition = (!ready)
            .then(|| Condition::new(reason::NOT_READY, "a readiness probe failed on demand"));
        self.lock().change(id, |sim| match sim.observed.state {
            RuntimeState::Ended { .. } => None,
            _ => Some(RuntimeState::Running { ready, condition }),
        })
    }

    pub(super) fn end_run(
        &self,
        id: StackId,
        run: u64,
        outcome: Outcome,
        exit_code: Option<i32>,
        condition: Condition,
    ) {
        if self.lock().stacks.get(&id).is_some_and(|sim| sim.run == run) {
            self.end(id, outcome, exit_code, condition);
        }
    }

    pub(super) fn end(
        &self,
        id: StackId,
        outcome: Outcome,
        exit_code: Option<i32>,
        condition: Condition,
    ) -> bool {
        let mut state = self.lock();
        if state.stacks.get(&id).is_none_or(Sim::has_ended) {
            return false;
        }
        // Ports are free before anybody hears of the end.
        state.release(id);
        state.change(id, |_| Some(RuntimeState::Ended { outcome, exit_code, condition, at: now() }))
    }

    pub(super) fn may_remove(&self) -> Result<(), RuntimeError> {
        let mut state = self.lock();
        if state.unremovable {
            state.refused_removals += 1;
            return Err(unreachable());
        }
        Ok(())
    }

    pub(super) fn remove(&self, id: StackId) {
        let mut state = self.lock();
        state.stacks.remove(&id);
        state.release(id);
        if let Some(Err(error)) = state.directory.as_ref().map(|d| d.remove(id)) {
            tracing::warn!(%error, stack = %id, "a simulated stack could not be removed");
        }
    }

    /// Adds a line to the calls that were made.
    pub(super) fn note(&self, call: std::fmt::Arguments<'_>) {
        if let Some(directory) = &self.lock().directory {
            directory.note(&call.to_string());
        }
    }

    /// Takes over what other servers have started, and forgets what they have removed. Starts under
    /// way are to be driven on.
    pub(super) fn adopt(&self, mut drive: impl FnMut(StackId, u64)) {
        let mut state = self.lock();
        let Some(directory) = state.directory.clone() else { return };
        let saved = match directory.all() {
            Ok(saved) => saved,
            Err(error) => {
                tracing::error!(%error, "the simulated stacks cannot be read");
                return;
            }
        };
        // What was known may have changed in other hands.
        state.stacks.clear();
        state.claims.clear();
        state.held.clear();
        for saved in saved {
            let id = saved.request.id;
            if let Some(run) = state.take_over(saved, self.config.placement()) {
                drive(id, run);
            }
        }
    }

    /// Looks for a stack that another server may have started.
    pub(super) fn fetch(&self, id: StackId) {
        let mut state = self.lock();
        let saved = state.directory.as_ref().and_then(|directory| directory.get(id));
        let news = |saved: &Saved| {
            state.stacks.get(&id).is_none_or(|known| known.observed.state != saved.state)
        };
        if let Some(saved) = saved.filter(news) {
            state.take_over(saved, self.config.placement());
        }
    }

    pub(super) fn vanish(&self, id: StackId, tell: bool) -> bool {
        let mut state = self.lock();
        let was_here = state.stacks.remove(&id).is_some();
        state.release(id);
        if was_here && tell {
            state.tell(&Observation::Gone(id));
        }
        was_here
    }

    pub(super) fn observe(&self) -> mpsc::UnboundedReceiver<Observation> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        if state.unreachable {
            return receiver;
        }
        let inventory = state.stacks.values().map(|sim| Observation::Stack(sim.observed.clone()));
        for observation in inventory.chain([Observation::Synced]) {
            // The receiver is in this function's hands, so that it is there.
            let _ = sender.send(observation);
        }
        state.observers.push(sender);
        receiver
    }

    pub(super) fn cut(&self) {
        self.lock().observers.clear();
    }

    pub(super) fn set_reachable(&self, reachable: bool) {
        let mut state = self.lock();
        state.unreachable = !reachable;
        if !reachable {
            state.observers.clear();
        }
    }

    /// Hands out the starts that were under way, so that they can be driven on.
    pub(super) fn resume_starts(&self, mut drive: impl FnMut(StackId, u64)) {
        for (id, sim) in &self.lock().stacks {
            if matches!(sim.observed.state, RuntimeState::Starting { .. }) {
                drive(*id, sim.run);
            }
        }
    }

    pub(super) fn usage(&self, id: StackId) -> Result<Usage, RuntimeError> {
        let state = self.lock();
        if state.unreachable {
            return Err(unreachable());
        }
        let sim = state.stacks.get(&id).ok_or_else(|| unknown(id))?;
        if sim.has_ended() {
            return Err(not_running(id));
        }
        let requested = sim.request.spec.requested(sim.request.disk_bytes);
        let alive = now().duration_since(sim.started_at).unsigned_abs();
        Ok(Usage {
            cpu_time: alive / 100,
            memory_bytes: requested.memory_bytes / 4,
            pids: sim.request.spec.containers.len() as u64,
            disk_bytes: sim.request.disk_bytes / 64,
        })
    }
}

fn broken(error: std::io::Error) -> RuntimeError {
    let condition = Condition::new(reason::RETRYING, "the simulated stacks cannot be written");
    RuntimeError::new(ErrorKind::Retry, condition, error.to_string())
}

pub(super) fn unreachable() -> RuntimeError {
    RuntimeError::open(ErrorKind::Retry, reason::RETRYING, "the simulated runtime is unreachable")
}

pub(super) fn not_running(id: StackId) -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::COMPLETED, format!("{id} has ended"))
}

fn outdated(what: &str, asked: u64, newest: u64) -> RuntimeError {
    let operator = format!("{what} {asked} is older than {newest}");
    let condition = Condition::new(reason::START_ERROR, "the request is outdated");
    RuntimeError::new(ErrorKind::Rejected, condition, operator)
}
