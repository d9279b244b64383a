//! What is known of the cluster, from its watches alone: as little of each object as is needed,
//! and what that means for each stack. One lock guards it; nothing is awaited under that lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stackd_core::runtime::{Observation, PortsTaken, RuntimeState};
use stackd_core::stack::reason;
use stackd_core::{PortMapping, Protocol, StackId};
use tokio::sync::{Notify, mpsc};

use super::entry::{Action, Entry, ServiceView};
use super::status::{NodeView, Over};

/// How long a node port that another's service holds is left alone.
const FOREIGN_FOR: Duration = Duration::from_secs(60);

/// The kinds of objects that are watched, and counted in rounds of listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Policy,
    Service,
    Pod,
    Node,
}

/// An object as it was last seen, and in which round of listings.
#[derive(Debug)]
pub(super) struct Seen<T> {
    pub(super) view: T,
    round: u32,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: HashMap<StackId, Entry>,
    pub(super) nodes: HashMap<Box<str>, Seen<NodeView>>,
    pub(super) lost_nodes: HashSet<Box<str>>,
    pub(super) locks: HashMap<StackId, Arc<tokio::sync::Mutex<()>>>,
    pub(super) epoch: u64,
    /// Node ports are numbers to the cluster, whatever the protocol.
    claims: HashMap<u16, StackId>,
    foreign: HashMap<u16, Instant>,
    waiters: HashMap<StackId, Arc<Notify>>,
    /// When the collector of garbage has last begun with something of ours.
    pub(super) collected: Option<Instant>,
    /// Since when nodes do not answer.
    pub(super) silent: HashMap<Box<str>, Instant>,
    rounds: [u32; 4],
    /// The listing of all kinds that is asked for, and for each kind the last one that was whole.
    wanted: u64,
    listed: [Option<u64>; 4],
    observers: Vec<mpsc::UnboundedSender<Observation>>,
    expectant: Vec<mpsc::UnboundedSender<Observation>>,
}

impl State {
    /// Whether every kind was listed since that was asked for last.
    pub(super) fn is_synced(&self) -> bool {
        self.listed.iter().all(|listed| *listed == Some(self.wanted))
    }

    /// What was seen now.
    pub(super) fn seen<T>(&self, kind: Kind, view: T) -> Seen<T> {
        Seen { view, round: self.rounds[kind as usize] }
    }

    /// A new listing begins: what it does not name is gone when it ends.
    pub(super) fn begin_listing(&mut self, kind: Kind) {
        self.rounds[kind as usize] += 1;
    }

    /// The stacks whose object was not named by the listing that ends now.
    pub(super) fn end_listing(&mut self, kind: Kind) -> Vec<StackId> {
        let round = self.rounds[kind as usize];
        let old = |seen: Option<u32>| seen.is_some_and(|seen| seen < round);
        let unnamed = |entry: &Entry| {
            old(match kind {
                Kind::Policy => entry.policy.as_ref().map(|seen| seen.round),
                Kind::Service => entry.service.as_ref().map(|seen| seen.round),
                Kind::Pod => entry.pod.as_ref().map(|seen| seen.round),
                Kind::Node => None,
            })
        };
        let gone = self.entries.iter().filter(|(_, entry)| unnamed(entry));
        gone.map(|(id, _)| *id).collect()
    }

    /// The nodes that were not named by the listing that ends now.
    pub(super) fn unnamed_nodes(&self) -> Vec<Box<str>> {
        let round = self.rounds[Kind::Node as usize];
        let old = self.nodes.iter().filter(|(_, seen)| seen.round < round);
        old.map(|(name, _)| name.clone()).collect()
    }

    /// A kind was listed whole, as it was asked for with this number. True when it was the last kind
    /// that was missing.
    pub(super) fn listed(&mut self, kind: Kind, listing: u64) -> bool {
        let before = self.is_synced();
        self.listed[kind as usize] = Some(listing);
        !before && self.is_synced()
    }

    /// Sends the inventory, now or when it is whole, and then every change. Where nobody observes yet,
    /// all is to be listed anew first, with the number that this gives: whoever only follows may lag
    /// behind what another server did, and what is decided now cannot be taken back.
    pub(super) fn observe(&mut self, observer: mpsc::UnboundedSender<Observation>) -> Option<u64> {
        self.expectant.retain(|expectant| !expectant.is_closed());
        let is_first = !self.acts() && self.expectant.is_empty();
        if is_first {
            self.wanted += 1;
        }
        if self.is_synced() {
            self.send_inventory(observer);
        } else {
            self.expectant.push(observer);
        }
        is_first.then_some(self.wanted)
    }

    /// The inventory is whole: all who wait for it get it. True where nobody has observed before, so
    /// that everything is to be [assessed](Self::assess) anew.
    pub(super) fn release_observers(&mut self) -> bool {
        let expectant = std::mem::take(&mut self.expectant);
        let acted = self.acts();
        expectant.into_iter().for_each(|observer| self.send_inventory(observer));
        let begins = !acted && self.acts();
        if begins {
            // What was begun for an earlier observer, another server may have undone meanwhile.
            for entry in self.entries.values_mut() {
                entry.acting.killing = false;
                entry.acting.dropping = false;
            }
        }
        begins
    }

    /// Whether somebody observes: the engine that decides. Nothing is changed in the cluster for one
    /// that does not, or not any more: what this server would undo is what another one does.
    pub(super) fn acts(&self) -> bool {
        self.observers.iter().any(|observer| !observer.is_closed())
    }

    fn send_inventory(&mut self, observer: mpsc::UnboundedSender<Observation>) {
        let told = self.entries.values().filter_map(|entry| entry.told.as_deref());
        let stacks = told.map(|told| Observation::Stack(told.clone()));
        for observation in stacks.chain([Observation::Synced]) {
            // An observer that has gone is dropped at the next change.
            let _ = observer.send(observation);
        }
        self.observers.push(observer);
    }

    fn tell(&mut self, observation: &Observation) {
        self.observers.retain(|observer| observer.send(observation.clone()).is_ok());
    }

    /// Wakes who waits for a change of a stack.
    pub(super) fn wake(&mut self, id: StackId) {
        if let Some(waiter) = self.waiters.remove(&id) {
            waiter.notify_waiters();
        }
    }

    /// What is notified at the next change of a stack.
    pub(super) fn waiter(&mut self, id: StackId) -> Arc<Notify> {
        Arc::clone(self.waiters.entry(id).or_default())
    }

    /// Takes node ports for a stack, all or none.
    pub(super) fn claim(&mut self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken> {
        let now = Instant::now();
        self.foreign.retain(|_, until| *until > now);
        let held = |port: &(Protocol, u16)| {
            self.claims.get(&port.1).is_some_and(|holder| *holder != id)
                || self.foreign.contains_key(&port.1)
        };
        let taken: Vec<_> = ports.iter().map(|port| port.node()).filter(held).collect();
        if !taken.is_empty() {
            return Err(PortsTaken(taken));
        }
        self.claims.extend(ports.iter().map(|port| (port.node_port, id)));
        Ok(())
    }

    /// Gives back what a stack has claimed, but for what its service holds.
    pub(super) fn unclaim(&mut self, id: StackId) {
        let service = self.entries.get(&id).and_then(|entry| entry.service.as_ref());
        let held: Vec<_> =
            service.iter().flat_map(|s| s.view.ports.iter()).map(|port| port.node_port).collect();
        self.claims.retain(|port, holder| *holder != id || held.contains(port));
    }

    /// Leaves ports alone for a while that a service of somebody else holds.
    pub(super) fn avoid(&mut self, ports: &[PortMapping]) {
        let until = Instant::now() + FOREIGN_FOR;
        self.foreign.extend(ports.iter().map(|port| (port.node_port, until)));
    }

    /// The service of a stack is there.
    pub(super) fn service_seen(&mut self, id: StackId, view: ServiceView) {
        self.claims.extend(view.ports.iter().map(|port| (port.node_port, id)));
        let seen = self.seen(Kind::Service, view);
        let entry = self.entries.entry(id).or_default();
        entry.ports.clone_from(&seen.view.ports);
        entry.service = Some(seen);
    }

    /// The service of a stack is gone. Its node ports stay its own until it has ended: the service
    /// may be made again, and whether they take traffic is then to be found out anew.
    pub(super) fn service_gone(&mut self, id: StackId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.acting.dropping = false;
        entry.accepts = false;
        entry.service = None;
    }

    /// The pod of a stack is gone: how the stack ended, unless it has before.
    pub(super) fn pod_gone(&mut self, id: StackId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(pod) = entry.pod.take() else { return };
        entry.acting.killing = false;
        if entry.over.is_some() {
            return;
        }
        let node = pod.view.node.as_deref().unwrap_or_default();
        let node_ready = self.nodes.get(node).is_some_and(|node| node.view.ready);
        let over = match pod.view.disruption.as_deref() {
            _ if self.lost_nodes.contains(node) => Over::node_lost(node),
            Some("DeletionByTaintManager" | "DeletionByPodGC") if !node_ready => {
                Over::node_lost(node)
            }
            Some("PreemptionByScheduler") => {
                Over::failed("Preempted", "the pod made way for one of a higher priority")
            }
            Some(_) => Over::failed(reason::EVICTED, "the pod was evicted from its node"),
            None => Over::failed(reason::LOST, "the pod was deleted"),
        };
        entry.over = Some(Box::new(over));
    }

    /// Works out anew how a stack is, tells it where it has changed, and says what is to be done.
    pub(super) fn assess(&mut self, id: StackId) -> Vec<Action> {
        self.wake(id);
        if !self.is_synced() {
            return Vec::new();
        }
        let acts = self.acts();
        let Some(entry) = self.entries.get_mut(&id) else { return Vec::new() };
        if entry.policy.is_none() && entry.service.is_none() && entry.pod.is_none() {
            if !entry.making {
                self.forget(id);
            }
            return Vec::new();
        }
        // A service that is not there although the pod has come to a node was taken away while nobody
        // looked, or was about to be made.
        let placed = entry.pod.as_ref().is_some_and(|pod| pod.view.node.is_some());
        let known = !entry.begun && !entry.ports.is_empty() && placed;
        if entry.policy.is_some() && entry.pod.is_some() && (entry.service.is_some() || known) {
            entry.complete = true;
        }
        if entry.removing {
            return Vec::new();
        }
        if acts
            && !entry.pull_logged
            && let Some((image, error)) = entry.pod.as_ref().and_then(|pod| pod.view.failed_pull())
        {
            // The caller is told less, so this is the operator's only word of it.
            tracing::warn!(stack = %id, image, error, "a node could not pull an image");
            entry.pull_logged = true;
        }
        let mut actions = Vec::new();
        let acts = acts || entry.ending;
        let state = entry.state(&self.nodes, &self.lost_nodes, acts, &mut actions);
        let told = entry.observed(id, state, &self.nodes);
        if entry.told.as_deref() != Some(&told) {
            entry.told = Some(Box::new(told.clone()));
            if matches!(told.state, RuntimeState::Ended { .. }) {
                self.claims.retain(|_, holder| *holder != id);
            }
            self.tell(&Observation::Stack(told));
        }
        actions
    }

    /// Nothing is left of a stack.
    fn forget(&mut self, id: StackId) {
        if !self.acts() && self.expectant.is_empty() {
            // Another server has given its ports back; whoever acts here does that by itself.
            self.claims.retain(|_, holder| *holder != id);
        }
        if let Some(entry) = self.entries.remove(&id)
            && !entry.removing
            && entry.told.is_some()
        {
            self.tell(&Observation::Gone(id));
        }
        self.wake(id);
    }

    /// Whether a node answers now. Gives since when it does not, the first time that this is told.
    pub(super) fn node_answers(&mut self, name: &str, answers: bool) -> Option<Instant> {
        if answers {
            self.silent.remove(name);
            self.lost_nodes.remove(name);
            return None;
        }
        if self.silent.contains_key(name) {
            return None;
        }
        let now = Instant::now();
        self.silent.insert(name.into(), now);
        Some(now)
    }

    /// Whether a node has not answered since then.
    pub(super) fn is_silent_since(&self, name: &str, since: Instant) -> bool {
        self.silent.get(name) == Some(&since)
    }

    /// A node is lost, and its stacks with it: those.
    pub(super) fn lose_node(&mut self, name: &str) -> Vec<StackId> {
        let stacks = self.on_node(name);
        // What is not named by a pod any more is of no account.
        let named: HashSet<_> = self
            .entries
            .values()
            .filter_map(|entry| entry.pod.as_ref()?.view.node.clone())
            .collect();
        self.lost_nodes.retain(|lost| named.contains(lost));
        self.lost_nodes.insert(name.into());
        stacks
    }

    /// The stacks on a node.
    pub(super) fn on_node(&self, name: &str) -> Vec<StackId> {
        let there = |entry: &Entry| {
            entry.pod.as_ref().is_some_and(|pod| pod.view.node.as_deref() == Some(name))
        };
        let stacks = self.entries.iter().filter(|(_, entry)| there(entry));
        stacks.map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Watches of several kinds are not in step: the policy may be told to be gone first.
    #[test]
    fn what_another_server_gave_back_is_free() {
        let mut state = State::default();
        for kind in [Kind::Policy, Kind::Service, Kind::Pod, Kind::Node] {
            state.listed(kind, 0);
        }
        let (id, other) = (StackId::from_bits(1), StackId::from_bits(2));
        let ports =
            [PortMapping { container_port: 80, protocol: Protocol::Tcp, node_port: 31_001 }];
        let view =
            ServiceView { uid: "u".into(), generation: 1, deleting: false, ports: Box::new(ports) };
        state.service_seen(id, view);
        state.assess(id);
        assert_eq!(state.claim(other, &ports), Err(PortsTaken(vec![(Protocol::Tcp, 31_001)])));
        state.service_gone(id);
        state.assess(id);
        assert_eq!(state.claim(other, &ports), Ok(()));
    }
}
