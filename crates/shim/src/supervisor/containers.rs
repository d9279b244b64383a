//! Starting containers, and what their ends mean for the stack.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::mount::UnmountFlags;
use stackd_core::Timestamp;
use stackd_core::runtime::{LogStream, Outcome, RuntimeState};
use stackd_core::stack::{Condition, reason};

use super::{End, LAST_WORDS, Stage, Supervisor, Timer};
use crate::fault::{At, Fault};
use crate::launch::cell::place;
use crate::launch::cgroup::{Group, Limits, Signal};
use crate::launch::process::{self, Failure, Identity, NewContainer, Stdio};
use crate::launch::rootfs::{self, Bind, own};
use crate::logs::{LogFile, Output};
use crate::poll::{Interest, Kind, Token};
use crate::probe::Watched;
use crate::protocol::{Network, Start};
use crate::sys::{self, Child, Exit};
use crate::trace::Trace;

/// A container that was started.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its place in the plan.
    pub(crate) index: usize,
    pub(crate) child: Child,
    pub(crate) group: Group,
    /// Its file system of terminals.
    pub(crate) terminals: OwnedFd,
    /// Kept open where its standard input is to stay open.
    _input: Option<OwnedFd>,
    /// Told by the kernel when a process of it was killed for memory.
    pub(crate) oom: Option<Signal>,
    /// How its first process ended.
    pub(crate) exit: Option<Exit>,
}

/// Files that every container sees: name in the private view, place inside.
const SHARED_FILES: &[(&str, &str)] =
    &[("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// Writes the files that every container sees.
pub(crate) fn shared_files(plan: &Start, network: Network, root_id: u32) -> Result<(), Fault> {
    let name = &plan.hostname;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{name}\n",
        network.pod
    );
    let texts = [hosts, format!("{name}\n"), "# This network has no way out.\n".to_owned()];
    for ((file, _), text) in SHARED_FILES.iter().zip(texts) {
        let path = format!("{}/{file}", place::FILES);
        std::fs::write(&path, text)
            .and_then(|()| own(rustix::fs::CWD, &path, root_id).map_err(std::io::Error::from))
            .at_with(|| format!("write {file}"))?;
    }
    Ok(())
}

/// What a refused limit means: the kernel lowers none below what is used already.
pub(crate) fn too_small(limits: Limits) -> impl Fn(Fault) -> Failure {
    move |fault| match fault.errno() {
        libc::EBUSY => Failure::Rejected(format!(
            "a memory limit of {} bytes is less than starting a process takes",
            limits.memory_bytes
        )),
        _ => fault.into(),
    }
}

/// What the containers of a stack may use together: as many as run at once.
pub(crate) fn whole(plan: &Start) -> Limits {
    let mut sum = Limits::default();
    let mut greatest = Limits::default();
    for container in &plan.containers {
        let (cpu, memory) = (container.cpu_milli, container.memory_bytes);
        if container.init {
            greatest.cpu_milli = greatest.cpu_milli.max(cpu);
            greatest.memory_bytes = greatest.memory_bytes.max(memory);
        } else {
            sum.cpu_milli = sum.cpu_milli.saturating_add(cpu);
            sum.memory_bytes = sum.memory_bytes.saturating_add(memory);
        }
    }
    Limits {
        cpu_milli: sum.cpu_milli.max(greatest.cpu_milli),
        memory_bytes: sum.memory_bytes.max(greatest.memory_bytes),
        pids: 0,
    }
}

impl Supervisor {
    /// Starts the first init container, or else the main ones.
    pub(crate) fn begin(&mut self, trace: &mut Trace) -> Result<(), Failure> {
        self.watch_limits();
        match self.plan.containers.iter().position(|c| c.init) {
            Some(first) => self.start_init(first, trace),
            None => self.start_main(trace),
        }
    }

    fn start_init(&mut self, index: usize, trace: &mut Trace) -> Result<(), Failure> {
        self.stage = Stage::Init(index);
        self.state = RuntimeState::Starting { condition: Some(self.initializing(index)) };
        self.start_container(index, trace)
    }

    /// What is said while an init container runs.
    pub(crate) fn initializing(&self, index: usize) -> Condition {
        let name = self.plan.containers.get(index).map_or("", |c| c.name.as_str());
        Condition::new(reason::INITIALIZING, format!("init container {name:?} is running"))
    }

    fn start_main(&mut self, trace: &mut Trace) -> Result<(), Failure> {
        self.stage = Stage::Main;
        let condition = Condition::new(reason::NOT_READY, "containers run and are not ready yet");
        self.state = RuntimeState::Starting { condition: Some(condition) };
        let main: Vec<_> =
            (0..self.plan.containers.len()).filter(|i| !self.plan.containers[*i].init).collect();
        for (number, index) in main.into_iter().enumerate() {
            // Many take seconds, and nobody should have to wait for them in vain.
            if number > 0 && self.is_to_end() {
                return Err(Failure::Rejected("it was ended before it had started".to_owned()));
            }
            self.start_container(index, trace)?;
        }
        self.begin_health();
        trace.step("first look at readiness");
        Ok(())
    }

    fn start_container(&mut self, index: usize, trace: &mut Trace) -> Result<(), Failure> {
        let id_base = self.cell.id_base;
        let container = &self.plan.containers[index];
        let limits = Limits {
            cpu_milli: container.cpu_milli,
            memory_bytes: container.memory_bytes,
            pids: 0,
        };
        let made = self.inside.as_mut().and_then(|inside| inside.container.take());
        let inside = made.is_some();
        let group = match made {
            Some(group) => {
                group.limit(Limits { cpu_milli: 0, ..limits }).map_err(too_small(limits))?;
                group
            }
            None => self.group.child(&format!("c{index}"), limits).map_err(too_small(limits))?,
        };
        trace.step("container control group");
        let writable = format!("{}/{index}", place::DISK);
        rootfs::make_writable(&writable, id_base)?;
        let terminals = rootfs::terminals(id_base)?;
        trace.step("writable layer and terminals");
        let user = id_base + container.uid;
        let input = if container.stdin && !container.tty {
            let (read, write) =
                rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).at("make a pipe")?;
            Some((read, write))
        } else {
            None
        };
        let (input, keep) = input.map_or((None, None), |(r, w)| (Some(r), Some(w)));
        let (stdio, outputs) = if container.tty {
            let terminal = process::terminal(terminals.as_fd(), user, Some((80, 24)))?;
            let output = Output::new(terminal.master, LogStream::Stdout).at("read a terminal")?;
            (Stdio::Terminal(terminal.slave), vec![output])
        } else {
            let (out, output) = output_pipe(user, LogStream::Stdout)?;
            let (err, error) = output_pipe(user, LogStream::Stderr)?;
            (Stdio::Pipes { input, output, error }, vec![out, err])
        };
        let mut binds: Vec<_> = container
            .mounts
            .iter()
            .filter_map(|mount| {
                Some(Bind {
                    volume: Some(mount.name.clone()),
                    source: self.volumes.get(&mount.name)?.clone(),
                    sub_path: mount.sub_path.clone(),
                    target: mount.mount_path.clone(),
                    read_only: mount.read_only,
                })
            })
            .collect();
        // One inside another comes after it.
        binds.sort_by_key(|bind| bind.target.split('/').filter(|part| !part.is_empty()).count());
        for (file, target) in SHARED_FILES {
            if !binds.iter().any(|bind| bind.target == *target) {
                binds.push(Bind {
                    volume: None,
                    source: format!("{}/{file}", place::FILES),
                    sub_path: None,
                    target: (*target).to_owned(),
                    read_only: false,
                });
            }
        }
        let env = process::environment(&container.env, container.tty);
        let controllers = group.visible_controllers();
        let child = process::start(
            &NewContainer {
                identity: Identity {
                    args: &container.args,
                    env: &env,
                    cwd: &container.cwd,
                    uid: container.uid,
                    gid: container.gid,
                    groups: &container.groups,
                    capabilities: self.capabilities,
                    filter: &self.filter,
                    userns: self.cell.userns.as_fd(),
                    id_base,
                },
                layers: &container.layers,
                writable: &writable,
                terminals: terminals.as_fd(),
                binds: &binds,
                read_only: self.plan.restrictions.read_only_root,
                controllers: &controllers,
                group: &group,
                inside,
                proc: self.cell.proc.as_fd(),
            },
            stdio,
        );
        let child = match child {
            Ok(child) => child,
            Err(failure) => {
                self.departed();
                group.remove();
                return Err(failure);
            }
        };
        trace.step("process");
        let file = LogFile::new(&self.logs(), &container.name, self.plan.log_file_bytes);
        self.files.entry(index).or_insert(file);
        for output in outputs {
            let id = self.new_id();
            if !self.muted {
                let token = Token::new(Kind::Output, id);
                self.poll.add(output.source(), token, Interest::IN).at("wait for output")?;
            }
            self.outputs.insert(id, (index, output));
        }
        let token = Token::new(Kind::Container, index as u64);
        self.poll.add(&child.pidfd, token, Interest::IN).at("wait for a container")?;
        let oom = group.oom_signal().ok();
        self.watch_memory(index, oom.as_ref());
        self.running.push(Running {
            index,
            child,
            group,
            terminals,
            _input: keep,
            oom,
            exit: None,
        });
        trace.step("watches");
        Ok(())
    }

    /// The first process of a container has ended.
    pub(crate) fn container_ended(&mut self, index: u64) {
        let Some(container) =
            self.running.iter_mut().find(|c| c.index as u64 == index && c.exit.is_none())
        else {
            return;
        };
        let Ok(Some(exit)) = sys::try_wait(&container.child) else { return };
        self.poll.remove(&container.child.pidfd);
        container.exit = Some(exit);
        let index = container.index;
        let oom = exit.signal == Some(libc::SIGKILL) && container.group.oom_kills() > 0;
        self.health.container_ended(index);
        if exit.code != 0 && self.end.is_none() {
            // A program that could not go on has ended before anybody looked.
            self.look_at_limits();
            let condition = self.ending(index, exit, oom);
            self.end = Some(End { condition, exit_code: Some(exit.code) });
        }
        match self.stage.clone() {
            Stage::Init(_) if exit.code == 0 => self.next_after_init(index),
            Stage::Init(_) | Stage::Main if exit.code != 0 => {
                let grace = Duration::from_millis(self.plan.grace_ms);
                self.stop(grace, None);
            }
            _ => {}
        }
        if self.running.iter().all(|c| c.exit.is_some()) {
            self.finish();
        }
    }

    fn next_after_init(&mut self, index: usize) {
        if let Some(done) = self.running.iter().position(|c| c.index == index) {
            if !self.departed() {
                return self.not_limited();
            }
            let done = self.running.remove(done);
            self.drain(index);
            done.group.remove();
            // What it has met was its own.
            self.limits.forget_memory();
        }
        let mut trace = Trace::new();
        let next = (index + 1..self.plan.containers.len()).find(|i| self.plan.containers[*i].init);
        let started = match next {
            Some(next) => self.start_init(next, &mut trace),
            None => self.start_main(&mut trace),
        };
        match started {
            Ok(()) => self.publish(),
            Err(failure) => {
                let refusal = super::refusal(failure);
                eprintln!("shim: {}: {}", self.plan.id, refusal.operator);
                self.end = Some(End { condition: refusal.condition, exit_code: None });
                self.stop(Duration::ZERO, None);
            }
        }
    }

    fn ending(&self, index: usize, exit: Exit, oom: bool) -> Condition {
        let container = &self.plan.containers[index];
        let kind = if container.init { "init container" } else { "container" };
        let name = &container.name;
        if oom {
            let mib = container.memory_bytes >> 20;
            let text = format!("{kind} {name:?} was killed at its memory limit of {mib} MiB");
            return Condition::new(reason::OOM_KILLED, text);
        }
        let text = match exit.signal {
            Some(signal) => format!("{kind} {name:?} was ended by signal {signal}"),
            None => format!("{kind} {name:?} ended with code {}", exit.code),
        };
        match self.limit_condition() {
            Some(limit) => Condition::new(limit.reason, format!("{text}; {}", limit.message)),
            None => Condition::new(reason::ERROR, text),
        }
    }

    /// Ends every container: those that handle their signal have the grace to do so. A reason other
    /// than how they end is given where there is one.
    pub(crate) fn stop(&mut self, grace: Duration, why: Option<Condition>) {
        if let Some(condition) = why
            && self.end.is_none()
        {
            self.end = Some(End { condition, exit_code: None });
        }
        if self.stage == Stage::Ended {
            return;
        }
        self.stage = Stage::Ending;
        self.tcp.close(&self.poll);
        self.udp.close(&self.poll);
        if grace.is_zero() {
            self.kill_all();
        } else {
            for container in self.running.iter().filter(|c| c.exit.is_none()) {
                // The first process of a namespace never sees a signal that it does not handle:
                // to wait for it would be to wait in vain.
                let wanted = self.plan.containers[container.index].stop_signal;
                let handles = self.handles(container.child.pid, wanted);
                let signal = if handles { wanted } else { libc::SIGKILL };
                let _ = sys::signal(&container.child, signal);
            }
            self.timers.after(grace, Timer::Kill);
        }
        if self.running.iter().all(|c| c.exit.is_some()) {
            self.finish();
        }
    }

    fn handles(&self, pid: i32, signal: i32) -> bool {
        let read = || {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            let path = format!("{pid}/status");
            let fd = rustix::fs::openat(&self.cell.proc, path, flags, rustix::fs::Mode::empty())?;
            let mut text = [0; 4096];
            let n = rustix::io::read(&fd, &mut text)?;
            let text = String::from_utf8_lossy(&text[..n]).into_owned();
            let set = |name: &str| {
                let text = text.lines().find_map(|line| line.strip_prefix(name))?;
                u64::from_str_radix(text.trim(), 16).ok()
            };
            // A process that waits for the signal (sigwait, signalfd) blocks it instead.
            Ok::<_, rustix::io::Errno>(set("SigCgt:").zip(set("SigBlk:")).map(|(a, b)| a | b))
        };
        !matches!(read(), Ok(Some(set)) if set & (1 << (signal - 1)) == 0)
    }

    pub(crate) fn kill_all(&mut self) {
        for container in self.running.iter().filter(|c| c.exit.is_none()) {
            let _ = sys::signal(&container.child, libc::SIGKILL);
        }
    }

    /// Everything has ended: gives back what can be given back, then tells how it ended.
    fn finish(&mut self) {
        if self.stage == Stage::Ended {
            return;
        }
        self.stage = Stage::Ended;
        self.clean();
        let (outcome, exit_code, condition) = match self.end.take() {
            Some(end) => (Outcome::Failed, end.exit_code, end.condition),
            None => {
                let text = "every container ended with code 0";
                (Outcome::Completed, Some(0), Condition::new(reason::COMPLETED, text))
            }
        };
        self.state = RuntimeState::Ended { outcome, exit_code, condition, at: Timestamp::now() };
        self.publish();
        self.timers.after(LAST_WORDS, Timer::Leave);
    }

    /// Ends what is left and gives back ports, groups and disk.
    pub(crate) fn clean(&mut self) {
        let unused = self.inside.as_mut().and_then(|inside| inside.container.take());
        self.departed();
        if let Some(group) = unused {
            group.remove();
        }
        self.tcp.close(&self.poll);
        self.udp.close(&self.poll);
        self.kill_all();
        for container in &self.running {
            if container.exit.is_none() {
                let _ = sys::wait(&container.child);
            }
        }
        self.end_commands();
        let outputs: Vec<_> = self.outputs.values().map(|(index, _)| *index).collect();
        for index in outputs {
            self.drain(index);
        }
        for container in self.running.drain(..) {
            container.group.remove();
        }
        self.group.remove();
        let mut mounts: Vec<_> = self
            .plan
            .volumes
            .iter()
            .map(|plan| format!("{}/{}", place::VOLUMES, plan.volume.name))
            .collect();
        mounts.push(place::DISK.to_owned());
        for mount in mounts {
            // Those that were no mounts of their own need no unmounting.
            let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
        }
    }

    /// Moves the last of a container's output to its file.
    fn drain(&mut self, index: usize) {
        let ids: Vec<_> =
            self.outputs.iter().filter(|(_, (i, _))| *i == index).map(|(id, _)| *id).collect();
        for id in ids {
            if let (Some((_, mut output)), Some(file)) =
                (self.outputs.remove(&id), self.files.get_mut(&index))
            {
                self.poll.remove(output.source());
                output.last_turns(file);
            }
        }
    }

    /// A container has written something.
    pub(crate) fn output(&mut self, id: u64) {
        if self.muted {
            return;
        }
        let Some((index, output)) = self.outputs.get_mut(&id) else { return };
        let Some(file) = self.files.get_mut(index) else { return };
        let turn = output.turn(file);
        if !turn.open
            && let Some((_, output)) = self.outputs.remove(&id)
        {
            self.poll.remove(output.source());
        }
        if let Some(wait) = self.budget.spend(turn.kept)
            && !self.muted
        {
            self.muted = true;
            for (_, output) in self.outputs.values() {
                self.poll.remove(output.source());
            }
            self.timers.after(wait, Timer::Logs);
        }
    }

    /// Waits for output again.
    pub(crate) fn listen_to_outputs(&mut self) {
        self.muted = false;
        for (id, (_, output)) in &self.outputs {
            // Fails only for want of kernel memory; the container's end reads what is left.
            let _ = self.poll.add(output.source(), Token::new(Kind::Output, *id), Interest::IN);
        }
    }
}

/// A pipe to a log; the writing side belongs to the container's user, so that it can be opened
/// again as `/dev/stdout`.
fn output_pipe(user: u32, stream: LogStream) -> Result<(Output, OwnedFd), Fault> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).at("make a pipe")?;
    rustix::fs::fchown(&write, Some(rustix::fs::Uid::from_raw(user)), None)
        .at("give a pipe away")?;
    Ok((Output::new(read, stream).at("read a pipe")?, write))
}
