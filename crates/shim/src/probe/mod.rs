//! Whether a stack is ready and well.
//!
//! Ready for traffic it is when every readiness probe succeeds; where there is none, when each of
//! its published TCP ports takes a connection; where there are none of those either, as soon as
//! its containers run. Probes have Kubernetes' meaning and numbers. Until a probe has succeeded
//! for the first time it is tried again sooner than its period says, so that a stack is ready when
//! it is ready; failures are counted no faster than the period.

mod check;
mod http;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt;
use stackd_core::port::{PortMapping, Protocol};
use stackd_core::spec::{Probe, ProbeAction};

use crate::poll::{Interest, Kind, Poll, Token};
use crate::protocol::{Network, Probes};
use crate::relay::{dial, dial_outside};
use check::{Check, Role, Verdict};

/// How soon a port is tried again at first, and how late at last.
const FIRST_RETRY: Duration = Duration::from_micros(500);
const LAST_RETRY: Duration = Duration::from_millis(100);
/// How long an attempt of the default check may take.
const PORT_TIMEOUT: Duration = Duration::from_secs(1);
/// When a probe that could not be tried is tried again.
const SKIPPED_RETRY: Duration = Duration::from_secs(1);

/// Something of the health checks that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Try the published ports again.
    Ports,
    /// Try a check.
    Check(usize),
    /// An attempt has had its time.
    Timeout(u64),
}

/// The health of a stack.
#[derive(Debug)]
pub(crate) struct Health {
    target: Target,
    /// Published TCP ports that have not taken a connection yet.
    ports: Vec<u16>,
    retry: Duration,
    checks: Vec<Check>,
    attempts: BTreeMap<u64, Attempt>,
    next: u64,
    begun: bool,
}

/// Where the stack's ports are.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// In the network that this process is in.
    Inside(Network),
    /// On another machine: those that it publishes, at its address.
    Outside(std::net::IpAddr, Vec<PortMapping>),
}

impl Target {
    fn dial(&self, port: u16) -> rustix::io::Result<OwnedFd> {
        match self {
            Self::Inside(network) => dial(*network, port),
            Self::Outside(address, ports) => {
                let published = ports
                    .iter()
                    .find(|p| p.container_port == port && p.protocol == Protocol::Tcp)
                    .ok_or(rustix::io::Errno::HOSTUNREACH)?;
                dial_outside(SocketAddr::new(*address, published.node_port))
            }
        }
    }

    fn host(&self, port: u16) -> String {
        match self {
            Self::Inside(network) => format!("{}:{port}", network.pod),
            Self::Outside(address, _) => SocketAddr::new(*address, port).to_string(),
        }
    }
}

#[derive(Debug)]
struct Attempt {
    of: Subject,
    /// None for a command.
    socket: Option<OwnedFd>,
    http: Option<http::Exchange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Port(u16),
    Check(usize),
}

impl Health {
    /// The checks of containers, each by its place in the stack's plan; init containers have none.
    pub(crate) fn new<'a>(
        containers: impl Iterator<Item = (usize, Probes<'a>)>,
        published: &[PortMapping],
        target: Target,
    ) -> Self {
        let mut checks = Vec::new();
        for (index, probes) in containers {
            let mut add = |role, probe: Option<&Probe>| {
                if let Some(probe) = probe {
                    checks.push(Check::new(index, role, probe.clone(), probes.startup.is_some()));
                }
            };
            add(Role::Startup, probes.startup);
            add(Role::Readiness, probes.readiness);
            add(Role::Liveness, probes.liveness);
        }
        let mut ports = Vec::new();
        if !checks.iter().any(|check| check.role == Role::Readiness) {
            let tcp = published.iter().filter(|port| port.protocol == Protocol::Tcp);
            ports.extend(tcp.map(|port| port.container_port));
            ports.sort_unstable();
            ports.dedup();
        }
        Self {
            target,
            ports,
            retry: FIRST_RETRY,
            checks,
            attempts: BTreeMap::new(),
            next: 0,
            begun: false,
        }
    }

    /// Whether the stack may have traffic.
    pub(crate) fn is_ready(&self) -> bool {
        let holds = |check: &Check| check.role == Role::Liveness || check.holds;
        self.begun && self.ports.is_empty() && self.checks.iter().all(holds)
    }

    /// A container has ended: it is asked no more.
    pub(crate) fn container_ended(&mut self, index: usize) {
        for check in self.checks.iter_mut().filter(|check| check.container == index) {
            check.stopped = true;
        }
    }

    fn attempt(&mut self, of: Subject, socket: Option<OwnedFd>) -> u64 {
        self.next += 1;
        self.attempts.insert(self.next, Attempt { of, socket, http: None });
        self.next
    }
}

/// How an attempt stands.
pub(crate) enum Now {
    Succeeded,
    Failed(String),
    /// The machine it was meant for cannot be reached, which says nothing of a container on it.
    Unreachable,
    Waiting,
}

impl Now {
    fn too_late() -> Self {
        Self::Failed("it took too long".to_owned())
    }
}

impl Target {
    /// What an attempt that has not come through says of the container.
    fn meaning_of(&self, error: rustix::io::Errno) -> Now {
        use rustix::io::Errno;
        let silent = matches!(error, Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::TIMEDOUT);
        match self {
            Self::Outside(..) if silent => Now::Unreachable,
            _ => Now::Failed(std::io::Error::from(error).to_string()),
        }
    }
}

/// Whether a connection under way has come about.
fn connected(target: &Target, socket: &OwnedFd) -> Now {
    let mut fds = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
    let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&at_once)) {
        Ok(0) => Now::Waiting,
        _ => match sockopt::socket_error(socket) {
            Ok(Ok(())) => Now::Succeeded,
            Ok(Err(e)) | Err(e) => target.meaning_of(e),
        },
    }
}

/// Whose health is checked: a stack that this process runs, or one that it only keeps.
pub(crate) trait Watched {
    /// Its health, and what attempts are waited for with.
    fn parts(&mut self) -> (&mut Health, &Poll);

    /// Calls [`Watched::probe_due`] later.
    fn later(&mut self, delay: Duration, due: Due);

    /// Runs a probe's command, whose end comes to [`Watched::probe_command_ended`]. Says how long
    /// that is waited for; none where whoever runs it keeps the time.
    fn run_probe(
        &mut self,
        container: usize,
        command: &[String],
        attempt: u64,
        timeout: Duration,
    ) -> Result<Option<Duration>, Skip>;

    /// Ends a probe's command that has had its time.
    fn end_probe(&mut self, attempt: u64);

    /// Readiness may have changed.
    fn refresh(&mut self);

    /// A container is not well: the stack is to be ended.
    fn unhealthy(&mut self, container: usize, role: &'static str, why: &str);

    /// The main containers run: begin to check them.
    fn begin_health(&mut self) {
        let health = self.parts().0;
        health.begun = true;
        let begin: Vec<_> = (health.checks.iter().enumerate())
            .filter(|(_, check)| !check.waits_for_startup)
            .map(|(i, check)| (check.initial_delay(), Due::Check(i)))
            .collect();
        let waits_for_ports = !health.ports.is_empty();
        for (delay, due) in begin {
            self.later(delay, due);
        }
        if waits_for_ports { self.try_ports() } else { self.refresh() }
    }

    fn try_ports(&mut self) {
        let mut again = false;
        for port in self.parts().0.ports.clone() {
            let health = self.parts().0;
            let waits = |a: &Attempt| a.of == Subject::Port(port);
            if health.attempts.values().any(waits) {
                continue;
            }
            let Ok(socket) = health.target.dial(port) else {
                again = true;
                continue;
            };
            match connected(&health.target, &socket) {
                Now::Succeeded => health.ports.retain(|p| *p != port),
                Now::Failed(_) | Now::Unreachable => again = true,
                Now::Waiting => {
                    let id = health.attempt(Subject::Port(port), Some(socket));
                    self.wait_for_attempt(id, PORT_TIMEOUT);
                }
            }
        }
        if again {
            let health = self.parts().0;
            let delay = health.retry;
            health.retry = (delay.mul_f32(1.3)).min(LAST_RETRY);
            self.later(delay, Due::Ports);
        }
        self.refresh();
    }

    fn wait_for_attempt(&mut self, id: u64, timeout: Duration) {
        self.later(timeout, Due::Timeout(id));
        let (health, poll) = self.parts();
        if let Some(socket) = health.attempts.get(&id).and_then(|a| a.socket.as_ref()) {
            let interest = Interest::IN | Interest::OUT | Interest::RDHUP | Interest::ET;
            // Without it the attempt times out.
            let _ = poll.add(socket.as_fd(), Token::new(Kind::Probe, id), interest);
        }
    }

    fn probe_due(&mut self, due: Due) {
        match due {
            Due::Ports => self.try_ports(),
            Due::Check(i) => self.try_check(i),
            Due::Timeout(id) => self.attempt_late(id),
        }
    }

    fn try_check(&mut self, i: usize) {
        let health = self.parts().0;
        let Some(check) = health.checks.get(i).filter(|check| !check.stopped) else { return };
        let timeout = check.timeout();
        let (container, action) = (check.container, check.probe.action.clone());
        match action {
            ProbeAction::Exec { command } => {
                let id = health.attempt(Subject::Check(i), None);
                match self.run_probe(container, &command, id, timeout) {
                    Ok(Some(limit)) => self.wait_for_attempt(id, limit),
                    Ok(None) => {}
                    Err(Skip::Failed(text)) => self.attempt_over(id, Now::Failed(text)),
                    Err(Skip::Later) => self.probe_skipped(id),
                }
            }
            ProbeAction::TcpSocket { port } => match health.target.dial(port.number) {
                Ok(socket) => {
                    let id = health.attempt(Subject::Check(i), Some(socket));
                    self.wait_for_attempt(id, timeout);
                    self.probe_event(id);
                }
                Err(e) => self.not_dialled(i, e),
            },
            ProbeAction::HttpGet { path, port, headers, .. } => {
                match health.target.dial(port.number) {
                    Ok(socket) => {
                        let id = health.attempt(Subject::Check(i), Some(socket));
                        let host = health.target.host(port.number);
                        let path = path.as_deref().unwrap_or("/");
                        if let Some(attempt) = health.attempts.get_mut(&id) {
                            attempt.http = Some(http::Exchange::new(&host, path, &headers));
                        }
                        self.wait_for_attempt(id, timeout);
                        self.probe_event(id);
                    }
                    Err(e) => self.not_dialled(i, e),
                }
            }
        }
    }

    fn not_dialled(&mut self, i: usize, error: rustix::io::Errno) {
        let health = self.parts().0;
        let now = health.target.meaning_of(error);
        let id = health.attempt(Subject::Check(i), None);
        self.attempt_over(id, now);
    }

    /// An attempt has had its time.
    fn attempt_late(&mut self, id: u64) {
        let health = self.parts().0;
        let Some(attempt) = health.attempts.get(&id) else { return };
        let unheard = |socket| matches!(connected(&health.target, socket), Now::Waiting);
        let now = match (&health.target, &attempt.socket) {
            // A machine that is there answers even for a port that nobody listens on.
            (Target::Outside(..), Some(socket)) if unheard(socket) => Now::Unreachable,
            _ => Now::too_late(),
        };
        self.attempt_over(id, now);
    }

    /// Something has happened on an attempt's socket.
    fn probe_event(&mut self, id: u64) {
        let health = self.parts().0;
        let Some(attempt) = health.attempts.get_mut(&id) else { return };
        let Some(socket) = &attempt.socket else { return };
        let now = match (connected(&health.target, socket), &mut attempt.http) {
            (Now::Succeeded, Some(exchange)) => match exchange.go_on(socket) {
                Ok(None) => Now::Waiting,
                Ok(Some(status)) if (200..400).contains(&status) => Now::Succeeded,
                Ok(Some(status)) => Now::Failed(format!("it answered with status {status}")),
                Err(text) => Now::Failed(text),
            },
            (now, _) => now,
        };
        self.attempt_over(id, now);
    }

    /// A probe's command has ended.
    fn probe_command_ended(&mut self, id: u64, code: i32) {
        let now = match code {
            0 => Now::Succeeded,
            code => Now::Failed(format!("its command ended with code {code}")),
        };
        self.attempt_over(id, now);
    }

    /// A probe could not be tried, through no fault of the container's: it counts neither way and is
    /// tried again.
    fn probe_skipped(&mut self, id: u64) {
        let health = self.parts().0;
        if let Some(Attempt { of: Subject::Check(i), .. }) = health.attempts.remove(&id) {
            self.later(SKIPPED_RETRY, Due::Check(i));
        }
    }

    /// A probe's command had not ended in its time.
    fn probe_command_late(&mut self, id: u64) {
        self.attempt_over(id, Now::too_late());
    }

    /// Whoever ran probes' commands is gone, and what became of them with it.
    fn probe_commands_lost(&mut self) {
        let attempts = &self.parts().0.attempts;
        let commands: Vec<_> =
            attempts.iter().filter(|(_, a)| a.socket.is_none()).map(|(id, _)| *id).collect();
        for id in commands {
            self.probe_skipped(id);
        }
    }

    fn attempt_over(&mut self, id: u64, now: Now) {
        if matches!(now, Now::Waiting) {
            return;
        }
        let Some(attempt) = self.parts().0.attempts.remove(&id) else { return };
        if attempt.socket.is_none() {
            self.end_probe(id);
        }
        match (attempt.of, now) {
            (Subject::Port(port), Now::Succeeded) => {
                self.parts().0.ports.retain(|p| *p != port);
                self.refresh();
            }
            (Subject::Port(_), _) => {
                let delay = self.parts().0.retry;
                self.later(delay, Due::Ports);
            }
            (Subject::Check(i), Now::Succeeded) => self.check_result(i, Ok(())),
            (Subject::Check(i), Now::Failed(text)) => self.check_result(i, Err(text)),
            (Subject::Check(i), _) => self.later(SKIPPED_RETRY, Due::Check(i)),
        }
    }

    fn check_result(&mut self, i: usize, result: Result<(), String>) {
        let health = self.parts().0;
        let Some(check) = health.checks.get_mut(i).filter(|check| !check.stopped) else {
            return;
        };
        let why = result.as_ref().err().cloned().unwrap_or_default();
        let (verdict, next) = check.result(result.is_ok());
        let (role, container) = (check.role, check.container);
        let mut begin = Vec::new();
        if let Some(delay) = next {
            begin.push((delay, i));
        }
        if verdict == Verdict::Changed && role == Role::Startup {
            for (i, check) in health.checks.iter_mut().enumerate() {
                if check.container == container && check.waits_for_startup {
                    check.waits_for_startup = false;
                    begin.push((check.initial_delay(), i));
                }
            }
        }
        for (delay, i) in begin {
            self.later(delay, Due::Check(i));
        }
        match verdict {
            Verdict::Same => {}
            Verdict::Changed => self.refresh(),
            Verdict::Unhealthy => self.unhealthy(container, role.name(), &why),
        }
    }
}

/// Why a probe's command does not run.
pub(crate) enum Skip {
    /// It counts as a failure.
    Failed(String),
    /// It could not be tried now.
    Later,
}
