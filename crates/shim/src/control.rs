//! The shim's side of its control connections. A peer that does not read is dropped, so that
//! nobody can make the shim wait or grow.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::poll::{Interest, Kind, Poll, Token};
use crate::protocol::wire::{self, Inbox};
use crate::protocol::{Event, Request};

/// What may wait for a peer to read it.
const OUTBOX_BYTES: usize = 1 << 20;
/// The most peers at once.
const PEERS: usize = 64;

/// All control connections.
#[derive(Debug)]
pub(crate) struct Control {
    listener: OwnedFd,
    peers: BTreeMap<u64, Peer>,
    next: u64,
}

#[derive(Debug)]
struct Peer {
    socket: OwnedFd,
    inbox: Inbox,
    outbox: VecDeque<Frame>,
    outbox_bytes: usize,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A request with what came with it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) peer: u64,
    pub(crate) request: Request,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Control {
    /// Listens, with the connection that started this shim as its first peer.
    pub(crate) fn new(
        poll: &Poll,
        listener: OwnedFd,
        first: OwnedFd,
        inbox: Inbox,
    ) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        poll.add(&listener, Token::new(Kind::Control, 0), Interest::IN)?;
        let mut control = Self { listener, peers: BTreeMap::new(), next: 0 };
        rustix::io::ioctl_fionbio(&first, true)?;
        control.add(poll, first, inbox)?;
        Ok(control)
    }

    fn add(&mut self, poll: &Poll, socket: OwnedFd, inbox: Inbox) -> std::io::Result<u64> {
        self.next += 1;
        poll.add(&socket, Token::new(Kind::Peer, self.next), Interest::IN)?;
        let peer = Peer { socket, inbox, outbox: VecDeque::new(), outbox_bytes: 0 };
        self.peers.insert(self.next, peer);
        Ok(self.next)
    }

    /// Takes new connections; says which came.
    pub(crate) fn accept(&mut self, poll: &Poll) -> Vec<u64> {
        let mut came = Vec::new();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            if self.peers.len() < PEERS
                && let Ok(peer) = self.add(poll, socket, Inbox::default())
            {
                came.push(peer);
            }
        }
        came
    }

    /// Who is connected.
    pub(crate) fn peers(&self) -> Vec<u64> {
        self.peers.keys().copied().collect()
    }

    /// Reads and writes what can be read and written; the requests that came, and whether the
    /// peer is still there.
    pub(crate) fn turn(&mut self, poll: &Poll, id: u64) -> (Vec<Asked>, bool) {
        let mut asked = Vec::new();
        let Some(peer) = self.peers.get_mut(&id) else { return (asked, true) };
        let mut alive = peer.flush(poll, id).is_ok();
        while alive {
            // What came with an earlier message is here already.
            match peer.inbox.message::<Request>() {
                Ok(Some(request)) => {
                    let fds = match &request {
                        Request::Exec(command) if command.terminal.is_none() => 3,
                        Request::Enter => 2,
                        _ => 0,
                    };
                    let fds = peer.inbox.take_fds(fds);
                    asked.push(Asked { peer: id, request, fds });
                    continue;
                }
                Ok(None) => {}
                Err(_) => alive = false,
            }
            match peer.inbox.read(peer.socket.as_fd()) {
                Ok(wire::Read::Some) => {}
                Ok(wire::Read::End) => alive = false,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => alive = false,
            }
        }
        if !alive {
            self.peers.remove(&id);
        }
        (asked, alive)
    }

    /// Sends an event to one peer.
    pub(crate) fn send(&mut self, poll: &Poll, id: u64, event: &Event, fds: Vec<OwnedFd>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Ok(bytes) = wire::frame(event) else { return };
        peer.outbox_bytes += bytes.len();
        peer.outbox.push_back(Frame { bytes, sent: 0, fds });
        if peer.outbox_bytes > OUTBOX_BYTES || peer.flush(poll, id).is_err() {
            self.peers.remove(&id);
        }
    }

    /// Sends an event to every peer.
    pub(crate) fn broadcast(&mut self, poll: &Poll, event: &Event) {
        for peer in self.peers() {
            self.send(poll, peer, event, Vec::new());
        }
    }

    /// Whether anybody is connected.
    pub(crate) fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Whether something still waits to be read by a peer.
    pub(crate) fn is_flushed(&self) -> bool {
        self.peers.values().all(|peer| peer.outbox.is_empty())
    }
}

impl Peer {
    fn flush(&mut self, poll: &Poll, id: u64) -> rustix::io::Result<()> {
        let token = Token::new(Kind::Peer, id);
        while let Some(frame) = self.outbox.front_mut() {
            let fds: Vec<_> = frame.fds.iter().map(AsFd::as_fd).collect();
            let with = if frame.sent == 0 { fds.as_slice() } else { &[] };
            match wire::send(self.socket.as_fd(), &frame.bytes[frame.sent..], with) {
                Ok(n) => frame.sent += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return poll.modify(&self.socket, token, Interest::IN | Interest::OUT);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Errno::PIPE),
            }
            if frame.sent == frame.bytes.len() {
                self.outbox_bytes -= frame.bytes.len();
                self.outbox.pop_front();
                if self.outbox.is_empty() {
                    poll.modify(&self.socket, token, Interest::IN)?;
                }
            }
        }
        Ok(())
    }
}
