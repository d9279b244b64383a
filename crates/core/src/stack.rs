//! The stack: the one aggregate that every dialect shows in its own words.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::StackId;
use crate::port::PortMapping;
use crate::spec::{Requested, StackSpec};

/// Whose a stack is. Among live stacks the three together are unique, which is what makes "one
/// stack per team and challenge" hold under any race.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The dialect that made it, for example `provisioner`.
    pub dialect: String,
    /// The team, user or account; starts are shared out fairly between tenants.
    pub tenant: String,
    /// What the tenant may have one of; the stack's own id where there is no such rule.
    pub slot: String,
}

/// What somebody has asked for. It only moves downwards, and an ended stack is still wanted until
/// its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should not exist. From here on it is unknown to every reader.
    Gone,
}

/// How far a stack has come. Each dialect has its own words for these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Accepted, not yet ready for traffic.
    Creating,
    /// Ready for traffic, or was once and still runs.
    Running,
    /// Every container has ended with 0.
    Stopped,
    /// It could not start, or a container ended otherwise.
    Failed,
    /// The machine it ran on is gone.
    NodeDeleted,
}

impl Phase {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 5] =
        [Self::Creating, Self::Running, Self::Stopped, Self::Failed, Self::NodeDeleted];

    /// The provisioner's word for it, which is also the one in events, logs and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::NodeDeleted => "node_deleted",
        }
    }

    /// Reads [`Phase::as_str`] back.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text)
    }

    /// Creating or running: it holds ports and resources.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Creating | Self::Running)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a stack is not simply running: one word for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// A word in CamelCase, for example `OOMKilled` (see [`reason`]).
    pub reason: String,
    /// A sentence that a caller may read.
    pub message: String,
}

impl Condition {
    /// A condition from its two parts.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// The words that [`Condition::reason`] uses, Kubernetes' own where it has one.
pub mod reason {
    /// Waits for a start slot; the message tells the place.
    pub const QUEUED: &str = "Queued";
    /// Its images are being pulled.
    pub const PULLING: &str = "Pulling";
    /// Its init containers run.
    pub const INITIALIZING: &str = "PodInitializing";
    /// Its containers are being made.
    pub const CONTAINER_CREATING: &str = "ContainerCreating";
    /// Its containers run, and it is not ready for traffic.
    pub const NOT_READY: &str = "ContainersNotReady";
    /// Every container ended with 0.
    pub const COMPLETED: &str = "Completed";
    /// A container ended with another code.
    pub const ERROR: &str = "Error";
    /// A container was killed at its memory limit.
    pub const OOM_KILLED: &str = "OOMKilled";
    /// It is at its limit of processes.
    pub const PIDS_LIMIT: &str = "PidsLimitReached";
    /// It is at its limit of disk space or inodes.
    pub const DISK_FULL: &str = "EphemeralStorageFull";
    /// A liveness or startup probe failed.
    pub const UNHEALTHY: &str = "Unhealthy";
    /// An image does not exist, may not be read, or is damaged.
    pub const IMAGE_PULL: &str = "ErrImagePull";
    /// An image is not here and may not be pulled.
    pub const IMAGE_NEVER_PULL: &str = "ErrImageNeverPull";
    /// The runtime refused it, for example because its command does not exist.
    pub const START_ERROR: &str = "StartError";
    /// It did not become ready in time.
    pub const START_TIMEOUT: &str = "StartTimeout";
    /// The machine was restarted.
    pub const NODE_REBOOTED: &str = "NodeRebooted";
    /// What ran it has disappeared.
    pub const LOST: &str = "ContainerStatusUnknown";
    /// No machine has room for it.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// A quota of the cluster is used up.
    pub const EXCEEDED_QUOTA: &str = "ExceededQuota";
    /// Somebody else holds one of its node ports.
    pub const NODE_PORT_TAKEN: &str = "NodePortTaken";
    /// Its machine has put it out.
    pub const EVICTED: &str = "Evicted";
    /// It was ended on request.
    pub const STOPPED: &str = "Stopped";
    /// The runtime cannot be reached for the moment; it is tried again.
    pub const RETRYING: &str = "RuntimeUnavailable";
}

/// What is known of a stack from the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// How far it has come.
    pub phase: Phase,
    /// The machine it runs on, once placed.
    pub node: Option<String>,
    /// The address at which its node ports are reached, where there is one.
    pub node_public_ip: Option<String>,
    /// Why it is not simply running.
    pub condition: Option<Condition>,
    /// How often its containers were started again.
    pub restarts: u32,
    /// The code of the first container that ended otherwise than with 0; 128 + n after signal n.
    pub exit_code: Option<i32>,
    /// When it became ready for traffic first.
    pub ready_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

impl Observed {
    /// What is known of a stack that has just been accepted.
    pub fn accepted() -> Self {
        Self {
            phase: Phase::Creating,
            node: None,
            node_public_ip: None,
            condition: None,
            restarts: 0,
            exit_code: None,
            ready_at: None,
            ended_at: None,
        }
    }
}

/// A stack, as it was asked for and as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Its identity.
    pub id: StackId,
    /// Whose it is.
    pub owner: Owner,
    /// What it is made of.
    pub spec: Arc<StackSpec>,
    /// The hardened Pod as YAML, as it was rendered when the stack was made.
    pub pod_spec: Arc<str>,
    /// Which handler of the runtime starts it.
    pub runtime_class: String,
    /// The caller's own labels, to select by.
    pub labels: BTreeMap<String, String>,
    /// Its node ports, in the order of the spec's target ports. They stay shown when the stack has
    /// ended, though others may have got them since.
    pub ports: Vec<PortMapping>,
    /// What it reserves while it is active.
    pub requested: Requested,
    /// What is asked of it.
    pub desired: Desired,
    /// Goes up with every change of what is asked; the runtime refuses an older one.
    pub generation: u64,
    /// What is known of it.
    pub observed: Observed,
    /// When it was made.
    pub created_at: Timestamp,
    /// When something of it last changed.
    pub updated_at: Timestamp,
    /// When it is taken away.
    pub expires_at: Timestamp,
}

impl Stack {
    /// Whether it holds ports and resources: accepted, and not ended.
    pub fn is_active(&self) -> bool {
        self.desired == Desired::Running && self.observed.phase.is_active()
    }
}
