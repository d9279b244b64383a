//! A pod as little of it as is needed, and what it means for its stack.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use stackd_core::Timestamp;
use stackd_core::quantity::Quantity;
use stackd_core::runtime::Outcome;
use stackd_core::stack::{Condition, reason};

use super::{names, pull};
use crate::images;

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodView {
    pub(super) uid: Box<str>,
    pub(super) generation: u64,
    pub(super) node: Option<Box<str>>,
    pub(super) phase: PodPhase,
    /// Somebody has asked for its deletion.
    pub(super) deleting: bool,
    /// Why the scheduler finds no node for it.
    unschedulable: Option<Box<str>>,
    /// Its containers run and their readiness probes hold.
    pub(super) ready: bool,
    /// Why the cluster itself ends it.
    pub(super) disruption: Option<Box<str>>,
    /// The reason and message of the pod as a whole.
    word: Option<Box<(String, String)>>,
    pub(super) containers: Box<[ContainerView]>,
    /// Whether a readiness probe decides.
    pub(super) probed: bool,
    /// The seconds that its containers have to end.
    pub(super) grace: u64,
    /// It has a user namespace of its own.
    pub(super) user_namespace: bool,
}

/// What is kept of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerView {
    pub(super) name: Box<str>,
    image: Box<str>,
    pub(super) init: bool,
    pub(super) state: State,
    restarts: u32,
    memory_mib: u32,
}

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Waiting(Option<Box<(String, String)>>),
    Running,
    Ended(Box<Ended>),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    code: i32,
    reason: String,
    message: String,
    at: Option<Timestamp>,
}

/// The phase of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// What a pod says of its stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    Starting(Option<Condition>),
    Running { ready: bool, condition: Option<Condition> },
    Over(Over),
}

/// A stack has ended, and stays so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Over {
    pub(super) outcome: Outcome,
    pub(super) exit_code: Option<i32>,
    pub(super) condition: Condition,
    pub(super) at: Timestamp,
}

impl Over {
    /// The stack has failed for a reason that no container has told.
    pub(super) fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failed,
            exit_code: None,
            condition: Condition::new(reason, message),
            at: Timestamp::now(),
        }
    }

    /// The machine of the stack is gone.
    pub(super) fn node_lost(node: &str) -> Self {
        let message = format!("the node {node} is gone");
        Self { outcome: Outcome::NodeLost, ..Self::failed("NodeLost", message) }
    }
}

impl PodPhase {
    /// Nothing of it runs any more, or ever will.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

fn pair(reason: Option<&String>, message: Option<&String>) -> Option<Box<(String, String)>> {
    let reason = reason.filter(|reason| !reason.is_empty())?;
    Some(Box::new((reason.clone(), message.cloned().unwrap_or_default())))
}

impl PodView {
    /// Takes what matters from a pod.
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let condition = |name: &str| {
            status?.conditions.iter().flatten().find(|condition| condition.type_ == name)
        };
        let unschedulable = condition("PodScheduled")
            .filter(|c| c.status == "False" && c.reason.as_deref() == Some("Unschedulable"));
        let disruption = condition("DisruptionTarget").filter(|c| c.status == "True");
        let statuses = |list: Option<&Vec<ContainerStatus>>, name: &str| {
            list.into_iter().flatten().find(|status| status.name == name).cloned()
        };
        let main = status.and_then(|status| status.container_statuses.as_ref());
        let init = status.and_then(|status| status.init_container_statuses.as_ref());
        let mut containers = Vec::new();
        for container in spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()) {
            containers.push(view(container, true, statuses(init, &container.name)));
        }
        for container in spec.iter().flat_map(|spec| &spec.containers) {
            containers.push(view(container, false, statuses(main, &container.name)));
        }
        let phase = match status.and_then(|status| status.phase.as_deref()) {
            Some("Running") => PodPhase::Running,
            Some("Succeeded") => PodPhase::Succeeded,
            Some("Failed") => PodPhase::Failed,
            _ => PodPhase::Pending,
        };
        let grace = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default().into(),
            generation: names::number(&pod.metadata, names::GENERATION).unwrap_or(0),
            node: spec.and_then(|spec| spec.node_name.clone()).map(Into::into),
            phase,
            deleting: pod.metadata.deletion_timestamp.is_some(),
            unschedulable: unschedulable.and_then(|c| c.message.clone()).map(Into::into),
            ready: condition("Ready").is_some_and(|c| c.status == "True"),
            disruption: disruption.and_then(|c| c.reason.clone()).map(Into::into),
            word: status.and_then(|s| pair(s.reason.as_ref(), s.message.as_ref())),
            containers: containers.into(),
            probed: spec.iter().any(|s| s.containers.iter().any(|c| c.readiness_probe.is_some())),
            grace: u64::try_from(grace).unwrap_or(0),
            user_namespace: spec.is_some_and(|spec| spec.host_users == Some(false)),
        }
    }

    /// How often its containers were started again.
    pub(super) fn restarts(&self) -> u32 {
        self.containers.iter().map(|container| container.restarts).sum()
    }

    /// What it says of its stack.
    pub(super) fn judge(&self) -> Judgement {
        if let Some(over) = self.over() {
            return Judgement::Over(over);
        }
        if let Some(text) = &self.unschedulable {
            return Judgement::Starting(Some(Condition::new(reason::UNSCHEDULABLE, &**text)));
        }
        let mains = || self.containers.iter().filter(|container| !container.init);
        if self.phase == PodPhase::Running && mains().all(|c| !matches!(c.state, State::Waiting(_)))
        {
            let condition = (!self.ready).then(|| {
                let text = "the containers run and are not ready for traffic";
                Condition::new(reason::NOT_READY, text)
            });
            return Judgement::Running { ready: self.ready, condition };
        }
        Judgement::Starting(self.waits_for())
    }

    /// What a pod that is not running yet waits for.
    fn waits_for(&self) -> Option<Condition> {
        let waiting = self.containers.iter().filter_map(|container| match &container.state {
            State::Waiting(Some(word)) => Some((container, word)),
            _ => None,
        });
        let (mut first, mut of_image) = (None, None);
        for (container, word) in waiting {
            let (why, message) = (word.0.as_str(), &word.1);
            let condition = match why {
                _ if pull::has_failed(why) => {
                    let text = pull::told(&container.image, message).text;
                    of_image.get_or_insert(Condition::new(reason::IMAGE_PULL, text));
                    continue;
                }
                "ContainerCreating" => {
                    Condition::new(reason::CONTAINER_CREATING, "the containers are being made")
                }
                "PodInitializing" => {
                    Condition::new(reason::INITIALIZING, "the init containers run")
                }
                _ if message.is_empty() => {
                    Condition::new(why, format!("container {} waits", container.name))
                }
                _ => Condition::new(why, message),
            };
            first.get_or_insert(condition);
        }
        let initializing = self.containers.iter().any(|c| c.init && c.state == State::Running);
        let init = || Condition::new(reason::INITIALIZING, "the init containers run");
        let making = || Condition::new(reason::CONTAINER_CREATING, "the containers are being made");
        of_image.or_else(|| initializing.then(init)).or(first).or_else(|| Some(making()))
    }

    /// How it ended, if it has, or if it cannot come to anything any more.
    fn over(&self) -> Option<Over> {
        let failed_container = self.first_failure();
        if let (PodPhase::Failed, Some(word)) = (self.phase, &self.word)
            && word.0 != "DeadlineExceeded"
        {
            let code = failed_container.map(|(_, ended)| ended.code);
            let why = if is_full_disk(word) { reason::DISK_FULL } else { &word.0 };
            return Some(Over { exit_code: code, ..Over::failed(why, &word.1) });
        }
        if let Some((container, ended)) = failed_container {
            if ended.is_unseen() {
                let text = "its node was restarted, and with it the containers";
                let at = ended.at.unwrap_or_else(Timestamp::now);
                return Some(Over { at, ..Over::failed(reason::NODE_REBOOTED, text) });
            }
            return Some(Over {
                outcome: Outcome::Failed,
                exit_code: Some(ended.code),
                condition: ended.condition(container),
                at: ended.at.unwrap_or_else(Timestamp::now),
            });
        }
        if self.restarts() > 0 {
            let text = "the node was restarted, and with it the containers";
            return Some(Over::failed(reason::NODE_REBOOTED, text));
        }
        match self.phase {
            PodPhase::Succeeded => Some(Over {
                outcome: Outcome::Completed,
                exit_code: Some(0),
                condition: Condition::new(reason::COMPLETED, "every container ended with code 0"),
                at: self.last_end().unwrap_or_else(Timestamp::now),
            }),
            PodPhase::Failed => Some(match &self.word {
                Some(word) => Over::failed(&word.0, &word.1),
                None => Over::failed(reason::ERROR, "the pod has failed"),
            }),
            PodPhase::Pending | PodPhase::Running => self.hopeless(),
        }
    }

    /// What the kubelet would try for ever, and no trying mends.
    fn hopeless(&self) -> Option<Over> {
        self.containers.iter().find_map(|container| {
            let State::Waiting(Some(word)) = &container.state else { return None };
            let (why, message) = (word.0.as_str(), word.1.as_str());
            let reason = match why {
                "InvalidImageName" => reason::IMAGE_PULL,
                "ErrImageNeverPull" => reason::IMAGE_NEVER_PULL,
                "CreateContainerConfigError" => reason::START_ERROR,
                "CreateContainerError" if message.contains("no command specified") => {
                    let text = images::no_command(&container.name);
                    return Some(Over::failed(reason::START_ERROR, text));
                }
                _ if pull::has_failed(why) => {
                    let told = pull::told(&container.image, message);
                    return told.is_final.then(|| Over::failed(reason::IMAGE_PULL, told.text));
                }
                _ => return None,
            };
            Some(Over::failed(reason, message))
        })
    }

    /// The image that its node could not pull, and the kubelet's text about it.
    pub(super) fn failed_pull(&self) -> Option<(&str, &str)> {
        self.containers.iter().find_map(|container| match &container.state {
            State::Waiting(Some(word)) if pull::has_failed(&word.0) => {
                Some((&*container.image, word.1.as_str()))
            }
            _ => None,
        })
    }

    /// The first container that ended with another code than 0.
    fn first_failure(&self) -> Option<(&ContainerView, &Ended)> {
        let failures = self.containers.iter().filter_map(|container| match &container.state {
            State::Ended(ended) if ended.code != 0 => Some((container, &**ended)),
            _ => None,
        });
        failures.min_by_key(|(_, ended)| ended.at)
    }

    fn last_end(&self) -> Option<Timestamp> {
        let ends = self.containers.iter().filter_map(|container| match &container.state {
            State::Ended(ended) => ended.at,
            _ => None,
        });
        ends.max()
    }
}

/// Whether a kubelet has evicted a pod for its own disk, and not for its node's: in those words alone
/// the two differ.
fn is_full_disk(word: &(String, String)) -> bool {
    const LIMITS: [&str; 3] = [
        "ephemeral local storage usage exceeds",
        "local ephemeral storage limit",
        "Usage of EmptyDir",
    ];
    word.0 == reason::EVICTED && LIMITS.iter().any(|limit| word.1.contains(limit))
}

impl Ended {
    /// Whether nobody has seen the end: a container runtime that starts, and finds that what it had
    /// running does not, has these words and this code for it.
    fn is_unseen(&self) -> bool {
        self.reason == "Unknown" && self.code == 255
    }

    fn condition(&self, container: &ContainerView) -> Condition {
        let (code, message) = (self.code, self.message.as_str());
        let kind = if container.init { "init container" } else { "container" };
        let name = &container.name;
        match self.reason.as_str() {
            "OOMKilled" => {
                let mib = container.memory_mib;
                let text = format!("{kind} {name:?} was killed at its memory limit of {mib} MiB");
                Condition::new(reason::OOM_KILLED, text)
            }
            "StartError" | "ContainerCannotRun" => Condition::new(reason::START_ERROR, message),
            // A kubelet has no other word for a signal.
            _ if (129..=192).contains(&code) => {
                let text = format!("{kind} {name:?} was ended by signal {}", code - 128);
                Condition::new(reason::ERROR, text)
            }
            _ => Condition::new(reason::ERROR, format!("{kind} {name:?} ended with code {code}")),
        }
    }
}

fn view(container: &Container, init: bool, status: Option<ContainerStatus>) -> ContainerView {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let memory = limits.and_then(|limits| limits.get("memory")?.0.parse::<Quantity>().ok());
    let memory_mib = memory.map_or(0, |memory| memory.units() >> 20);
    let restarts = status.as_ref().map_or(0, |status| status.restart_count.unsigned_abs());
    let state = match status.and_then(|status| status.state) {
        Some(state) => match (state.terminated, state.running) {
            (Some(ended), _) => State::Ended(Box::new(Ended {
                code: ended.exit_code,
                reason: ended.reason.unwrap_or_default(),
                message: ended.message.unwrap_or_default(),
                at: ended.finished_at.map(|at| at.0),
            })),
            (None, Some(_)) => State::Running,
            (None, None) => State::Waiting(
                state.waiting.and_then(|w| pair(w.reason.as_ref(), w.message.as_ref())),
            ),
        },
        None => State::Waiting(None),
    };
    ContainerView {
        name: container.name.as_str().into(),
        image: container.image.as_deref().unwrap_or_default().into(),
        init,
        state,
        restarts,
        memory_mib: memory_mib.try_into().unwrap_or(u32::MAX),
    }
}

/// What is kept of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeView {
    pub(super) ready: bool,
    pub(super) public_ip: Option<Box<str>>,
    /// The address that this server dials.
    pub(super) dial: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod whose only container waits.
    fn waiting(word: &str, message: &str) -> PodView {
        let pod = serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "app", "image": "10.0.0.5:5000/app:1"}]},
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": word, "message": message}},
            }]},
        });
        PodView::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pull_is_told_in_our_words_and_logged_in_the_kubelets() {
        let refused = "failed to do request: Head \"https://10.0.0.5:5000/v2/app/manifests/1\": \
                       dial tcp 10.0.0.5:5000: connect: connection refused";
        for word in ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"] {
            let pod = waiting(word, refused);
            let Judgement::Starting(Some(condition)) = pod.judge() else {
                panic!("{word}: {pod:?}")
            };
            assert_eq!(condition.reason, reason::IMAGE_PULL);
            let text = "image \"10.0.0.5:5000/app:1\" cannot be pulled from 10.0.0.5:5000; it is \
                        tried again";
            assert_eq!(condition.message, text, "{word}");
            assert_eq!(pod.failed_pull(), Some(("10.0.0.5:5000/app:1", refused)));
        }
        let pod = waiting("ErrImagePull", "10.0.0.5:5000/app:1: not found");
        let Judgement::Over(over) = pod.judge() else { panic!("{pod:?}") };
        assert_eq!(over.condition.reason, reason::IMAGE_PULL);
        let text = "image \"10.0.0.5:5000/app:1\" does not exist in 10.0.0.5:5000";
        assert_eq!(over.condition.message, text);
        assert_eq!(waiting("ContainerCreating", "").failed_pull(), None);
    }

    #[test]
    fn an_image_that_names_no_command_is_refused_at_once() {
        let said = "failed to generate container \"c0ffee\" spec: failed to generate spec: no command \
                    specified";
        let pod = waiting("CreateContainerError", said);
        let Judgement::Over(over) = pod.judge() else { panic!("{pod:?}") };
        assert_eq!(over.condition.reason, reason::START_ERROR);
        assert_eq!(
            over.condition.message,
            "container \"app\": the image names no command; set command or args in the container"
        );
        // What else may be wrong can pass.
        let pod = waiting("CreateContainerError", "context deadline exceeded");
        assert!(matches!(pod.judge(), Judgement::Starting(_)), "{pod:?}");
    }
}
