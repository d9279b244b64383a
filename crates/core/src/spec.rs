//! What a stack is made of, after the Pod that described it has been read and hardened.
//!
//! A value of [`StackSpec`] is valid by construction: every way to make one goes through
//! [`crate::pod`]. It is stored as JSON and handed to runtimes, so a field that is added later
//! needs a default.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::port::{Protocol, TargetPort};
use crate::quantity::Quantity;
use crate::secret::Secret;

/// The most seconds that a container may take to end after SIGTERM.
pub const MAX_TERMINATION_GRACE_SECONDS: u32 = 30;

/// A stack's containers, volumes and published ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackSpec {
    /// `metadata.name` of the Pod, if it had one. Not unique; the stack's id is its identity.
    #[serde(default)]
    pub name: Option<String>,
    /// `metadata.labels` of the Pod.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations` of the Pod.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `spec.hostname`; the stack's id where it is absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// `spec.terminationGracePeriodSeconds` where it was given, at most
    /// [`MAX_TERMINATION_GRACE_SECONDS`], which is also what holds where it was not.
    #[serde(default)]
    pub termination_grace_seconds: Option<u32>,
    /// Run one after another, each to its end, before `containers`.
    #[serde(default)]
    pub init_containers: Vec<Container>,
    /// Run together, in one network. At least one.
    pub containers: Vec<Container>,
    /// Directories that containers share, and that go with the stack.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// The ports to publish, in the order asked. At least one, at most
    /// [`crate::port::MAX_TARGET_PORTS`].
    pub target_ports: Vec<TargetPort>,
    /// What it may do less than other stacks.
    #[serde(default)]
    pub restrictions: Restrictions,
    /// What its containers are told and no reader of it is: never in the rendered Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretVariable>,
}

/// A variable whose value only the containers may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVariable {
    /// Its name.
    pub name: String,
    /// Its value, to the letter: `$(NAME)` in it means nothing.
    pub value: Secret,
    /// Which containers get it, by name; all of them where empty.
    #[serde(default)]
    pub containers: Vec<String>,
}

/// What a stack may do less than the configuration allows. It can only take away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restrictions {
    /// The containers' own file systems cannot be written; volumes can.
    #[serde(default)]
    pub read_only_root: bool,
    /// The most processes and threads; the configured limit where it is lower or this is absent.
    #[serde(default)]
    pub pids_limit: Option<u32>,
    /// Capabilities that root inside does not have, by their kernel names without `CAP_`.
    #[serde(default)]
    pub drop_capabilities: BTreeSet<String>,
}

/// One container of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// A DNS label, unique within the stack (init containers included).
    pub name: String,
    /// An image reference as the caller wrote it, for example `nginx:stable`.
    pub image: String,
    /// When to look the image up in its registry; by its tag where the caller did not say.
    #[serde(default)]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Replaces the image's entrypoint, as in Kubernetes; `None` keeps it.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Replaces the image's default arguments, as in Kubernetes; `None` keeps them unless `command`
    /// is set.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Replaces the image's working directory. An absolute path.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Added to the image's environment, in order; `$(NAME)` refers to earlier ones.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// The ports that the container says it listens on.
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
    /// What it may use at most, and what is reserved for it: both are the same here.
    pub resources: Resources,
    /// Where volumes appear inside it.
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
    /// The container gets traffic only while this holds.
    #[serde(default)]
    pub readiness_probe: Option<Probe>,
    /// The stack fails when this does.
    #[serde(default)]
    pub liveness_probe: Option<Probe>,
    /// The other probes wait until this has held once; the stack fails when it does not in time.
    #[serde(default)]
    pub startup_probe: Option<Probe>,
    /// Keep standard input open.
    #[serde(default)]
    pub stdin: bool,
    /// Give the container a terminal.
    #[serde(default)]
    pub tty: bool,
}

/// When to ask the registry for an image that is named by tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePullPolicy {
    /// At every start.
    Always,
    /// When it is not here.
    IfNotPresent,
    /// Never: it must be here.
    Never,
}

impl ImagePullPolicy {
    /// The name that Kubernetes uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its name; not empty, without `=`.
    pub name: String,
    /// Its value, `$(NAME)` not yet expanded.
    #[serde(default)]
    pub value: String,
}

/// A port that a container says it listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// A name that probes may refer to.
    #[serde(default)]
    pub name: Option<String>,
    /// The number.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Whether the caller wrote the protocol; it is shown only then.
    #[serde(default)]
    pub protocol_given: bool,
}

/// Amounts of what a machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk for the writable layer, logs and disk volumes; `None` means the default.
    #[serde(default)]
    pub ephemeral_storage_bytes: Option<u64>,
    /// The same amounts as the caller wrote them, for the rendered Pod alone.
    #[serde(default)]
    pub written: WrittenResources,
}

/// The amounts of a container in the notation of its Pod. What is `None` is shown as the plain
/// number beside it, in its usual notation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenResources {
    /// CPU.
    #[serde(default)]
    pub cpu: Option<Quantity>,
    /// Memory.
    #[serde(default)]
    pub memory: Option<Quantity>,
    /// Disk.
    #[serde(default)]
    pub ephemeral_storage: Option<Quantity>,
}

/// A directory that goes with the stack (`emptyDir`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// A DNS label, unique within the stack.
    pub name: String,
    /// Where it is kept.
    pub medium: VolumeMedium,
    /// The most bytes it may hold; `None` means the limit of what it is kept on.
    #[serde(default)]
    pub size_limit_bytes: Option<u64>,
    /// The same limit as the caller wrote it, for the rendered Pod alone.
    #[serde(default)]
    pub size_limit_written: Option<Quantity>,
}

/// Where a volume is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeMedium {
    /// On the stack's limited disk.
    Disk,
    /// In memory, charged to the containers that write it.
    Memory,
}

/// Where a volume appears in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The name of the volume.
    pub name: String,
    /// An absolute path inside the container.
    pub mount_path: String,
    /// A relative path inside the volume, without `..`.
    #[serde(default)]
    pub sub_path: Option<String>,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A check of a container, repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is done.
    pub action: ProbeAction,
    /// Seconds before the first one. `None` was not given: 0.
    #[serde(default)]
    pub initial_delay_seconds: Option<u32>,
    /// Seconds between two. `None` was not given: 10.
    #[serde(default)]
    pub period_seconds: Option<u32>,
    /// Seconds after which one has failed. `None` was not given: 1.
    #[serde(default)]
    pub timeout_seconds: Option<u32>,
    /// Successes in a row that count as success. `None` was not given: 1.
    #[serde(default)]
    pub success_threshold: Option<u32>,
    /// Failures in a row that count as failure. `None` was not given: 3.
    #[serde(default)]
    pub failure_threshold: Option<u32>,
}

/// How a container is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    /// Runs a command in the container; 0 is success.
    Exec {
        /// The command and its arguments, without a shell.
        command: Vec<String>,
    },
    /// Asks by HTTP; 200–399 is success.
    HttpGet {
        /// The path and query. `None` was not given: `/`.
        path: Option<String>,
        /// The port inside the stack.
        port: ProbePort,
        /// Whether to use TLS (without checking the certificate).
        https: Option<bool>,
        /// Additional headers.
        headers: Vec<(String, String)>,
    },
    /// Connects; a connection is success.
    TcpSocket {
        /// The port inside the stack.
        port: ProbePort,
    },
}

/// The port of a probe, as written and as resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePort {
    /// The number that is dialled.
    pub number: u16,
    /// The name by which the caller gave it, if so.
    #[serde(default)]
    pub name: Option<String>,
}

impl StackSpec {
    /// What the whole stack reserves: the greater of the sum over its containers and the greatest
    /// init container, each resource by itself. `disk` is the default of a container that named
    /// none.
    pub fn requested(&self, default_disk_bytes: u64) -> Requested {
        let of = |c: &Container| Requested {
            cpu_milli: c.resources.cpu_milli,
            memory_bytes: c.resources.memory_bytes,
            disk_bytes: c.resources.ephemeral_storage_bytes.unwrap_or(default_disk_bytes),
        };
        let sum =
            self.containers.iter().map(of).fold(Requested::default(), |sum, one| sum.plus(&one));
        self.init_containers.iter().map(of).fold(sum, |a, b| Requested {
            cpu_milli: a.cpu_milli.max(b.cpu_milli),
            memory_bytes: a.memory_bytes.max(b.memory_bytes),
            disk_bytes: a.disk_bytes.max(b.disk_bytes),
        })
    }

    /// How long a container may take to end after SIGTERM.
    pub fn termination_grace(&self) -> std::time::Duration {
        let seconds = self.termination_grace_seconds.unwrap_or(MAX_TERMINATION_GRACE_SECONDS);
        std::time::Duration::from_secs(seconds.into())
    }

    /// The spec as a runtime has to know it: secrets stand before the other variables, so that
    /// these and the command can refer to them.
    pub fn told(self: &Arc<Self>) -> Arc<Self> {
        if self.secrets.is_empty() {
            return Arc::clone(self);
        }
        let mut told = Self::clone(self);
        let secrets = std::mem::take(&mut told.secrets);
        for container in told.init_containers.iter_mut().chain(&mut told.containers) {
            let own = secrets
                .iter()
                .filter(|s| s.containers.is_empty() || s.containers.contains(&container.name))
                .map(|s| EnvVar {
                    name: s.name.clone(),
                    value: s.value.expose().replace('$', "$$"),
                });
            container.env = own.chain(container.env.drain(..)).collect();
        }
        Arc::new(told)
    }

    /// All containers, in the order in which they start.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The first probe by HTTPS, by its path in the Pod: not every runtime can do that.
    pub fn https_probe(&self) -> Option<String> {
        self.containers.iter().enumerate().find_map(|(at, container)| {
            let probes = [
                ("readinessProbe", &container.readiness_probe),
                ("livenessProbe", &container.liveness_probe),
                ("startupProbe", &container.startup_probe),
            ];
            let is_https = |(_, probe): &(_, &Option<Probe>)| {
                let action = probe.as_ref().map(|probe| &probe.action);
                matches!(action, Some(ProbeAction::HttpGet { https: Some(true), .. }))
            };
            let (name, _) = probes.into_iter().find(is_https)?;
            Some(format!("spec.containers[{at}].{name}.httpGet.scheme"))
        })
    }
}

/// What a stack reserves of a machine, summed over its containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requested {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
}

impl Requested {
    /// This and `other` together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
        }
    }

    /// What is left of this without `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
        }
    }
}
