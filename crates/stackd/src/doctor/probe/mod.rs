//! `stackd doctor --probe`: starts real stacks and tries from inside what a stack must not be able
//! to do. Their image is this program itself, which is static and needs nothing else.

mod bed;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::future::join_all;
use stackd_core::isolation::Profile;
use stackd_core::pod::{self, PodDefaults};
use stackd_core::port::{PortMapping, TargetPorts};
use stackd_core::runtime::{
    EnsureRequest, ErrorKind, ExecOutput, ExecRequest, Observation, Outcome, Runtime, RuntimeState,
};
use stackd_core::stack::reason;
use stackd_core::{Protocol, RuntimeError, StackId};
use stackd_probe::facts::Around;
use stackd_probe::{ANSWER, Case, Fills, PORT, Places, Said, Verdict};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use super::{Check, Status};
use crate::config::{Config, Driver};

/// The first argument that makes this program one that runs inside a stack.
const ARGUMENT: &str = "probe-inside";
/// What a stack of this may fill: enough for the program, little enough to be filled soon.
const DISK_BYTES: u64 = 32 << 20;
const MEMORY: &str = "128Mi";
/// How long a start, a probe or a removal may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take until a kubelet ends a stack that fills its disk: it looks at volumes once a
/// minute.
const LOOKED_AT: Duration = Duration::from_secs(150);
/// How long to wait before something is looked at or asked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// How many node ports of a cluster are tried that another Service may hold.
const PORTS_TRIED: usize = 20;
/// What to do about a hole.
const FIX: &str = "let no strangers use this server before it is closed: what FOUND names was possible \
                   from inside a stack";

/// What is said where no program gains rights, and there is no user namespace.
const ROOT_OUTSIDE: &str = "NoNewPrivs 1, root here is user 0 outside";
/// What to do about it.
const REMAP: &str = "set \"userns-remap\" in the engine's daemon.json, or use the oci runtime, where each \
                     stack has a user namespace of its own";
const NEWER_NODES: &str = "give the cluster nodes that make user namespaces: see the check of them";
/// What to do about a disk that is only watched.
const LIMIT: &str = "keep the engine's data on a file system whose quotas the engine can use (XFS \
                     with pquota), or use the oci runtime, where strangers fill disks";
/// What to do about files that nobody counts.
const COUNTED: &str = "run stackd on the engine's own machine, or keep the engine's data on a file system \
                       that has no fixed number of inodes (XFS, btrfs)";
const ROOM: &str = "a kubelet looks at what stacks have written every ten seconds or so: give nodes more \
                    room than a stack can fill in that time";

/// A runtime to be tried.
pub(super) struct Subject<'a> {
    /// It.
    pub(super) runtime: &'a dyn Runtime,
    /// An image in which [`PROGRAM`] is this program.
    pub(super) image: &'a str,
    /// Where its node ports are reached from here.
    pub(super) address: &'a str,
    /// Node ports that may be taken for a while.
    pub(super) node_ports: RangeInclusive<u16>,
    /// What its stacks run on.
    pub(super) on: On<'a>,
}

/// What stacks run on, as far as a stack could get at it.
pub(super) enum On<'a> {
    /// This machine.
    Machine {
        /// Where connections come from that are relayed into a stack.
        gateway: String,
        /// A directory of the server.
        data_dir: String,
    },
    /// Another machine, which stacks must not reach.
    Elsewhere {
        /// Its address.
        host: String,
        /// A TCP port that something there listens on.
        api: u16,
        /// Where a stack finds it.
        gateway_of: &'a (dyn Fn(StackId) -> Option<String> + Sync),
        /// A directory of the server.
        data_dir: String,
    },
    /// The nodes of a cluster, one of which has the address of the [`Subject`].
    Cluster,
}

/// Where this program is inside the image.
pub(super) const PROGRAM: &str = "/stackd";

/// What this program does inside a stack, where it was started as that.
pub(crate) fn main_if_requested() -> Option<std::process::ExitCode> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        [ARGUMENT, words @ ..] => Some(stackd_probe::main(words)),
        _ => None,
    }
}

/// Proves the isolation of the runtime that is configured.
pub(super) async fn checks(config: &Config) -> Vec<Check> {
    let proved = match config.runtime.driver {
        Driver::Oci => bed::oci(config).await,
        Driver::Kubernetes => bed::kubernetes(config).await,
        Driver::Docker => bed::docker(config).await,
        Driver::Simulated => Err(anyhow::anyhow!("the simulated runtime starts no containers")),
    };
    proved.unwrap_or_else(|error| {
        let fix = "what is wrong is told above; the log of `stackd serve` says more";
        vec![Check::failed("isolation", format!("it cannot be tried: {error:#}"), fix)]
    })
}

/// A stack for the probes, or its neighbour.
#[derive(Debug, Clone, Copy)]
struct Stack {
    id: StackId,
    node_port: u16,
}

/// Tries everything on a runtime, and takes away what was started for it, also where it is told to
/// end before it is done.
pub(super) async fn prove(subject: &Subject<'_>) -> anyhow::Result<Vec<Check>> {
    let mut stacks = Vec::new();
    let tried = tokio::select! {
        tried = try_all(subject, &mut stacks) => tried,
        told = told_to_end() => told.and_then(|()| Err(anyhow::anyhow!("it was interrupted"))),
    };
    let removed = join_all(stacks.into_iter().map(|stack| remove(subject.runtime, stack.id))).await;
    let left: Vec<_> = removed.into_iter().filter_map(Result::err).collect();
    if left.is_empty() {
        return tried;
    }
    let left = format!("left behind: {}", left.join("; "));
    let mut checks = tried.with_context(|| left.clone())?;
    checks.push(Check::failed("isolation: clearing up", left, "remove them by hand"));
    Ok(checks)
}

async fn told_to_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    eprintln!("interrupted; what was started is taken away first");
    Ok(())
}

/// Removes a stack as the engine does: what is to be asked again is asked again.
async fn remove(runtime: &dyn Runtime, id: StackId) -> Result<(), String> {
    let since = tokio::time::Instant::now();
    loop {
        match runtime.remove(id, Duration::ZERO).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind == ErrorKind::Retry && since.elapsed() < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(format!("{id} ({})", error.operator)),
        }
    }
}

/// Tries everything. What it starts is named in `stacks` before anything of it is there.
async fn try_all(subject: &Subject<'_>, stacks: &mut Vec<Stack>) -> anyhow::Result<Vec<Check>> {
    // Something on every address of the host that a stack must not reach.
    let api = TcpListener::bind(("0.0.0.0", 0)).context("listen on this machine")?;
    subject.runtime.prepare(subject.image, None).await.context("the image")?;
    let mut hostile = start(subject, stacks).await?;
    let neighbour = start(subject, stacks).await?;
    let places = match &subject.on {
        On::Machine { gateway, data_dir } => Places::Machine {
            host: own_address(&api)?,
            api: api.local_addr()?.port(),
            gateway: gateway.clone(),
            neighbour: neighbour.node_port,
            data_dir: data_dir.clone(),
        },
        On::Elsewhere { host, api, gateway_of, data_dir } => Places::Machine {
            host: host.clone(),
            api: *api,
            gateway: gateway_of(hostile.id).context("a stack's network has no gateway")?,
            neighbour: neighbour.node_port,
            data_dir: data_dir.clone(),
        },
        On::Cluster => around(subject, &neighbour).await?,
    };
    let mut checks = Vec::new();
    for case in places.cases() {
        let name = format!("isolation: {}", case.name);
        if case.fills == Some(Fills::Inodes) && matches!(subject.on, On::Elsewhere { .. }) {
            let found = "not limited, nor looked at, on an engine elsewhere; not tried";
            checks.push(Check::warning(&name, found, COUNTED));
            continue;
        }
        let tried = attempt(subject, &hostile, case, &places).await;
        let good = tried.as_ref().is_ok_and(|check| check.status == Status::Ok);
        if !good && case.fills.is_some() && ended_for_disk(subject, hostile.id).await {
            let found = "not limited while it is written; the stack was ended for it";
            let fix = if matches!(subject.on, On::Cluster) { ROOM } else { LIMIT };
            checks.push(Check::warning(&name, found, fix));
        } else {
            checks.push(tried.unwrap_or_else(|error| {
                let text = format!("the attempt could not be made: {error:#}");
                Check::failed(&name, text, FIX)
            }));
        }
        if answers(subject, &hostile).await.is_err() {
            // It has ended of what it did: the next attempt needs another.
            hostile = start(subject, stacks).await?;
        }
        answers(subject, &neighbour)
            .await
            .with_context(|| format!("the neighbour after {:?}", case.name))?;
    }
    Ok(checks)
}

/// An address of this machine, at which the listener can be reached.
fn own_address(listener: &TcpListener) -> anyhow::Result<String> {
    let host = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // Sends nothing: only a route is looked up.
    let host = host.connect("192.0.2.1:9").and_then(|()| host.local_addr());
    let host = host.map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string());
    let port = listener.local_addr()?.port();
    TcpStream::connect((host.as_str(), port)).context("reach this machine by its address")?;
    Ok(host)
}

/// What a stack of a cluster could reach, as its neighbour sees it from inside.
async fn around(subject: &Subject<'_>, neighbour: &Stack) -> anyhow::Result<Places> {
    let command = [PROGRAM, ARGUMENT, "around"].map(str::to_owned).to_vec();
    let (output, _) = tokio::time::timeout(PATIENCE, run(subject.runtime, neighbour.id, command))
        .await
        .context("a stack does not tell where it is")??;
    let around = Around::read(&output)
        .with_context(|| format!("a stack does not know where it is: it said {output:?}"))?;
    let node: IpAddr = subject.address.parse().context("the address of a node")?;
    let pod: IpAddr = around.address.parse().context("the address of a Pod")?;
    let node = if node.is_ipv6() { format!("[{node}]") } else { node.to_string() };
    Ok(Places::Cluster {
        node,
        api_server: around.api_server,
        neighbour: neighbour.node_port,
        pod: SocketAddr::new(pod, PORT).to_string(),
    })
}

/// Whether a stack ends because it has written too much: so it does where that cannot be prevented.
async fn ended_for_disk(subject: &Subject<'_>, id: StackId) -> bool {
    let mut observations = subject.runtime.observe();
    let ended = async {
        while let Some(observation) = observations.next().await {
            let Observation::Stack(seen) = observation else { continue };
            if let RuntimeState::Ended { condition, .. } = seen.state
                && seen.id == id
            {
                // A kubelet may lose why it has ended a Pod, where that ends at once.
                return condition.reason == reason::DISK_FULL || matches!(subject.on, On::Cluster);
            }
        }
        false
    };
    let patience = if matches!(subject.on, On::Cluster) { LOOKED_AT } else { PATIENCE };
    tokio::time::timeout(patience, ended).await.unwrap_or(false)
}

/// A new id, with a node port that none of these has: only a runtime of this machine refuses one.
fn claim(subject: &Subject<'_>, stacks: &[Stack]) -> anyhow::Result<Stack> {
    let mut bits = [0; 8];
    getrandom::fill(&mut bits)?;
    let id = StackId::from_bits(u64::from_be_bytes(bits));
    let number = subject.node_ports.len();
    // A cluster does not say which ports are free, and whoever takes some begins at an end.
    let first = match subject.on {
        On::Cluster => usize::from(u16::from_be_bytes([bits[0], bits[1]])) % number.max(1),
        On::Machine { .. } | On::Elsewhere { .. } => 0,
    };
    let ports = subject.node_ports.clone().rev().cycle().skip(first).take(number);
    let mut ports = ports.filter(|port| stacks.iter().all(|stack| stack.node_port != *port));
    let taken = ports.find(|port| subject.runtime.claim_ports(id, &mapping(*port)).is_ok());
    Ok(Stack { id, node_port: taken.context("no node port is free")? })
}

fn mapping(node_port: u16) -> Vec<PortMapping> {
    vec![PortMapping { container_port: PORT, protocol: Protocol::Tcp, node_port }]
}

/// Starts a stack that answers on its port, and waits until it does.
async fn start(subject: &Subject<'_>, stacks: &mut Vec<Stack>) -> anyhow::Result<Stack> {
    for _ in 0..PORTS_TRIED {
        let stack = claim(subject, stacks)?;
        stacks.push(stack);
        match begin(subject, &stack).await.context("a stack was not ready in time")? {
            Ok(()) => return Ok(stack),
            Err(Unstarted::PortTaken) => {
                // What it has besides would take room; what stays is tried again at the end.
                let _ = remove(subject.runtime, stack.id).await;
            }
            Err(Unstarted::Other(error)) => return Err(error),
        }
    }
    anyhow::bail!("no node port is free: others hold the {PORTS_TRIED} that were tried")
}

/// Why a stack was not started.
enum Unstarted {
    /// Another Service holds its node port.
    PortTaken,
    /// Something that another try would not change.
    Other(anyhow::Error),
}

impl From<RuntimeError> for Unstarted {
    fn from(error: RuntimeError) -> Self {
        if error.condition.reason == reason::NODE_PORT_TAKEN {
            return Self::PortTaken;
        }
        Self::Other(anyhow::anyhow!("{}: {}", error.condition.message, error.operator))
    }
}

impl From<anyhow::Error> for Unstarted {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

async fn begin(
    subject: &Subject<'_>,
    stack: &Stack,
) -> Result<Result<(), Unstarted>, tokio::time::error::Elapsed> {
    let ready = async {
        let mut observations = subject.runtime.observe();
        subject.runtime.ensure(request(subject, stack)?).await?;
        loop {
            let Some(observation) = observations.next().await else {
                return Err(anyhow::anyhow!("the runtime has gone away").into());
            };
            match observation {
                Observation::Stack(seen) if seen.id == stack.id => match seen.state {
                    RuntimeState::Running { ready: true, .. } => break,
                    RuntimeState::Ended { outcome, condition, .. } => {
                        let how = if outcome == Outcome::Completed { "ended" } else { "failed" };
                        return Err(anyhow::anyhow!("a stack {how}: {}", condition.message).into());
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        // The other nodes of a cluster hear of it a moment later.
        while let Err(error) = answers(subject, stack).await {
            tracing::debug!("{error:#}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, ready).await
}

/// A stack that answers on its port.
fn request(subject: &Subject<'_>, stack: &Stack) -> anyhow::Result<EnsureRequest> {
    // An image for a cluster may have no directory that its user can write to.
    let (mounts, volumes) = match subject.on {
        On::Cluster => (
            "    volumeMounts: [{name: tmp, mountPath: /tmp}]\n",
            "  volumes: [{name: tmp, emptyDir: {}}]\n",
        ),
        On::Machine { .. } | On::Elsewhere { .. } => ("", ""),
    };
    let yaml = format!(
        "kind: Pod\nspec:\n  containers:\n  - name: probe\n    image: {}\n    \
         imagePullPolicy: IfNotPresent\n    command: [{PROGRAM}, {ARGUMENT}, serve]\n    \
         ports: [{{containerPort: {PORT}}}]\n{mounts}    \
         resources: {{limits: {{cpu: 500m, memory: {MEMORY}, ephemeral-storage: {DISK_BYTES}}}}}\n\
         {volumes}",
        subject.image
    );
    let spec = pod::parse(&yaml, &TargetPorts::Any(PORT), &PodDefaults::default())?;
    let capabilities = subject.runtime.capabilities();
    Ok(EnsureRequest {
        id: stack.id,
        generation: 1,
        epoch: 1,
        spec: Arc::new(spec),
        ports: mapping(stack.node_port),
        runtime_class: capabilities.runtime_classes.first().cloned().unwrap_or_default(),
        labels: Default::default(),
        pids_limit: stackd_core::isolation::DEFAULT_PIDS_LIMIT,
        disk_bytes: DISK_BYTES,
        profile: Profile::Default,
    })
}

/// Asks a stack by its node port.
async fn answers(subject: &Subject<'_>, stack: &Stack) -> anyhow::Result<()> {
    let ask = async {
        let address = (subject.address, stack.node_port);
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::ensure!(answer == ANSWER, "it said {answer:?}");
        Ok(())
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await.context("it does not answer in time");
    answer.and_then(|answer| answer).context("its node port")
}

async fn attempt(
    subject: &Subject<'_>,
    stack: &Stack,
    case: &Case,
    places: &Places,
) -> anyhow::Result<Check> {
    let mut command = vec![PROGRAM.to_owned(), ARGUMENT.to_owned()];
    command.extend(case.words(places));
    let run = run(subject.runtime, stack.id, command);
    let (output, code) = tokio::time::timeout(PATIENCE, run)
        .await
        .with_context(|| format!("{:?} takes too long", case.name))?
        .with_context(|| format!("{:?}", case.name))?;
    let said = Said::read(&output, code);
    if !subject.runtime.capabilities().enforcement.user_namespace
        && said.as_ref().is_some_and(|said| said.detail == ROOT_OUTSIDE)
    {
        // Only the engine can change that, for all of its containers at once, or the nodes.
        let name = format!("isolation: {}", case.name);
        let fix = if matches!(subject.on, On::Cluster) { NEWER_NODES } else { REMAP };
        return Ok(Check::warning(&name, ROOT_OUTSIDE, fix));
    }
    Ok(judged(case, said, &output))
}

fn judged(case: &Case, said: Option<Said>, output: &str) -> Check {
    let name = format!("isolation: {}", case.name);
    match said {
        Some(said) if said.verdict == case.expected => Check::ok(&name, said.verdict.as_str()),
        Some(Said { verdict: Verdict::Killed, .. }) => {
            Check::failed(&name, "the attempt was killed before it could tell", FIX)
        }
        Some(said) => Check::failed(&name, said.detail, FIX),
        None => Check::failed(&name, format!("the attempt said {output:?}"), FIX),
    }
}

/// Runs a command to its end.
async fn run(
    runtime: &dyn Runtime,
    id: StackId,
    command: Vec<String>,
) -> anyhow::Result<(String, i32)> {
    let request = ExecRequest { container: None, command, terminal: None, stdin: false };
    let mut session = runtime.exec(id, request).await?;
    let mut output = Vec::new();
    while let Some(part) = session.output.next().await {
        match part? {
            ExecOutput::Stdout(data) | ExecOutput::Stderr(data) => output.extend_from_slice(&data),
            ExecOutput::Exit(code) => {
                return Ok((String::from_utf8_lossy(&output).into_owned(), code));
            }
        }
    }
    anyhow::bail!("the command's end was not told")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_expected_is_good() {
        let cases: Vec<_> = stackd_probe::cases(stackd_probe::Platform::Machine).collect();
        let [first, .., last] = cases[..] else { panic!("there are cases") };
        let status =
            |case, output: &str, code| judged(case, Said::read(output, code), output).status;
        assert_eq!(status(first, "denied all\n", 0), Status::Ok);
        assert_eq!(status(first, "allowed 10.0.0.1\n", 1), Status::Failed);
        assert_eq!(status(first, "", 137), Status::Failed);
        assert_eq!(status(first, "exec failed", 126), Status::Failed);
        assert_eq!(status(last, "", 137), Status::Ok);
        assert_eq!(status(last, "allowed 8192 MiB\n", 1), Status::Failed);
    }
}
