//! `stackd doctor --probe`: starts real stacks and tries from inside what a stack must not be able
//! to do. Their image is this program itself, which is static and needs nothing else.

mod bed;

use std::net::{TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use stackd_core::isolation::Profile;
use stackd_core::pod::{self, PodDefaults};
use stackd_core::port::{PortMapping, TargetPorts};
use stackd_core::runtime::{
    EnsureRequest, ExecOutput, ExecRequest, Observation, Outcome, Runtime, RuntimeState,
};
use stackd_core::{Protocol, StackId};
use stackd_probe::{ANSWER, CASES, Case, PORT, Places, Said, Verdict};
use tokio::io::AsyncReadExt;

use super::{Check, Status};
use crate::config::{Config, Driver};

/// The first argument that makes this program one that runs inside a stack.
const ARGUMENT: &str = "probe-inside";
/// What a stack of this may fill: enough for the program, little enough to be filled soon.
const DISK_BYTES: u64 = 32 << 20;
const MEMORY: &str = "128Mi";
/// How long a start or a probe may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What to do about a hole.
const FIX: &str = "let no strangers use this server before it is closed: what FOUND names was possible \
                   from inside a stack";

/// What is said where no program gains rights, and there is no user namespace.
const ROOT_OUTSIDE: &str = "NoNewPrivs 1, root here is user 0 outside";
/// What to do about it.
const REMAP: &str = "set \"userns-remap\" in the engine's daemon.json, or use the oci runtime, where each \
                     stack has a user namespace of its own";
/// What to do about a disk that is only watched.
const LIMIT: &str = "keep the engine's data on a file system whose quotas the engine can use (XFS \
                     with pquota), or use the oci runtime, where strangers fill disks";

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
    /// Where connections come from that are relayed into a stack.
    pub(super) gateway: String,
    /// A directory of the server.
    pub(super) data_dir: String,
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

/// Tries everything on a runtime, and takes away what was started for it.
pub(super) async fn prove(subject: &Subject<'_>) -> anyhow::Result<Vec<Check>> {
    let host = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // Sends nothing: only a route is looked up.
    let host = host.connect("192.0.2.1:9").and_then(|()| host.local_addr());
    let host = host.map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string());
    // Something on every address of the host that a stack must not reach, and that can be reached.
    let api = TcpListener::bind(("0.0.0.0", 0)).context("listen on this machine")?;
    let port = api.local_addr()?.port();
    TcpStream::connect((host.as_str(), port)).context("reach this machine by its address")?;

    subject.runtime.prepare(subject.image, None).await.context("the image")?;
    let mut stacks = Vec::new();
    let result = async {
        for _ in 0..2 {
            let stack = claim(subject)?;
            stacks.push(stack);
            start(subject, &stack).await?;
        }
        let &[mut hostile, neighbour] = &stacks[..] else { unreachable!("two were started") };
        let places = Places {
            host,
            api: port,
            gateway: subject.gateway.clone(),
            neighbour: neighbour.node_port,
            data_dir: subject.data_dir.clone(),
        };
        let mut checks = Vec::new();
        for case in CASES {
            let tried = attempt(subject, &hostile, case, &places).await;
            let good = tried.as_ref().is_ok_and(|check| check.status == Status::Ok);
            let name = format!("isolation: {}", case.name);
            if !good && case.fills_disk && ended_for_disk(subject, hostile.id).await {
                let found = "not limited while it is written; the stack was ended for it";
                checks.push(Check::warning(&name, found, LIMIT));
            } else {
                checks.push(tried.unwrap_or_else(|error| {
                    let text = format!("the attempt could not be made: {error:#}");
                    Check::failed(&name, text, FIX)
                }));
            }
            if answers(subject, &hostile).await.is_err() {
                // It has ended of what it did: the next attempt needs another.
                hostile = claim(subject)?;
                stacks.push(hostile);
                start(subject, &hostile).await?;
            }
            answers(subject, &neighbour)
                .await
                .with_context(|| format!("the neighbour after {:?}", case.name))?;
        }
        Ok(checks)
    }
    .await;
    for stack in &stacks {
        let removed = subject.runtime.remove(stack.id, Duration::ZERO).await;
        removed.with_context(|| format!("remove {}", stack.id))?;
    }
    result
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
                return condition.reason == stackd_core::stack::reason::DISK_FULL;
            }
        }
        false
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap_or(false)
}

/// A new id, with a node port.
fn claim(subject: &Subject<'_>) -> anyhow::Result<Stack> {
    let mut bits = [0; 8];
    getrandom::fill(&mut bits)?;
    let id = StackId::from_bits(u64::from_be_bytes(bits));
    let taken = subject
        .node_ports
        .clone()
        .rev()
        .find(|port| subject.runtime.claim_ports(id, &mapping(*port)).is_ok());
    Ok(Stack { id, node_port: taken.context("no node port is free")? })
}

fn mapping(node_port: u16) -> Vec<PortMapping> {
    vec![PortMapping { container_port: PORT, protocol: Protocol::Tcp, node_port }]
}

/// Starts a stack that answers on its port, and waits until it does.
async fn start(subject: &Subject<'_>, stack: &Stack) -> anyhow::Result<()> {
    let yaml = format!(
        "kind: Pod\nspec:\n  containers:\n  - name: probe\n    image: {}\n    \
         imagePullPolicy: IfNotPresent\n    command: [{PROGRAM}, {ARGUMENT}, serve]\n    \
         ports: [{{containerPort: {PORT}}}]\n    \
         resources: {{limits: {{cpu: 500m, memory: {MEMORY}, ephemeral-storage: {DISK_BYTES}}}}}\n",
        subject.image
    );
    let spec = pod::parse(&yaml, &TargetPorts::Any(PORT), &PodDefaults::default())?;
    let capabilities = subject.runtime.capabilities();
    let mut observations = subject.runtime.observe();
    let request = EnsureRequest {
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
    };
    let ready = async {
        subject
            .runtime
            .ensure(request)
            .await
            .map_err(|error| anyhow::anyhow!("{}: {}", error.condition.message, error.operator))?;
        while let Some(observation) = observations.next().await {
            match observation {
                Observation::Stack(seen) if seen.id == stack.id => match seen.state {
                    RuntimeState::Running { ready: true, .. } => return Ok(()),
                    RuntimeState::Ended { outcome, condition, .. } => {
                        let how = if outcome == Outcome::Completed { "ended" } else { "failed" };
                        anyhow::bail!("a stack {how}: {}", condition.message);
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        anyhow::bail!("the runtime has gone away")
    };
    tokio::time::timeout(PATIENCE, ready).await.context("a stack was not ready in time")??;
    answers(subject, stack).await.context("a stack that is ready")
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
    if subject.runtime.capabilities().name == "docker"
        && said.as_ref().is_some_and(|said| said.detail == ROOT_OUTSIDE)
    {
        // Only the engine can change that, for all of its containers at once.
        let name = format!("isolation: {}", case.name);
        return Ok(Check::warning(&name, ROOT_OUTSIDE, REMAP));
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
        let [first, .., last] = CASES else { panic!("there are cases") };
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
