//! The server's side of a connection to a shim.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use stackd_core::runtime::Usage;
use stackd_shim::protocol::wire::{self, Inbox};
use stackd_shim::protocol::{Event, ExecCommand, Refusal, Request, SOCKET_FILE, Snapshot, Step};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::machine::short_path;

/// What became of a start.
#[derive(Debug)]
pub(crate) enum StartReply {
    Started(Vec<Step>),
    Refused(Refusal),
}

/// What became of the start of a command: its terminal, where it has one, or why not.
pub(crate) type ExecReply = Result<Option<OwnedFd>, String>;

/// A connection to a shim. Requests go out here; a reader must call [`Client::next`].
#[derive(Debug)]
pub(crate) struct Client {
    socket: AsyncFd<OwnedFd>,
    sending: tokio::sync::Mutex<()>,
    waiting: Mutex<Waiting>,
    next_exec: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    start: Option<oneshot::Sender<StartReply>>,
    usage: VecDeque<oneshot::Sender<Usage>>,
    commands: HashMap<u64, Command>,
}

#[derive(Debug)]
struct Command {
    terminal: bool,
    started: Option<oneshot::Sender<ExecReply>>,
    ended: Option<oneshot::Sender<i32>>,
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the shim is gone")
}

/// Waits for a descriptor, which must not block.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, and it is not taken
    // out of the `AsyncFd` anywhere.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// Connects to the socket in a stack's directory.
pub(crate) fn connect(directory: &Path) -> io::Result<OwnedFd> {
    let open = std::fs::File::open(directory)?;
    let address = SocketAddrUnix::new(short_path(&open, SOCKET_FILE))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Makes the socket in a stack's directory, for its shim to listen on.
pub(crate) fn listen(directory: &Path) -> io::Result<OwnedFd> {
    let open = std::fs::File::open(directory)?;
    let path = short_path(&open, SOCKET_FILE);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

impl Client {
    /// A client on a connected socket that does not block.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: watched(socket)?,
            sending: tokio::sync::Mutex::default(),
            waiting: Mutex::default(),
            next_exec: AtomicU64::new(1),
        })
    }

    /// Sends a request with its descriptors.
    pub(crate) async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = wire::frame(request)?;
        let _turn = self.sending.lock().await;
        let mut sent = 0;
        while sent < bytes.len() {
            let with = if sent == 0 { fds } else { &[] };
            // Mostly there is room, and then there is nothing to wait for.
            match wire::send(self.socket.get_ref().as_fd(), &bytes[sent..], with) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = self.socket.writable().await?;
                    ready.clear_ready();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Waits for the next snapshot; other events go to whoever waits for them. `None` when the
    /// shim is gone. For one reader only.
    pub(crate) async fn next(&self, inbox: &mut Inbox) -> Option<Snapshot> {
        loop {
            match inbox.message::<Event>() {
                Ok(Some(Event::Snapshot(snapshot))) => return Some(snapshot),
                Ok(Some(event)) => self.deliver(event, inbox),
                Ok(None) => match self.read(inbox).await {
                    Ok(wire::Read::Some) => {}
                    Ok(wire::Read::End) | Err(_) => return None,
                },
                Err(_) => return None,
            }
        }
    }

    /// Waits for the next event of a blank.
    pub(crate) async fn next_event(&self, inbox: &mut Inbox) -> io::Result<Event> {
        loop {
            if let Some(event) = inbox.message::<Event>()? {
                return Ok(event);
            }
            if self.read(inbox).await? == wire::Read::End {
                return Err(gone());
            }
        }
    }

    async fn read(&self, inbox: &mut Inbox) -> io::Result<wire::Read> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| inbox.read(socket.get_ref().as_fd())) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    fn deliver(&self, event: Event, inbox: &mut Inbox) {
        let mut waiting = self.waiting.lock();
        match event {
            Event::Started { trace } => {
                waiting.start.take().map(|waiter| waiter.send(StartReply::Started(trace)));
            }
            Event::Refused(refusal) => {
                waiting.start.take().map(|waiter| waiter.send(StartReply::Refused(refusal)));
            }
            Event::ExecStarted { exec } => {
                if let Some(command) = waiting.commands.get_mut(&exec) {
                    let fds = inbox.take_fds(usize::from(command.terminal));
                    let reply = Ok(fds.into_iter().next());
                    command.started.take().map(|waiter| waiter.send(reply));
                }
            }
            Event::ExecRefused { exec, message } => {
                if let Some(command) = waiting.commands.remove(&exec) {
                    command.started.map(|waiter| waiter.send(Err(message)));
                }
            }
            Event::ExecEnded { exec, code } => {
                if let Some(command) = waiting.commands.remove(&exec) {
                    command.ended.map(|waiter| waiter.send(code));
                }
            }
            Event::Usage(usage) => {
                waiting.usage.pop_front().map(|waiter| waiter.send(usage));
            }
            Event::Snapshot(_)
            | Event::Kept(_)
            | Event::Probe { .. }
            | Event::Forked { .. }
            | Event::Blank { .. }
            | Event::Unfit { .. } => {}
        }
    }

    /// Lets go of everybody who waits: nothing will come any more.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        *waiting = Waiting { closed: true, ..Waiting::default() };
    }

    /// The reply to a start that is about to be sent.
    pub(crate) fn start_reply(&self) -> oneshot::Receiver<StartReply> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().start = Some(sender);
        receiver
    }

    /// What the stack uses.
    pub(crate) async fn usage(&self) -> io::Result<Usage> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(gone());
            }
            waiting.usage.push_back(sender);
        }
        self.send(&Request::Usage, &[]).await?;
        receiver.await.map_err(|_| gone())
    }

    /// Runs a command. The first result is what became of its start, the second will be its code.
    pub(crate) async fn exec(
        &self,
        mut command: ExecCommand,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(u64, ExecReply, oneshot::Receiver<i32>)> {
        let exec = self.next_exec.fetch_add(1, Ordering::Relaxed);
        command.exec = exec;
        let (started, start) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(gone());
            }
            let terminal = command.terminal.is_some();
            let command = Command { terminal, started: Some(started), ended: Some(ended) };
            waiting.commands.insert(exec, command);
        }
        self.send(&Request::Exec(command), fds).await?;
        let reply = start.await.map_err(|_| gone())?;
        Ok((exec, reply, end))
    }
}
