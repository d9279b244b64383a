//! The keeper of a stack whose containers another engine runs: it publishes the stack's ports and
//! checks its health from inside the stack's network, and outlives the server as a shim does.
//!
//! Nobody's traffic passes from one stack to another: the only way between a stack's network and
//! the machine's is this process, which once it speaks with anything of the stack holds no
//! capability. It ends when it is told to, and by itself when the process that holds the network has
//! ended. One that has no such process to wait for, since it is in no network, does not outlive its
//! server for long.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use stackd_core::port::Protocol;

use crate::control::Control;
use crate::fault::{At, Fault};
use crate::launch::{capabilities, netlink};
use crate::poll::{Interest, Kind, Poll, Timers, Token};
use crate::probe::{Due, Health, Skip, Target, Watched};
use crate::protocol::wire::Inbox;
use crate::protocol::{Event, Keep, Kept, Request};
use crate::relay::{tcp, udp};
use crate::supervisor::{FLOW_SWEEP, raise_own_limits};
use crate::sys;

/// Something to be done later.
#[derive(Debug, Clone, Copy)]
enum Timer {
    Health(Due),
    Flows,
    Alone,
}

/// A keeper at work.
struct Keeper {
    plan: Keep,
    poll: Poll,
    timers: Timers<Timer>,
    control: Control,
    tcp: tcp::Relay,
    udp: udp::Relay,
    health: Health,
    /// The process that holds the stack's network.
    holder: Option<OwnedFd>,
    /// Since when nobody is connected, where nothing else would end it.
    alone: Option<Instant>,
    kept: Kept,
    done: bool,
}

/// Keeps a stack. Returns when it has ended.
pub(crate) fn run(
    plan: Keep,
    socket: OwnedFd,
    inbox: Inbox,
    listener: OwnedFd,
    ports: Vec<OwnedFd>,
) -> Result<(), Fault> {
    raise_own_limits();
    let poll = Poll::new().at("make an epoll instance")?;
    let control = Control::new(&poll, listener, socket, inbox).at("set up control connections")?;
    let limits = plan.relay;
    let mut tcp = tcp::Relay::new(plan.network, limits.connections);
    let idle = Duration::from_millis(limits.flow_idle_ms);
    let mut udp = udp::Relay::new(plan.network, limits.flows, idle);
    for (port, socket) in plan.ports.iter().zip(ports) {
        match port.protocol {
            Protocol::Tcp => tcp.add(socket, port.container_port),
            Protocol::Udp => udp.add(socket, port.container_port),
        }
        .at("take over a port")?;
    }
    let target = match plan.outside {
        Some(address) => Target::Outside(address, plan.ports.clone()),
        None => Target::Inside(plan.network),
    };
    if plan.outside.is_some() {
        // It enters nothing.
        give_up_rights()?;
    }
    let probes = plan.containers.iter().enumerate().map(|(i, container)| (i, container.probes()));
    let health = Health::new(probes, &plan.ports, target);
    let keeper = Keeper {
        poll,
        timers: Timers::new(),
        control,
        tcp,
        udp,
        health,
        holder: None,
        alone: None,
        kept: Kept { hears_ends: true, ..Kept::default() },
        done: false,
        plan,
    };
    keeper.work()
}

impl Keeper {
    fn work(mut self) -> Result<(), Fault> {
        self.tell();
        let mut events = Vec::with_capacity(64);
        while !(self.done && self.control.is_flushed()) {
            let timeout =
                if self.tcp.is_busy() { Some(Duration::ZERO) } else { self.timers.timeout() };
            self.poll.wait(timeout, &mut events).at("wait for events")?;
            for (token, _) in std::mem::take(&mut events) {
                self.dispatch(token);
            }
            self.tcp.turns(&self.poll);
            while let Some(timer) = self.timers.due() {
                match timer {
                    Timer::Health(due) => self.probe_due(due),
                    Timer::Flows => {
                        self.udp.sweep();
                        if self.udp.has_flows() {
                            self.timers.after(FLOW_SWEEP, Timer::Flows);
                        }
                    }
                    Timer::Alone => {
                        if self.alone.is_some_and(|since| since.elapsed() >= self.patience()) {
                            self.end();
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, token: Token) {
        match token.kind {
            Kind::Control => {
                for peer in self.control.accept(&self.poll) {
                    self.alone = None;
                    // What another server has run, it will not answer for.
                    self.probe_commands_lost();
                    let event = Event::Kept(self.kept.clone());
                    self.control.send(&self.poll, peer, &event, Vec::new());
                }
            }
            Kind::Peer => {
                let (asked, alive) = self.control.turn(&self.poll, token.id);
                for asked in asked {
                    self.asked(asked.request, asked.fds);
                }
                if !alive {
                    self.probe_commands_lost();
                }
                if !alive && !self.control.has_peers() {
                    self.left_alone();
                }
            }
            // What held the network is gone, and so is the stack.
            Kind::Container => self.end(),
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
            Kind::Output | Kind::Command | Kind::Limit => {}
        }
    }

    fn asked(&mut self, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Enter if !self.kept.entered => {
                match self.enter(fds) {
                    Ok(()) => self.kept.entered = true,
                    Err(fault) => {
                        eprintln!("keeper: {}: {fault}", self.plan.id);
                        self.kept.fault = Some(fault.to_string());
                        self.done = true;
                    }
                }
                self.tell();
            }
            Request::Check if !self.kept.checked => {
                self.kept.checked = true;
                self.begin_health();
                self.tell();
            }
            Request::Probed { attempt, late: true, .. } => self.probe_command_late(attempt),
            Request::Probed { attempt, code: Some(code), .. } => {
                self.probe_command_ended(attempt, code);
            }
            Request::Probed { attempt, code: None, .. } => self.probe_skipped(attempt),
            Request::Ended { container } => self.container_ended(&container),
            Request::Stop { .. } => self.end(),
            _ => {}
        }
    }

    /// Enters the stack's network for good.
    fn enter(&mut self, fds: Vec<OwnedFd>) -> Result<(), Fault> {
        let Ok([network, holder]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(Fault::new("enter the network", std::io::ErrorKind::InvalidData));
        };
        sys::setns(network.as_fd(), libc::CLONE_NEWNET).at("enter the network namespace")?;
        netlink::set_up(self.plan.network)?;
        give_up_rights()?;
        self.poll
            .add(&holder, Token::new(Kind::Container, 0), Interest::IN)
            .at("wait for the network's end")?;
        self.holder = Some(holder);
        Ok(())
    }

    /// A container has ended well: it is asked no more, and what it did not answer meanwhile does
    /// not count.
    fn container_ended(&mut self, name: &str) {
        let index = self.plan.containers.iter().position(|container| container.name == name);
        let Some(index) = index else { return };
        self.health.container_ended(index);
        if self.kept.unhealthy_container.as_deref() == Some(name) {
            self.kept.unhealthy_container = None;
            self.kept.unhealthy = None;
            self.tell();
        }
    }

    /// Nobody is connected any more. One that is in a network ends with it; any other would stay for
    /// good.
    fn left_alone(&mut self) {
        if self.holder.is_some() {
            return;
        }
        // What is elsewhere goes on, and the next server wants to know how it is.
        if self.plan.outside.is_some() && self.kept.checked {
            self.alone = Some(Instant::now());
            return self.timers.after(self.patience(), Timer::Alone);
        }
        self.end();
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.plan.alone_ms)
    }

    fn end(&mut self) {
        if let Some(holder) = self.holder.take() {
            self.poll.remove(&holder);
        }
        self.tcp.close(&self.poll);
        self.udp.close(&self.poll);
        self.done = true;
    }

    fn tell(&mut self) {
        self.control.broadcast(&self.poll, &Event::Kept(self.kept.clone()));
    }
}

/// From here on it only moves bytes between sockets.
fn give_up_rights() -> Result<(), Fault> {
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).at("give up rights")?;
    capabilities::bound(0).at("give up capabilities")?;
    capabilities::reduce(0).at("give up capabilities")
}

impl Watched for Keeper {
    fn parts(&mut self) -> (&mut Health, &Poll) {
        (&mut self.health, &self.poll)
    }

    fn later(&mut self, delay: Duration, due: Due) {
        self.timers.after(delay, Timer::Health(due));
    }

    fn run_probe(
        &mut self,
        container: usize,
        command: &[String],
        attempt: u64,
        timeout: Duration,
    ) -> Result<Option<Duration>, Skip> {
        let Some(container) = self.plan.containers.get(container) else { return Err(Skip::Later) };
        // Without a server nobody can run it, and the container is not to blame.
        if !self.control.has_peers() {
            return Err(Skip::Later);
        }
        let event = Event::Probe {
            attempt,
            container: container.name.clone(),
            command: command.to_vec(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        self.control.broadcast(&self.poll, &event);
        // Only the server can tell a command that hangs from an engine that does.
        Ok(None)
    }

    fn end_probe(&mut self, _attempt: u64) {
        // Whoever runs it ends it when it has had its time.
    }

    fn refresh(&mut self) {
        let ready = self.kept.checked && self.health.is_ready();
        if ready == self.kept.ready {
            return;
        }
        self.kept.ready = ready;
        if ready && !self.kept.was_ready {
            self.kept.was_ready = true;
            self.tcp.open(&self.poll);
            self.udp.open(&self.poll);
        }
        self.tell();
    }

    fn unhealthy(&mut self, container: usize, role: &'static str, why: &str) {
        let name = self.plan.containers.get(container).map_or("", |c| c.name.as_str());
        self.kept.unhealthy = Some(format!("the {role} probe of container {name:?} failed: {why}"));
        self.kept.unhealthy_container = Some(name.to_owned());
        self.tell();
    }
}
