//! TCP: accept outside, connect inside, copy both ways until both sides have ended.
//!
//! A connection holds memory only while one side is slower than the other, and then at most one
//! buffer for each direction; what is not read from the one side is not acknowledged to the other.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, SocketFlags, sockopt};

use super::dial;
use crate::poll::{Interest, Kind, Poll, Token};
use crate::protocol::Network;

/// How much is copied at once, and so how much is held at most of each direction.
const BUFFER_BYTES: usize = 16 << 10;
/// How often one connection may copy before others have their turn.
const TURNS: usize = 32;

/// All TCP ports of a stack.
#[derive(Debug)]
pub(crate) struct Relay {
    network: Network,
    most: usize,
    ports: Vec<Port>,
    open: bool,
    listening: bool,
    /// No more could be accepted, until a connection has ended.
    exhausted: bool,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Connections that stopped only because it was others' turn.
    waiting: VecDeque<u64>,
    scratch: Box<[u8]>,
}

#[derive(Debug)]
struct Port {
    listener: OwnedFd,
    inside: u16,
}

#[derive(Debug)]
struct Connection {
    outside: OwnedFd,
    inside: OwnedFd,
    inwards: Direction,
    outwards: Direction,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    /// Read and not yet written.
    held: Vec<u8>,
    /// The source has ended.
    ended: bool,
    /// So has, in consequence, the destination.
    shut: bool,
}

/// How a turn of copying ended.
enum Turn {
    /// Nothing can be done until one side moves.
    Blocked,
    /// It was others' turn.
    Again,
    /// A side is gone.
    Broken,
}

impl Relay {
    pub(crate) fn new(network: Network, most: usize) -> Self {
        Self {
            network,
            most,
            ports: Vec::new(),
            open: false,
            listening: false,
            exhausted: false,
            connections: BTreeMap::new(),
            next: 0,
            waiting: VecDeque::new(),
            scratch: vec![0; BUFFER_BYTES].into(),
        }
    }

    /// Takes over a listening socket for a port of the stack.
    pub(crate) fn add(&mut self, listener: OwnedFd, inside: u16) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        self.ports.push(Port { listener, inside });
        Ok(())
    }

    /// Begins to accept. What has connected before has waited in the kernel.
    pub(crate) fn open(&mut self, poll: &Poll) {
        self.open = true;
        self.listen(poll);
    }

    fn listen(&mut self, poll: &Poll) {
        let wanted = self.open && !self.exhausted && self.connections.len() < self.most;
        if wanted == self.listening {
            return;
        }
        self.listening = wanted;
        for (i, port) in self.ports.iter().enumerate() {
            if wanted {
                let token = Token::new(Kind::TcpPort, i as u64);
                // Fails only for want of kernel memory; the next change tries again.
                let _ = poll.add(&port.listener, token, Interest::IN);
            } else {
                poll.remove(&port.listener);
            }
        }
    }

    /// Stops listening and breaks every connection.
    pub(crate) fn close(&mut self, poll: &Poll) {
        self.open = false;
        self.listen(poll);
        for port in self.ports.drain(..) {
            // The server has copies of it: closing this one alone would change nothing outside.
            let _ = rustix::net::shutdown(port.listener, Shutdown::Both);
        }
        for connection in std::mem::take(&mut self.connections).into_values() {
            connection.reset();
        }
    }

    /// Whether a connection waits for its turn.
    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Accepts what has connected to a port.
    pub(crate) fn accept(&mut self, poll: &Poll, port: u64) {
        for _ in 0..64 {
            if self.connections.len() >= self.most {
                break;
            }
            let Some(port) = usize::try_from(port).ok().and_then(|i| self.ports.get(i)) else {
                return;
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let outside = match rustix::net::accept_with(&port.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => break,
                // It was closed from outside, and would go on to say so.
                Err(Errno::INVAL) => {
                    poll.remove(&port.listener);
                    return;
                }
                // The next would fail as well, and the kernel would go on to tell of it.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.exhausted = !self.connections.is_empty();
                    break;
                }
                // One connection that failed says nothing of the next.
                Err(_) => continue,
            };
            let inside = match dial(self.network, port.inside) {
                Ok(socket) => socket,
                Err(_) => {
                    reset(&outside);
                    continue;
                }
            };
            self.add_connection(poll, outside, inside);
        }
        self.listen(poll);
    }

    fn add_connection(&mut self, poll: &Poll, outside: OwnedFd, inside: OwnedFd) {
        // A peer that has vanished without a word must not hold a place for ever.
        let _ = sockopt::set_socket_keepalive(&outside, true);
        let _ = sockopt::set_tcp_keepidle(&outside, Duration::from_secs(60));
        let _ = sockopt::set_tcp_keepintvl(&outside, Duration::from_secs(20));
        let _ = sockopt::set_tcp_keepcnt(&outside, 3);
        let _ = sockopt::set_tcp_nodelay(&outside, true);
        self.next += 1;
        let token = Token::new(Kind::Connection, self.next);
        let interest = Interest::IN | Interest::OUT | Interest::RDHUP | Interest::ET;
        let connection = Connection {
            outside,
            inside,
            inwards: Direction::default(),
            outwards: Direction::default(),
        };
        let added = poll
            .add(&connection.outside, token, interest)
            .and_then(|()| poll.add(&connection.inside, token, interest));
        match added {
            Ok(()) => {
                self.connections.insert(self.next, connection);
            }
            Err(_) => connection.reset(),
        }
    }

    /// Copies what can be copied on a connection.
    pub(crate) fn turn(&mut self, poll: &Poll, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.turn(&mut self.scratch) {
            Turn::Blocked if connection.is_done() => {
                self.connections.remove(&id);
                self.exhausted = false;
                self.listen(poll);
            }
            Turn::Blocked => {}
            Turn::Again => self.waiting.push_back(id),
            Turn::Broken => {
                if let Some(connection) = self.connections.remove(&id) {
                    connection.reset();
                }
                self.exhausted = false;
                self.listen(poll);
            }
        }
    }

    /// Gives those that wait for their turn one more.
    pub(crate) fn turns(&mut self, poll: &Poll) {
        for _ in 0..self.waiting.len() {
            if let Some(id) = self.waiting.pop_front() {
                self.turn(poll, id);
            }
        }
    }
}

impl Connection {
    fn turn(&mut self, scratch: &mut [u8]) -> Turn {
        let inwards = self.inwards.copy(&self.outside, &self.inside, scratch);
        let outwards = self.outwards.copy(&self.inside, &self.outside, scratch);
        match (inwards, outwards) {
            (Turn::Broken, _) | (_, Turn::Broken) => Turn::Broken,
            (Turn::Again, _) | (_, Turn::Again) => Turn::Again,
            (Turn::Blocked, Turn::Blocked) => Turn::Blocked,
        }
    }

    fn is_done(&self) -> bool {
        self.inwards.shut && self.outwards.shut
    }

    /// Ends both sides as a broken connection ends, not as a finished one.
    fn reset(self) {
        reset(&self.outside);
        reset(&self.inside);
    }
}

/// Makes closing a socket a reset.
fn reset(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

impl Direction {
    fn copy(&mut self, from: &OwnedFd, to: &OwnedFd, scratch: &mut [u8]) -> Turn {
        for _ in 0..TURNS {
            if !self.held.is_empty() {
                match write(to, &self.held) {
                    Ok(n) if n == self.held.len() => self.held = Vec::new(),
                    Ok(n) => drop(self.held.drain(..n)),
                    Err(Errno::AGAIN | Errno::NOTCONN) => return Turn::Blocked,
                    Err(_) => return Turn::Broken,
                }
                continue;
            }
            if self.ended {
                if !self.shut {
                    // Ending one side of a connection that is under way would undo it.
                    if matches!(rustix::net::getpeername(to), Err(Errno::NOTCONN))
                        && matches!(sockopt::socket_error(to), Ok(Ok(())))
                    {
                        return Turn::Blocked;
                    }
                    // The other side may have gone already: then its own end says so.
                    let _ = rustix::net::shutdown(to, Shutdown::Write);
                    self.shut = true;
                }
                return Turn::Blocked;
            }
            match rustix::io::read(from, &mut scratch[..]) {
                Ok(0) => self.ended = true,
                Ok(n) => match write(to, &scratch[..n]) {
                    Ok(written) => self.held.extend_from_slice(&scratch[written..n]),
                    Err(Errno::AGAIN | Errno::NOTCONN) => {
                        self.held.extend_from_slice(&scratch[..n])
                    }
                    Err(_) => return Turn::Broken,
                },
                Err(Errno::AGAIN | Errno::NOTCONN) => return Turn::Blocked,
                Err(Errno::INTR) => {}
                Err(_) => return Turn::Broken,
            }
        }
        Turn::Again
    }
}

fn write(to: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(to, bytes, SendFlags::NOSIGNAL)
}
