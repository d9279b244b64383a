//! The seam between the engine and whatever starts containers.
//!
//! Every call is keyed by stack id and idempotent: it may come twice, late, and after a crash of
//! either side. A runtime never decides what should run; it makes what it is told true and says
//! what it sees. `testkit::runtime_contract` is the executable form of this page, and every driver
//! passes it against the real thing.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::StackId;
use crate::isolation::{Enforcement, Profile};
use crate::port::{PortMapping, Protocol};
use crate::spec::{ImagePullPolicy, StackSpec};
use crate::stack::{Condition, reason};

/// A boxed future, so that drivers can be chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A boxed stream.
pub type BoxStream<'a, T> = Pin<Box<dyn Stream<Item = T> + Send + 'a>>;

/// What starts, watches and removes the containers of stacks.
pub trait Runtime: Send + Sync + 'static {
    /// What this runtime can do here, found out when it was made.
    fn capabilities(&self) -> &Capabilities;

    /// Where the next stack would run, where that is known before it is placed: always on a
    /// runtime of one machine. Where it is not, a create waits a moment for the runtime's word.
    fn placement(&self) -> Option<Placement>;

    /// Takes node ports of this machine for a stack, before its row is written.
    ///
    /// A port that a foreign process holds comes back in the error, and then none is taken. A
    /// runtime whose ports are not of this machine accepts all. What was claimed is given back by
    /// [`Runtime::remove`], or when the stack ends.
    fn claim_ports(&self, id: StackId, ports: &[PortMapping]) -> Result<(), PortsTaken>;

    /// Gives back what [`Runtime::claim_ports`] took for a stack that was never ensured.
    fn unclaim_ports(&self, id: StackId);

    /// Makes the node ports of a stack refuse connections, at once, where that can be had; they stay
    /// the stack's. It is called when its end is decided and before anybody is told, while
    /// [`Runtime::remove`] takes its time.
    fn close_ports(&self, _id: StackId) {}

    /// Makes an image ready to start from. Any number of callers share one pull.
    fn prepare<'a>(
        &'a self,
        image: &'a str,
        policy: Option<ImagePullPolicy>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Starts a stack unless it runs already. Completes when its containers have been started or
    /// refused; that they are ready for traffic comes through [`Runtime::observe`].
    fn ensure(&self, request: EnsureRequest) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Ends the containers of a stack and gives back its ports and resources; its logs stay.
    fn stop(&self, id: StackId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Ends and removes everything of a stack. Completes when nothing is left; an unknown stack is
    /// success.
    fn remove(&self, id: StackId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// The full inventory, then [`Observation::Synced`], then every change. The stream ends when
    /// the runtime is lost, and may then be asked for again.
    ///
    /// Of several servers only the one that leads observes. What a runtime changes without being
    /// asked (it ends what has failed, it mends what somebody broke) it changes only while a stream
    /// is open, where several servers share what it runs on.
    fn observe(&self) -> BoxStream<'static, Observation>;

    /// What a container has written. A stack that is not here is an
    /// [absence](RuntimeError::is_absence).
    fn logs(
        &self,
        id: StackId,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError>>;

    /// Runs a further command in a container.
    fn exec(
        &self,
        id: StackId,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, RuntimeError>>;

    /// What a stack uses right now.
    fn usage(&self, id: StackId) -> BoxFuture<'_, Result<Usage, RuntimeError>>;
}

/// What a runtime can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The driver's name, as in `--runtime`.
    pub name: String,
    /// The runtime classes it serves; the first is the default.
    pub runtime_classes: Vec<String>,
    /// How many starts it is good to have under way at once.
    pub concurrent_starts: usize,
    /// What the machine has to give, where the runtime is of one machine.
    pub machine: Option<Machine>,
    /// Whether TCP and UDP have node ports of their own, so that one number may be given out in
    /// both. Where they have not, a number is one stack's, and one port's of it.
    pub protocols_apart: bool,
    /// Whether it probes by HTTPS.
    pub https_probes: bool,
    /// What it enforces of a stack's isolation.
    pub enforcement: Enforcement,
}

impl Capabilities {
    /// What of a stack cannot be done here, in words for its caller.
    pub fn cannot(&self, spec: &StackSpec) -> Option<String> {
        let path = spec.https_probe().filter(|_| !self.https_probes)?;
        let advice = "use a tcpSocket probe on the same port";
        Some(format!("{path}: HTTPS is not supported by this runtime; {advice}"))
    }
}

/// What a machine has in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk that stacks may fill.
    pub disk_bytes: u64,
}

/// A machine that stacks run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Its name.
    pub node: String,
    /// The address at which its node ports are reached from outside, where it has one.
    pub public_ip: Option<String>,
}

/// Node ports that cannot be had because somebody else holds them. None of them where the machine
/// can bind no port at all for now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} node ports are held by other processes", .0.len())]
pub struct PortsTaken(pub Vec<(Protocol, u16)>);

/// What [`Runtime::ensure`] is to make true.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureRequest {
    /// Which stack.
    pub id: StackId,
    /// Of its kind of request; one that is older than what runs is refused.
    pub generation: u64,
    /// Of the engine that asks; one that is older than the newest seen is refused.
    pub epoch: u64,
    /// What to start.
    pub spec: Arc<StackSpec>,
    /// Its node ports.
    pub ports: Vec<PortMapping>,
    /// Which handler to start it with.
    pub runtime_class: String,
    /// Labels for the runtime's own objects.
    pub labels: BTreeMap<String, String>,
    /// The most processes and threads it may have, over all containers.
    pub pids_limit: u32,
    /// The most bytes that the writable layers, disk volumes and logs may hold together.
    pub disk_bytes: u64,
    /// What its processes may do; the spec's restrictions take from it.
    pub profile: Profile,
}

/// One message of [`Runtime::observe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// A stack as it is now; sent for each at first, then at every change.
    Stack(ObservedStack),
    /// Every stack that the runtime has was sent: what was not is not there.
    Synced,
    /// Nothing is left of this stack, though nobody asked for that through this runtime.
    Gone(StackId),
}

/// A stack as the runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedStack {
    /// Which.
    pub id: StackId,
    /// The generation that it was started from.
    pub generation: u64,
    /// How it is.
    pub state: RuntimeState,
    /// The machine it is on, once placed.
    pub placement: Option<Placement>,
    /// How often its containers were started again.
    pub restarts: u32,
}

/// How a stack is, for the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum RuntimeState {
    /// Something of it is there and its containers were never all asked for, as a crash between
    /// two calls leaves it: another [`Runtime::ensure`] makes it whole.
    Incomplete,
    /// On its way to its first readiness.
    Starting {
        /// What it waits for.
        condition: Option<Condition>,
    },
    /// Its containers run.
    Running {
        /// Whether it takes traffic now.
        ready: bool,
        /// Why it is not simply running: not ready, or at one of its limits.
        condition: Option<Condition>,
    },
    /// Its containers have ended, its ports and resources are given back, its logs are kept.
    Ended {
        /// How.
        outcome: Outcome,
        /// The first code other than 0, else 0; 128 + n after signal n. None where there is none.
        exit_code: Option<i32>,
        /// Why.
        condition: Condition,
        /// When.
        at: Timestamp,
    },
}

/// How a stack ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every container ended with 0.
    Completed,
    /// Anything else.
    Failed,
    /// Its machine is gone.
    NodeLost,
}

/// Which kind of failure, that is, whose move it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The caller's: the same request will fail again.
    Rejected,
    /// There is no room now.
    Saturated,
    /// The runtime's, for a moment: the engine tries again.
    Retry,
    /// The runtime's, for good.
    Failed,
}

/// A failure of a runtime. It is shown by what a caller may read; the rest is for the log.
#[derive(Debug, Clone)]
pub struct RuntimeError {
    /// Whose move it is.
    pub kind: ErrorKind,
    /// What a caller may read.
    pub condition: Condition,
    /// What only the operator may read.
    pub operator: String,
}

impl RuntimeError {
    /// An error whose details are not for callers.
    pub fn new(kind: ErrorKind, condition: Condition, operator: impl Into<String>) -> Self {
        Self { kind, condition, operator: operator.into() }
    }

    /// An error that callers may read whole.
    pub fn open(kind: ErrorKind, reason: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, condition: Condition::new(reason, message.clone()), operator: message }
    }

    /// Whether it says that the runtime has nothing that runs of the stack in question. Calls that
    /// look into a stack answer so, each driver in words of its own.
    pub fn is_absence(&self) -> bool {
        self.kind == ErrorKind::Rejected && self.condition.reason == reason::LOST
    }
}

impl fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.condition.message)
    }
}

impl std::error::Error for RuntimeError {}

/// What part of a container's output is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Which container; the stack's only one, or its first, where not named.
    pub container: Option<String>,
    /// Only this many last lines.
    pub tail: Option<usize>,
    /// Go on with what comes, until the stack ends.
    pub follow: bool,
}

/// A line that a container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read.
    pub at: Timestamp,
    /// Where it was written to.
    pub stream: LogStream,
    /// What, without the line's end.
    pub text: Bytes,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A further command in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Which container; the stack's first where not named.
    pub container: Option<String>,
    /// The command and its arguments, without a shell.
    pub command: Vec<String>,
    /// Give it a terminal of this size; pipes otherwise.
    pub terminal: Option<TerminalSize>,
    /// Whether it has a standard input.
    pub stdin: bool,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A command under way. Dropping it ends the command.
pub struct ExecSession {
    /// What it writes, and at last its code.
    pub output: BoxStream<'static, Result<ExecOutput, RuntimeError>>,
    /// Where its input goes.
    pub input: Box<dyn ExecInput>,
}

impl fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSession").finish_non_exhaustive()
    }
}

/// What comes from a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// From standard output, or from the terminal.
    Stdout(Bytes),
    /// From standard error.
    Stderr(Bytes),
    /// It has ended, with this code; 128 + n after signal n. Nothing follows.
    Exit(i32),
}

/// What goes to a command.
pub trait ExecInput: Send {
    /// Writes to its standard input or terminal.
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Ends its standard input.
    fn close(&mut self) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Changes the size of its terminal.
    fn resize(&mut self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>>;
}

/// What a stack uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since its start.
    pub cpu_time: Duration,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes on its disk.
    pub disk_bytes: u64,
}
