//! Further commands in containers: for a caller, or for a probe.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use crate::fault::At;
use crate::launch::process::{self, Failure, Identity, NewCommand, Stdio};
use crate::poll::{Interest, Kind, Token};
use crate::probe::Watched;
use crate::protocol::{Event, ExecCommand};
use crate::supervisor::Supervisor;
use crate::sys::{self, Child};

/// The most commands at once. Their processes count against the stack's limit besides.
const MOST: usize = 64;

/// Whom a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A control connection and its number for the command.
    Peer(u64, u64),
    /// An attempt of a probe.
    Probe(u64),
}

/// The commands that run.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    running: BTreeMap<u64, (Owner, Child)>,
}

impl Commands {
    fn kill(&self, which: impl Fn(Owner) -> bool) {
        for (owner, child) in self.running.values() {
            if which(*owner) {
                // It leads a process group of its own. The number is still its: it has not been
                // collected.
                // SAFETY: numbers only.
                unsafe { libc::kill(-child.pid, libc::SIGKILL) };
                let _ = sys::signal(child, libc::SIGKILL);
            }
        }
    }

    /// Ends a caller's command.
    pub(crate) fn end(&self, peer: u64, exec: u64) {
        self.kill(|owner| owner == Owner::Peer(peer, exec));
    }

    /// Ends a probe's command.
    pub(crate) fn end_probe(&self, attempt: u64) {
        self.kill(|owner| owner == Owner::Probe(attempt));
    }

    /// Ends the commands of a caller that is gone.
    pub(crate) fn abandon(&self, peer: u64) {
        self.kill(|owner| matches!(owner, Owner::Peer(of, _) if of == peer));
    }
}

impl Supervisor {
    /// Runs a command for a caller.
    pub(crate) fn exec(&mut self, peer: u64, command: ExecCommand, fds: Vec<OwnedFd>) {
        let exec = command.exec;
        let (event, fds) = match self.try_exec(peer, &command, fds) {
            Ok(fds) => (Event::ExecStarted { exec }, fds),
            Err(Failure::Rejected(message)) => (Event::ExecRefused { exec, message }, Vec::new()),
            Err(Failure::Machine(fault)) => {
                eprintln!("shim: exec: {fault}");
                let message = "the machine could not run the command".to_owned();
                (Event::ExecRefused { exec, message }, Vec::new())
            }
        };
        self.control.send(&self.poll, peer, &event, fds);
    }

    fn try_exec(
        &mut self,
        peer: u64,
        command: &ExecCommand,
        fds: Vec<OwnedFd>,
    ) -> Result<Vec<OwnedFd>, Failure> {
        let index = match &command.container {
            Some(name) => self.plan.containers.iter().position(|c| c.name == *name),
            None => self.running.iter().find(|c| c.exit.is_none()).map(|c| c.index),
        };
        let Some(container) =
            self.running.iter().find(|c| Some(c.index) == index && c.exit.is_none())
        else {
            return Err(Failure::Rejected("the container is not running".to_owned()));
        };
        let (stdio, back) = match command.terminal {
            Some(size) => {
                let user = self.cell.id_base + self.plan.containers[container.index].uid;
                let size = Some((size.columns, size.rows));
                let terminal = process::terminal(container.terminals.as_fd(), user, size)?;
                (Stdio::Terminal(terminal.slave), vec![terminal.master])
            }
            None => {
                let Ok([input, output, error]) = <[OwnedFd; 3]>::try_from(fds) else {
                    return Err(Failure::Rejected("descriptors are missing".to_owned()));
                };
                (Stdio::Pipes { input: Some(input), output, error }, Vec::new())
            }
        };
        let index = container.index;
        self.command(index, &command.command, stdio, Owner::Peer(peer, command.exec))?;
        Ok(back)
    }

    /// Runs a command in a running container.
    pub(crate) fn command(
        &mut self,
        index: usize,
        args: &[String],
        stdio: Stdio,
        owner: Owner,
    ) -> Result<(), Failure> {
        if self.commands.running.len() >= MOST {
            return Err(Failure::Rejected("too many commands run already".to_owned()));
        }
        let Some(container) = self.running.iter().find(|c| c.index == index && c.exit.is_none())
        else {
            return Err(Failure::Rejected("the container is not running".to_owned()));
        };
        let plan = &self.plan.containers[index];
        let env = process::environment(&plan.env, matches!(stdio, Stdio::Terminal(_)));
        let child = process::run(
            &NewCommand {
                identity: Identity {
                    args,
                    env: &env,
                    cwd: &plan.cwd,
                    uid: plan.uid,
                    gid: plan.gid,
                    groups: &plan.groups,
                    capabilities: self.capabilities,
                    filter: &self.filter,
                    userns: self.cell.userns.as_fd(),
                    id_base: self.cell.id_base,
                },
                inside: &container.child,
                group: &container.group,
                proc: self.cell.proc.as_fd(),
            },
            stdio,
        )?;
        let id = self.new_id();
        self.poll
            .add(&child.pidfd, Token::new(Kind::Command, id), Interest::IN)
            .at("wait for a command")?;
        self.commands.running.insert(id, (owner, child));
        Ok(())
    }

    /// A command has ended.
    pub(crate) fn command_ended(&mut self, id: u64) {
        let Some((owner, child)) = self.commands.running.get(&id) else { return };
        let Ok(Some(exit)) = sys::try_wait(child) else { return };
        let owner = *owner;
        self.poll.remove(&child.pidfd);
        self.commands.running.remove(&id);
        match owner {
            Owner::Peer(peer, exec) => {
                let event = Event::ExecEnded { exec, code: exit.code };
                self.control.send(&self.poll, peer, &event, Vec::new());
            }
            Owner::Probe(attempt) => self.probe_command_ended(attempt, exit.code),
        }
    }

    /// Ends and collects every command.
    pub(crate) fn end_commands(&mut self) {
        self.commands.kill(|_| true);
        let ids: Vec<_> = self.commands.running.keys().copied().collect();
        for id in ids {
            if let Some((_, child)) = self.commands.running.get(&id) {
                let mut fds =
                    [rustix::event::PollFd::new(&child.pidfd, rustix::event::PollFlags::IN)];
                let soon = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
                let _ = rustix::event::poll(&mut fds, Some(&soon));
            }
            self.command_ended(id);
        }
    }
}
