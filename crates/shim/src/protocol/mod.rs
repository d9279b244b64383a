//! What the server and a shim say to each other: length-prefixed JSON over a Unix socket, with
//! descriptors beside it.
//!
//! A shim outlives the server that made it, and may then be adopted by a newer one. So a field is
//! only ever added, with a default, and [`VERSION`] goes up only when an older peer could do harm.

pub mod wire;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stackd_core::isolation::Profile;
use stackd_core::port::PortMapping;
use stackd_core::runtime::{ErrorKind, RuntimeState, TerminalSize, Usage};
use stackd_core::spec::{Probe, Restrictions, Volume, VolumeMount};
use stackd_core::stack::Condition;
use stackd_core::{StackId, Timestamp};

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// How many user and group ids a stack has: the last one owns its user namespace and is not
/// mapped inside.
pub const IDS_PER_STACK: u32 = 65536;

/// How the names of control groups begin that no stack has yet.
pub const BLANK_PREFIX: &str = "blank-";

/// The name of a shim's state inside its stack's directory.
pub const STATE_FILE: &str = "state.json";
/// The name of a shim's socket inside its stack's directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// The name of the directory of logs inside a stack's directory.
pub const LOG_DIRECTORY: &str = "logs";

/// What a server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The first message: what to make ready ahead of need.
    Prepare(Prepare),
    /// Becomes the shim of this stack. With it come the listening control socket, then one socket
    /// for each port, in their order.
    Start(Box<Start>),
    /// Ends the containers: the signal each wants, after the grace SIGKILL.
    Stop {
        /// How long they may take.
        grace_ms: u64,
    },
    /// Runs a further command. Unless it has a terminal, its standard input, output and error come
    /// with it.
    Exec(ExecCommand),
    /// Ends a command.
    ExecEnd {
        /// The number it was started under, on this connection.
        exec: u64,
    },
    /// Asks what the stack uses.
    Usage,
    /// The first message to a process that is to be a keeper instead: of a stack whose containers
    /// somebody else runs. With it come the listening control socket, then one socket for each
    /// port, in their order; none where the ports are on another machine.
    Keep(Box<Keep>),
    /// The keeper's stack has its network. With it come the namespace and the process that holds
    /// it.
    Enter,
    /// The containers of the keeper's stack run: begin to check them.
    Check,
    /// What became of a probe's command.
    Probed {
        /// Which attempt.
        attempt: u64,
        /// Its code; none where it could not be tried, or has not ended.
        code: Option<i32>,
        /// It had not ended when it had had its time.
        #[serde(default)]
        late: bool,
    },
    /// A container of the keeper's stack has ended well: it is checked no more. Only for a keeper
    /// that says that it [hears](Kept::hears_ends) it.
    Ended {
        /// Its name.
        container: String,
    },
}

/// What a shim says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The process that will be the shim, as the server's process namespace numbers it.
    Forked {
        /// Its process id.
        pid: u32,
    },
    /// It is ready to become a stack's shim.
    Blank {
        /// How long each step took.
        trace: Vec<Step>,
    },
    /// It could not make itself ready.
    Unfit {
        /// Why, for the operator.
        message: String,
    },
    /// How the stack is: at first on every connection, then at every change.
    Snapshot(Snapshot),
    /// The containers were started.
    Started {
        /// How long each step took.
        trace: Vec<Step>,
    },
    /// They were not, and the shim ends.
    Refused(Refusal),
    /// A command runs. With a terminal, its master side comes with this.
    ExecStarted {
        /// Its number.
        exec: u64,
    },
    /// A command could not be started.
    ExecRefused {
        /// Its number.
        exec: u64,
        /// Why, for the caller.
        message: String,
    },
    /// A command has ended.
    ExecEnded {
        /// Its number.
        exec: u64,
        /// Its code; 128 + n after signal n.
        code: i32,
    },
    /// What the stack uses.
    Usage(Usage),
    /// How a keeper's stack is: at first on every connection, then at every change.
    Kept(Kept),
    /// A probe's command is to be run: by whoever is connected, since a keeper cannot.
    Probe {
        /// Which attempt.
        attempt: u64,
        /// In which container.
        container: String,
        /// The command and its arguments, without a shell.
        command: Vec<String>,
        /// How long it may take once it runs; whoever runs it keeps that time.
        timeout_ms: u64,
    },
}

/// A stack that a keeper publishes and checks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keep {
    /// Its id.
    pub id: StackId,
    /// Its main containers.
    pub containers: Vec<KeptContainer>,
    /// Its ports, in the order of the sockets that come with this.
    pub ports: Vec<PortMapping>,
    /// The addresses of its network.
    pub network: Network,
    /// The address of its ports, where they are on another machine: then they are only checked.
    #[serde(default)]
    pub outside: Option<std::net::IpAddr>,
    /// How long it goes on without a server where its ports are on another machine, in
    /// milliseconds. Others end with the network that they are in.
    #[serde(default)]
    pub alone_ms: u64,
    /// Bounds of the relay.
    pub relay: RelayLimits,
}

/// A container of a keeper's stack.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptContainer {
    /// Its name.
    pub name: String,
    /// See `stackd_core::spec::Container`.
    #[serde(default)]
    pub readiness: Option<Probe>,
    /// See `stackd_core::spec::Container`.
    #[serde(default)]
    pub liveness: Option<Probe>,
    /// See `stackd_core::spec::Container`.
    #[serde(default)]
    pub startup: Option<Probe>,
}

/// How a keeper's stack is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its network has been entered.
    pub entered: bool,
    /// Its containers are checked.
    pub checked: bool,
    /// It takes traffic now.
    pub ready: bool,
    /// It did once.
    pub was_ready: bool,
    /// Why it is to be ended.
    #[serde(default)]
    pub unhealthy: Option<String>,
    /// Which container is to blame for that.
    #[serde(default)]
    pub unhealthy_container: Option<String>,
    /// Why its network could not be entered, for the operator.
    #[serde(default)]
    pub fault: Option<String>,
    /// It takes [`Request::Ended`], which an older keeper would hang up at.
    #[serde(default)]
    pub hears_ends: bool,
}

/// The probes of a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probes<'a> {
    pub(crate) readiness: Option<&'a Probe>,
    pub(crate) liveness: Option<&'a Probe>,
    pub(crate) startup: Option<&'a Probe>,
}

impl KeptContainer {
    pub(crate) fn probes(&self) -> Probes<'_> {
        Probes {
            readiness: self.readiness.as_ref(),
            liveness: self.liveness.as_ref(),
            startup: self.startup.as_ref(),
        }
    }
}

impl ContainerPlan {
    pub(crate) fn probes(&self) -> Probes<'_> {
        Probes {
            readiness: self.readiness.as_ref(),
            liveness: self.liveness.as_ref(),
            startup: self.startup.as_ref(),
        }
    }
}

/// What a blank shim makes ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepare {
    /// The directory below which everything lies that a stack is made of.
    pub data_dir: PathBuf,
    /// The first of its [`IDS_PER_STACK`] user and group ids.
    pub id_base: u32,
    /// Its writable layer.
    pub disk: Disk,
    /// Its two addresses.
    pub network: Network,
    /// Where its control groups go.
    pub cgroups: CgroupLayout,
}

/// What a writable layer is kept on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// A file system in a sparse file.
    Loop {
        /// An empty, formatted file system to copy, below the data directory.
        template: PathBuf,
    },
    /// Memory, charged to the stack's limit.
    Memory {
        /// The most bytes.
        bytes: u64,
    },
}

/// The addresses of a stack's network namespace, both on its loopback interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What the stack's services are reached at.
    pub pod: Ipv4Addr,
    /// Where relayed connections and probes come from.
    pub gateway: Ipv4Addr,
}

/// Where control groups go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupLayout {
    /// Version 1: a tree for each controller.
    V1 {
        /// Controller names and where each is mounted.
        controllers: Vec<(String, PathBuf)>,
        /// The parent below each mount, relative.
        parent: String,
    },
    /// Version 2: one tree.
    V2 {
        /// Where it is mounted.
        mount: PathBuf,
        /// The parent below it, relative.
        parent: String,
    },
}

/// Which stack to become the shim of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// Its id.
    pub id: StackId,
    /// The generation it is started from.
    pub generation: u64,
    /// The epoch of the engine that asked.
    pub epoch: u64,
    /// The name of this boot of the machine.
    pub boot_id: String,
    /// The shim's process as the server's namespace numbers it.
    pub shim: ProcessName,
    /// The digests of its images, so that they are kept while it runs.
    #[serde(default)]
    pub images: Vec<String>,
    /// The stack's directory, below the data directory.
    pub directory: PathBuf,
    /// What its containers see as the host's name.
    pub hostname: String,
    /// Its writable layer, where it is not the one that was made ready.
    #[serde(default)]
    pub disk: Option<Disk>,
    /// Its containers, those that run first and to their end before the others.
    pub containers: Vec<ContainerPlan>,
    /// Its volumes.
    pub volumes: Vec<VolumePlan>,
    /// Its ports, in the order of the sockets that come with this.
    pub ports: Vec<PortMapping>,
    /// The most processes and threads of the whole stack.
    pub pids_limit: u32,
    /// What its processes may do.
    pub profile: Profile,
    /// What they may do less than that.
    #[serde(default)]
    pub restrictions: Restrictions,
    /// How long containers may take to end when one of them fails.
    pub grace_ms: u64,
    /// The most bytes of one log file; there are at most two of each container.
    pub log_file_bytes: u64,
    /// Bounds of the relay.
    pub relay: RelayLimits,
}

/// Bounds of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayLimits {
    /// The most TCP connections at once.
    pub connections: usize,
    /// The most UDP flows at once.
    pub flows: usize,
    /// After how long without a datagram a flow is forgotten.
    pub flow_idle_ms: u64,
}

/// A volume and, where it is limited by itself, the file system to keep it on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumePlan {
    /// What the Pod says of it.
    pub volume: Volume,
    /// An empty, formatted file system of its size, below the data directory; none for one that is not limited by itself.
    #[serde(default)]
    pub template: Option<PathBuf>,
}

/// A container, with all that its image says resolved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Its name.
    pub name: String,
    /// Whether it runs to its end before the others.
    #[serde(default)]
    pub init: bool,
    /// The directories of its image's layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// The command and its arguments; at least one.
    pub args: Vec<String>,
    /// The environment, as `NAME=value`.
    pub env: Vec<String>,
    /// The working directory inside.
    pub cwd: String,
    /// The user inside.
    pub uid: u32,
    /// The group inside.
    pub gid: u32,
    /// Further groups inside.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// The number of the signal that asks it to end.
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Where volumes appear.
    #[serde(default)]
    pub mounts: Vec<VolumeMount>,
    /// See `stackd_core::spec::Container`.
    #[serde(default)]
    pub readiness: Option<Probe>,
    /// See `stackd_core::spec::Container`.
    #[serde(default)]
    pub liveness: Option<Probe>,
    /// See `stackd_core::spec::Container`.
    #[serde(default)]
    pub startup: Option<Probe>,
    /// Whether its standard input stays open.
    #[serde(default)]
    pub stdin: bool,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
}

const fn sigterm() -> i32 {
    libc::SIGTERM
}

/// A further command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecCommand {
    /// A number, the caller's choice, unique on its connection.
    pub exec: u64,
    /// Which container; the first of the running ones where not named.
    #[serde(default)]
    pub container: Option<String>,
    /// The command and its arguments; at least one.
    pub command: Vec<String>,
    /// A terminal of this size instead of three descriptors.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
}

/// How a stack is, as its shim sees it. Also what is written to [`STATE_FILE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// The version of the protocol that its shim speaks.
    pub version: u32,
    /// Which stack.
    pub id: StackId,
    /// The generation that it was started from.
    pub generation: u64,
    /// The newest epoch its shim has seen.
    pub epoch: u64,
    /// During which boot of the machine.
    pub boot_id: String,
    /// The shim's process as the server's namespace numbers it.
    pub shim: ProcessName,
    /// The digests of its images.
    #[serde(default)]
    pub images: Vec<String>,
    /// The first of its user and group ids.
    pub id_base: u32,
    /// Its node ports.
    pub ports: Vec<PortMapping>,
    /// The names of its containers, init containers first.
    pub containers: Vec<String>,
    /// How many of them are init containers.
    #[serde(default)]
    pub init_containers: usize,
    /// When its containers were started.
    pub started_at: Timestamp,
    /// How it is.
    pub state: RuntimeState,
}

/// A process, named so that a later one with the same number is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    /// Its number.
    pub pid: u32,
    /// When it was started, in the kernel's ticks since boot.
    pub start_time: u64,
}

/// Why the containers could not be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refusal {
    /// Whose move it is.
    pub kind: ErrorKind,
    /// What a caller may read.
    pub condition: Condition,
    /// What only the operator may read.
    pub operator: String,
}

/// A step and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub micros: u64,
}
