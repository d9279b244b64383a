//! The life of a stack: its containers are started, watched, and ended; what becomes of it is told
//! to whoever is connected and written down.

pub(crate) mod containers;
mod departure;
pub(crate) mod limits;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stackd_core::Timestamp;
use stackd_core::port::Protocol;
use stackd_core::runtime::{ErrorKind, RuntimeState};
use stackd_core::stack::{Condition, reason};

use crate::control::{Asked, Control};
use crate::exec::{Commands, Owner};
use crate::fault::{At, Fault};
use crate::launch::cell::{Cell, place};
use crate::launch::cgroup::{Group, Limits, Nursery};
use crate::launch::process::{Failure, Stdio};
use crate::launch::{capabilities, seccomp, volumes};
use crate::logs::{Budget, LogFile, Output};
use crate::poll::{Interest, Kind, Poll, Timers, Token};
use crate::probe::{Health, Skip, Target, Watched};
use crate::protocol::wire::{Inbox, send_all};
use crate::protocol::{Event, LOG_DIRECTORY, Network, Refusal, Request, Snapshot, Start, VERSION};
use crate::relay::{tcp, udp};
use crate::state;
use crate::trace::Trace;
use containers::Running;

/// How long an ended shim waits for its peers to read the end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often quiet UDP flows are looked for.
pub(crate) const FLOW_SWEEP: Duration = Duration::from_secs(10);

/// What is ready before the stack is known.
#[derive(Debug)]
pub(crate) struct Parts {
    cell: Cell,
    network: Network,
    filter: Vec<libc::sock_filter>,
    poll: Poll,
}

impl Parts {
    pub(crate) fn new(cell: Cell, network: Network) -> Result<Self, Fault> {
        let poll = Poll::new().at("make an epoll instance")?;
        Ok(Self { cell, network, filter: seccomp::program(), poll })
    }
}

/// Something to be done later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The grace of a stop is over.
    Kill,
    /// Something of the health checks.
    Health(crate::probe::Due),
    /// Quiet flows may be forgotten.
    Flows,
    /// Look at the disk and at what else the kernel does not tell of.
    Disk,
    /// Look for processes that were killed for memory.
    Memory,
    /// Logs may be read again.
    Logs,
    /// The peers have had their time.
    Leave,
}

/// How far the stack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The init container of this place in the plan runs.
    Init(usize),
    /// The main containers run.
    Main,
    /// Everything is being ended.
    Ending,
    /// Everything has ended.
    Ended,
}

/// Why the stack ended, once that is certain.
#[derive(Debug, Clone)]
pub(crate) struct End {
    condition: Condition,
    exit_code: Option<i32>,
}

/// A stack's shim at work.
pub(crate) struct Supervisor {
    pub(crate) poll: Poll,
    pub(crate) timers: Timers<Timer>,
    pub(crate) cell: Cell,
    pub(crate) filter: Vec<libc::sock_filter>,
    pub(crate) capabilities: u64,
    pub(crate) plan: Start,
    pub(crate) directory: PathBuf,
    pub(crate) volumes: HashMap<String, String>,
    pub(crate) group: Group,
    /// This process is still in the first container's group.
    pub(crate) inside: Option<departure::Inside>,
    pub(crate) control: Control,
    /// What was asked before there was time for it.
    pub(crate) early: Vec<Asked>,
    pub(crate) tcp: tcp::Relay,
    pub(crate) udp: udp::Relay,
    pub(crate) stage: Stage,
    pub(crate) running: Vec<Running>,
    pub(crate) outputs: BTreeMap<u64, (usize, Output)>,
    pub(crate) files: HashMap<usize, LogFile>,
    /// What its logs may cost.
    pub(crate) budget: Budget,
    /// That is spent: no output is waited for.
    pub(crate) muted: bool,
    pub(crate) commands: Commands,
    pub(crate) health: Health,
    pub(crate) limits: limits::Watch,
    pub(crate) end: Option<End>,
    pub(crate) started_at: Timestamp,
    pub(crate) state: RuntimeState,
    pub(crate) next_id: u64,
}

/// Becomes the shim of a stack. Returns when the stack has ended.
pub(crate) fn run(
    parts: Parts,
    plan: Start,
    socket: OwnedFd,
    inbox: Inbox,
    listener: OwnedFd,
    ports: Vec<OwnedFd>,
) -> Result<(), Fault> {
    let mut trace = Trace::new();
    let id = plan.id;
    let first = socket.try_clone().at("hold the first connection")?;
    let refuse = |failure: Failure| {
        let refusal = refusal(failure);
        let operator = refusal.operator.clone();
        let _ = send_all(first.as_fd(), &Event::Refused(refusal), &[] as &[BorrowedFd<'_>]);
        Fault::new(format!("start {id}: {operator}"), std::io::ErrorKind::Other)
    };
    let control = Control::new(&parts.poll, listener, socket, inbox)
        .at("set up control connections")
        .map_err(|fault| refuse(fault.into()))?;
    let mut supervisor =
        Supervisor::new(parts, plan, control, ports, &mut trace).map_err(refuse)?;
    // The first connection is not to wait while messages go out on it.
    if let Err(failure) = supervisor.begin(&mut trace) {
        rustix::io::ioctl_fionbio(&first, false).at("talk to the server")?;
        supervisor.clean();
        return Err(refuse(failure));
    }
    supervisor.depart();
    let started = Event::Started { trace: trace.finish() };
    supervisor.control.broadcast(&supervisor.poll, &started);
    drop(first);
    supervisor.publish();
    supervisor.work()
}

fn refusal(failure: Failure) -> Refusal {
    match failure {
        Failure::Rejected(message) => Refusal {
            kind: ErrorKind::Rejected,
            condition: Condition::new(reason::START_ERROR, message.clone()),
            operator: message,
        },
        Failure::Machine(fault) => Refusal {
            kind: ErrorKind::Failed,
            condition: Condition::new(
                reason::START_ERROR,
                "the machine could not start the containers",
            ),
            operator: fault.to_string(),
        },
    }
}

impl Supervisor {
    fn new(
        parts: Parts,
        plan: Start,
        control: Control,
        ports: Vec<OwnedFd>,
        trace: &mut Trace,
    ) -> Result<Self, Failure> {
        let Parts { mut cell, network, filter, poll } = parts;
        raise_own_limits();
        if let Some(disk) = plan.disk.as_ref().filter(|disk| **disk != cell.disk) {
            cell.replace_disk(disk)?;
            trace.step("another disk");
        }
        let directory = Path::new(place::DATA).join(&plan.directory);
        crate::sys::set_hostname(&plan.hostname).at("set the host name")?;
        containers::shared_files(&plan, network, cell.id_base)?;
        let whole = containers::whole(&plan);
        let volumes = volumes::make(&plan.volumes, cell.id_base, whole.memory_bytes)?;
        trace.step("files and volumes");
        let limits = Limits { pids: plan.pids_limit, ..whole };
        let (group, nursery) = match cell.nursery.take() {
            Some(mut nursery) => {
                nursery.rename(&plan.id.to_string())?;
                // CPU is limited when this process has left the group.
                let narrow = containers::too_small(limits);
                nursery.stack.limit(Limits { cpu_milli: 0, ..limits }).map_err(narrow)?;
                let Nursery { stack, container, exits } = nursery;
                (stack, Some(departure::Inside { container: Some(container), exits, helper: None }))
            }
            None => {
                let group = cell.groups.child(&plan.id.to_string(), limits);
                (group.map_err(containers::too_small(limits))?, None)
            }
        };
        group.delegate()?;
        trace.step("stack control group");
        let relay = plan.relay;
        let mut tcp = tcp::Relay::new(network, relay.connections);
        let idle = Duration::from_millis(relay.flow_idle_ms);
        let mut udp = udp::Relay::new(network, relay.flows, idle);
        for (port, socket) in plan.ports.iter().zip(ports) {
            match port.protocol {
                Protocol::Tcp => tcp.add(socket, port.container_port),
                Protocol::Udp => udp.add(socket, port.container_port),
            }
            .at("take over a port")?;
        }
        let main = plan.containers.iter().enumerate().filter(|(_, container)| !container.init);
        let probes = main.map(|(index, container)| (index, container.probes()));
        let health = Health::new(probes, &plan.ports, Target::Inside(network));
        let condition = Condition::new(reason::CONTAINER_CREATING, "containers are being created");
        Ok(Self {
            timers: Timers::new(),
            filter,
            capabilities: capabilities::set_of(plan.profile, &plan.restrictions),
            directory,
            volumes,
            group,
            inside: nursery,
            control,
            early: Vec::new(),
            tcp,
            udp,
            stage: Stage::Main,
            running: Vec::new(),
            outputs: BTreeMap::new(),
            files: HashMap::new(),
            budget: Budget::new(),
            muted: false,
            commands: Commands::default(),
            health,
            limits: limits::Watch::default(),
            end: None,
            started_at: Timestamp::now(),
            state: RuntimeState::Starting { condition: Some(condition) },
            next_id: 0,
            poll,
            cell,
            plan,
        })
    }

    fn work(mut self) -> Result<(), Fault> {
        let mut events = Vec::with_capacity(64);
        while !self.is_done() {
            for asked in std::mem::take(&mut self.early) {
                self.asked(asked);
            }
            let timeout =
                if self.tcp.is_busy() { Some(Duration::ZERO) } else { self.timers.timeout() };
            self.poll.wait(timeout, &mut events).at("wait for events")?;
            for (token, interest) in std::mem::take(&mut events) {
                self.dispatch(token, interest);
            }
            self.tcp.turns(&self.poll);
            while let Some(timer) = self.timers.due() {
                self.due(timer);
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.stage == Stage::Ended && self.control.is_flushed()
    }

    fn dispatch(&mut self, token: Token, _interest: Interest) {
        match token.kind {
            Kind::Control => {
                for peer in self.control.accept(&self.poll) {
                    let snapshot = Event::Snapshot(self.snapshot());
                    self.control.send(&self.poll, peer, &snapshot, Vec::new());
                }
            }
            Kind::Peer => {
                let (asked, alive) = self.control.turn(&self.poll, token.id);
                for request in asked {
                    self.asked(request);
                }
                if !alive {
                    self.commands.abandon(token.id);
                }
            }
            Kind::Container => self.container_ended(token.id),
            Kind::Output => self.output(token.id),
            Kind::Command => self.command_ended(token.id),
            Kind::TcpPort => self.tcp.accept(&self.poll, token.id),
            Kind::Connection => self.tcp.turn(&self.poll, token.id),
            Kind::UdpPort => {
                let quiet = !self.udp.has_flows();
                self.udp.inwards(&self.poll, token.id);
                if quiet && self.udp.has_flows() {
                    self.timers.after(FLOW_SWEEP, Timer::Flows);
                }
            }
            Kind::Flow => self.udp.outwards(token.id),
            Kind::Probe => self.probe_event(token.id),
            Kind::Limit => self.limit_event(token.id),
        }
    }

    fn due(&mut self, timer: Timer) {
        match timer {
            Timer::Kill => self.kill_all(),
            Timer::Health(due) => self.probe_due(due),
            Timer::Flows => {
                self.udp.sweep();
                if self.udp.has_flows() {
                    self.timers.after(FLOW_SWEEP, Timer::Flows);
                }
            }
            Timer::Disk => self.look_now_and_then(),
            Timer::Memory => {
                self.look_at_memory();
                self.refresh();
            }
            Timer::Logs => self.listen_to_outputs(),
            Timer::Leave => crate::sys::exit(0),
        }
    }

    fn asked(&mut self, asked: Asked) {
        match asked.request {
            Request::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms), None),
            Request::Exec(command) => self.exec(asked.peer, command, asked.fds),
            Request::ExecEnd { exec } => self.commands.end(asked.peer, exec),
            Request::Usage => {
                let usage = self.usage();
                self.control.send(&self.poll, asked.peer, &Event::Usage(usage), Vec::new());
            }
            // Each is for a blank or for a keeper only.
            Request::Prepare(_)
            | Request::Start(_)
            | Request::Keep(_)
            | Request::Enter
            | Request::Check
            | Request::Probed { .. }
            | Request::Ended { .. } => {}
        }
    }

    /// Whether the stack is to end before it has started whole. What else is asked meanwhile waits.
    fn is_to_end(&mut self) -> bool {
        for peer in self.control.peers() {
            let (asked, _) = self.control.turn(&self.poll, peer);
            self.early.extend(asked);
        }
        self.early.iter().any(|asked| matches!(asked.request, Request::Stop { .. }))
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: VERSION,
            id: self.plan.id,
            generation: self.plan.generation,
            epoch: self.plan.epoch,
            boot_id: self.plan.boot_id.clone(),
            shim: self.plan.shim,
            images: self.plan.images.clone(),
            id_base: self.cell.id_base,
            ports: self.plan.ports.clone(),
            containers: self.plan.containers.iter().map(|c| c.name.clone()).collect(),
            init_containers: self.plan.containers.iter().filter(|c| c.init).count(),
            started_at: self.started_at,
            state: self.state.clone(),
        }
    }

    /// Tells everybody how the stack is now, and writes it down.
    fn publish(&mut self) {
        let snapshot = self.snapshot();
        self.control.broadcast(&self.poll, &Event::Snapshot(snapshot.clone()));
        if let Err(fault) = state::write(&self.directory, &snapshot) {
            eprintln!("shim: {}: {fault}", self.plan.id);
            // A server that came up during the start has taken it for one that was given up: nobody
            // will ever ask for this stack.
            if fault.errno() == libc::ENOENT && self.is_watched() {
                let text = "the server has given up the start";
                self.stop(Duration::ZERO, Some(Condition::new(reason::LOST, text)));
            }
        }
    }

    fn logs(&self) -> PathBuf {
        self.directory.join(LOG_DIRECTORY)
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Watched for Supervisor {
    fn parts(&mut self) -> (&mut Health, &Poll) {
        (&mut self.health, &self.poll)
    }

    fn later(&mut self, delay: Duration, due: crate::probe::Due) {
        self.timers.after(delay, Timer::Health(due));
    }

    fn run_probe(
        &mut self,
        container: usize,
        command: &[String],
        attempt: u64,
        timeout: Duration,
    ) -> Result<Option<Duration>, Skip> {
        let stdio = nowhere().map_err(|e| Skip::Failed(e.to_string()))?;
        let run = self.command(container, command, stdio, Owner::Probe(attempt));
        run.map(|()| Some(timeout)).map_err(|failure| {
            Skip::Failed(match failure {
                Failure::Rejected(text) => text,
                Failure::Machine(fault) => fault.to_string(),
            })
        })
    }

    fn end_probe(&mut self, attempt: u64) {
        self.commands.end_probe(attempt);
    }

    fn refresh(&mut self) {
        self.look_again();
    }

    fn unhealthy(&mut self, container: usize, role: &'static str, why: &str) {
        let name = &self.plan.containers[container].name;
        let text = format!("the {role} probe of container {name:?} failed: {why}");
        let grace = Duration::from_millis(self.plan.grace_ms);
        self.stop(grace, Some(Condition::new(reason::UNHEALTHY, text)));
    }
}

/// A command's input and output that lead nowhere.
fn nowhere() -> std::io::Result<Stdio> {
    let null =
        || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    Ok(Stdio::Pipes { input: None, output: null()?, error: null()? })
}

/// The relay may need two descriptors for each of many connections.
pub(crate) fn raise_own_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}
