//! A stack as the cluster has it: what is there of it, what that means, and what is to be done.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use stackd_core::runtime::{ObservedStack, Placement, RuntimeState};
use stackd_core::stack::{Condition, reason};
use stackd_core::{PortMapping, Protocol, StackId};

use super::cache::Seen;
use super::status::{Judgement, NodeView, Over, PodView};

/// What is kept of a policy.
#[derive(Debug)]
pub(super) struct PolicyView {
    pub(super) uid: Box<str>,
    pub(super) generation: u64,
    pub(super) epoch: u64,
    pub(super) deleting: bool,
}

/// What is kept of a service.
#[derive(Debug)]
pub(super) struct ServiceView {
    pub(super) uid: Box<str>,
    pub(super) generation: u64,
    pub(super) deleting: bool,
    pub(super) ports: Box<[PortMapping]>,
}

/// A stack of which the cluster has something.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) policy: Option<Seen<PolicyView>>,
    pub(super) service: Option<Seen<ServiceView>>,
    pub(super) pod: Option<Seen<PodView>>,
    /// The ports of its service, also when that is gone.
    pub(super) ports: Box<[PortMapping]>,
    /// All three were there at once: what is missing from then on was taken away.
    pub(super) complete: bool,
    pub(super) over: Option<Box<Over>>,
    /// The node of its pod was lost: nobody will ever say that it runs no more.
    node_gone: bool,
    /// Its end was asked for, so that it is brought about whether anybody observes or not.
    pub(super) ending: bool,
    /// Its node ports have taken a connection.
    pub(super) accepts: bool,
    /// It is being made, or removed, by us.
    pub(super) making: bool,
    /// This server has begun to make it, so that what is missing may be its own fault.
    pub(super) begun: bool,
    pub(super) removing: bool,
    /// When the removal of its policy was asked for.
    pub(super) asked: Option<Instant>,
    /// Why its image cannot be had was logged.
    pub(super) pull_logged: bool,
    pub(super) acting: Acting,
    pub(super) told: Option<Box<ObservedStack>>,
}

/// What is being done about a stack besides what the engine asks for.
#[derive(Debug, Default)]
pub(super) struct Acting {
    pub(super) dialing: bool,
    pub(super) killing: bool,
    pub(super) dropping: bool,
    pub(super) restoring: bool,
}

/// What is to be done about a stack, so that it is as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Find out when its node ports take traffic.
    Dial,
    /// End what still runs of it, and keep the pod with its logs.
    Kill,
    /// Take its service away: it has ended, and its ports go back.
    DropService,
    /// Make its service anew: somebody has deleted it.
    RestoreService,
}

impl Entry {
    /// How it is, and what is to be done about that; without `acts`, nothing that changes anything.
    pub(super) fn state(
        &mut self,
        nodes: &HashMap<Box<str>, Seen<NodeView>>,
        lost: &HashSet<Box<str>>,
        acts: bool,
        actions: &mut Vec<Action>,
    ) -> RuntimeState {
        let node = self.pod.as_ref().and_then(|pod| pod.view.node.as_deref());
        let node_ready = node.and_then(|n| nodes.get(n)).is_some_and(|node| node.view.ready);
        let evicted = self.pod.as_ref().is_some_and(|pod| {
            pod.view.deleting && pod.view.disruption.as_deref() == Some("DeletionByTaintManager")
        });
        // Whether it is over already or not: its end would be waited for in vain. It stays so when
        // the node comes back, since it was told.
        self.node_gone |= node.is_some_and(|n| lost.contains(n) || (evicted && !node_ready));
        if let (None, Some(pod)) = (&self.over, &self.pod) {
            let over = match (node, pod.view.judge()) {
                // How containers end that somebody takes away says nothing of them.
                (_, Judgement::Over(over)) if !pod.view.deleting => Some(over),
                (Some(node), _) if self.node_gone => Some(Over::node_lost(node)),
                _ => None,
            };
            self.over = over.map(Box::new);
        }
        // Nothing closes off any more what is left.
        if self.over.is_none() && self.complete && self.policy.is_none() && self.pod.is_some() {
            let over = Over::failed(reason::LOST, "its network policy was deleted");
            self.over = Some(Box::new(over));
        }
        if let Some(over) = &self.over {
            let runs = self.may_run();
            // What the cluster takes away as a whole is not taken from it by parts.
            let acts = acts && !self.is_leaving();
            if acts && runs && !std::mem::replace(&mut self.acting.killing, true) {
                actions.push(Action::Kill);
            }
            let service = self.service.is_some();
            if acts && service && !std::mem::replace(&mut self.acting.dropping, true) {
                actions.push(Action::DropService);
            }
            if runs || service {
                let condition = Some(over.condition.clone());
                return RuntimeState::Running { ready: false, condition };
            }
            return RuntimeState::Ended {
                outcome: over.outcome,
                exit_code: over.exit_code,
                condition: over.condition.clone(),
                at: over.at,
            };
        }
        let lacks = self.pod.is_none() || self.service.is_none() || self.policy.is_none();
        if lacks && !self.making && !self.complete {
            return RuntimeState::Incomplete;
        }
        let Some(pod) = &self.pod else {
            return RuntimeState::Starting { condition: None };
        };
        if acts
            && self.service.is_none()
            && !self.making
            && !pod.view.deleting
            && self.policy.as_ref().is_some_and(|policy| !policy.view.deleting)
            && !std::mem::replace(&mut self.acting.restoring, true)
        {
            actions.push(Action::RestoreService);
        }
        if pod.view.deleting {
            let condition = Some(Condition::new("Terminating", "the pod is being deleted"));
            return RuntimeState::Running { ready: false, condition };
        }
        match pod.view.judge() {
            Judgement::Running { ready: true, .. } if !self.accepts => {
                if self.ports.iter().all(|port| port.protocol != Protocol::Tcp) {
                    self.accepts = self.service.is_some();
                } else if !std::mem::replace(&mut self.acting.dialing, true) {
                    actions.push(Action::Dial);
                }
                if self.accepts {
                    return RuntimeState::Running { ready: true, condition: None };
                }
                let text = "the containers are ready, and the node port does not take traffic yet";
                let condition = Some(Condition::new(reason::NOT_READY, text));
                RuntimeState::Running { ready: false, condition }
            }
            Judgement::Running { ready, condition } => {
                let silent = || Condition::new("NodeNotReady", "the node does not answer");
                let condition = if ready || node_ready { condition } else { Some(silent()) };
                RuntimeState::Running { ready, condition }
            }
            Judgement::Starting(condition) => RuntimeState::Starting { condition },
            // Over is handled above.
            Judgement::Over(over) => {
                RuntimeState::Running { ready: false, condition: Some(over.condition) }
            }
        }
    }

    pub(super) fn observed(
        &self,
        id: StackId,
        state: RuntimeState,
        nodes: &HashMap<Box<str>, Seen<NodeView>>,
    ) -> ObservedStack {
        let node = self.pod.as_ref().and_then(|pod| pod.view.node.as_deref());
        // Who is told of a place takes the stack for accepted, which it is not before its node ports
        // are its own.
        let placed = self.service.is_some() || self.over.is_some();
        let placement = node.filter(|_| placed).map(|node| Placement {
            node: node.to_owned(),
            public_ip: nodes.get(node).and_then(|n| n.view.public_ip.as_deref()).map(str::to_owned),
        });
        let before = self.told.as_deref();
        let restarts = self.pod.as_ref().map(|pod| pod.view.restarts());
        let generation = self.policy.as_ref().map(|policy| policy.view.generation);
        ObservedStack {
            id,
            generation: generation.or(before.map(|told| told.generation)).unwrap_or(0),
            state,
            placement: placement.or_else(|| before.and_then(|told| told.placement.clone())),
            restarts: restarts.or(before.map(|told| told.restarts)).unwrap_or(0),
        }
    }

    /// Nothing of it runs any more, and its ports are given back.
    pub(super) fn has_ended(&self) -> bool {
        !self.may_run() && self.service.is_none()
    }

    /// Whether all of it is on its way out of the cluster.
    fn is_leaving(&self) -> bool {
        self.asked.is_some() || self.policy.as_ref().is_some_and(|policy| policy.view.deleting)
    }

    /// Whether something of it runs, as far as anybody will tell.
    fn may_run(&self) -> bool {
        !self.node_gone && self.pod.as_ref().is_some_and(|pod| !pod.view.phase.is_over())
    }
}

#[cfg(test)]
mod tests {
    use stackd_core::runtime::Outcome;

    use super::super::cache::{Kind, State};
    use super::*;

    /// A stack with a running pod on the node `n`, which does not answer.
    fn on_a_silent_node(deletion: Option<&str>) -> Entry {
        let pod = serde_json::json!({
            "metadata": {"name": "p", "deletionTimestamp": deletion.map(|_| "2026-01-01T00:00:00Z")},
            "spec": {"nodeName": "n", "containers": [{"name": "app"}]},
            "status": {
                "phase": "Running",
                "conditions": deletion.iter().map(|reason| serde_json::json!({
                    "type": "DisruptionTarget", "status": "True", "reason": reason,
                })).collect::<Vec<_>>(),
            },
        });
        let pod = PodView::of(&serde_json::from_value(pod).unwrap());
        let pod = Some(State::default().seen(Kind::Pod, pod));
        Entry { pod, ..Entry::default() }
    }

    /// A dead kubelet never tells of the end that it was asked for.
    #[test]
    fn what_is_over_has_ended_when_its_node_is_lost() {
        let none = HashMap::new();
        let lost = HashSet::from(["n".into()]);
        let cases = [
            (on_a_silent_node(None), &lost),
            (on_a_silent_node(Some("DeletionByTaintManager")), &HashSet::new()),
        ];
        for (mut entry, lost) in cases {
            let over = Over::failed(reason::STOPPED, "the stack was stopped");
            entry.over = Some(Box::new(over));
            let state = entry.state(&none, lost, true, &mut Vec::new());
            let RuntimeState::Ended { outcome, condition, .. } = state else { panic!("{state:?}") };
            // It keeps the reason that it had.
            assert_eq!((outcome, condition.reason.as_str()), (Outcome::Failed, reason::STOPPED));
            assert!(entry.has_ended());
            // That the node is back changes nothing of what was told.
            let state = entry.state(&none, &HashSet::new(), true, &mut Vec::new());
            assert!(matches!(state, RuntimeState::Ended { .. }), "{state:?}");
        }
    }

    /// The collector of garbage may take its time, and every call that helps it costs the cluster more.
    #[test]
    fn what_is_being_removed_is_left_to_the_cluster() {
        let state = State::default();
        let mut entry = on_a_silent_node(None);
        entry.over = Some(Box::new(Over::failed(reason::LOST, "the pod was deleted")));
        let service = ServiceView {
            uid: "service".into(),
            generation: 1,
            deleting: false,
            ports: Box::default(),
        };
        entry.service = Some(state.seen(Kind::Service, service));
        let mut policy = |deleting| {
            let view = PolicyView { uid: "policy".into(), generation: 1, epoch: 1, deleting };
            entry.policy = Some(state.seen(Kind::Policy, view));
            let mut actions = Vec::new();
            entry.state(&HashMap::new(), &HashSet::new(), true, &mut actions);
            actions
        };
        assert_eq!(policy(true), []);
        assert_eq!(policy(false), [Action::Kill, Action::DropService]);
    }

    #[test]
    fn what_is_over_has_not_ended_while_its_node_may_answer_again() {
        for deletion in [None, Some("EvictionByEvictionAPI")] {
            let mut entry = on_a_silent_node(deletion);
            entry.over = Some(Box::new(Over::failed(reason::ERROR, "it ended with code 1")));
            let mut actions = Vec::new();
            let state = entry.state(&HashMap::new(), &HashSet::new(), true, &mut actions);
            assert!(matches!(state, RuntimeState::Running { ready: false, .. }), "{state:?}");
            assert_eq!(actions, [Action::Kill]);
            assert!(!entry.has_ended());
        }
    }
}
