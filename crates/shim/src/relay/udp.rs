//! UDP: each peer outside has a socket of its own inside, so that the service can tell peers apart
//! and answers find their way. A flow is forgotten when it has been quiet for a while, or when a
//! new one needs its place.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};

use super::datagrams;
use crate::poll::{Interest, Kind, Poll, Token};
use crate::protocol::Network;

/// How many datagrams one descriptor may bring before others have their turn.
const BATCH: usize = 64;
/// The greatest datagram.
const DATAGRAM_BYTES: usize = 64 << 10;

/// All UDP ports of a stack.
#[derive(Debug)]
pub(crate) struct Relay {
    network: Network,
    most: usize,
    idle: Duration,
    ports: Vec<Port>,
    flows: BTreeMap<u64, Flow>,
    by_peer: HashMap<(usize, SocketAddr), u64>,
    next: u64,
    scratch: Box<[u8]>,
}

#[derive(Debug)]
struct Port {
    socket: OwnedFd,
    inside: u16,
}

#[derive(Debug)]
struct Flow {
    port: usize,
    peer: SocketAddr,
    socket: OwnedFd,
    used: Instant,
}

impl Relay {
    pub(crate) fn new(network: Network, most: usize, idle: Duration) -> Self {
        Self {
            network,
            most,
            idle,
            ports: Vec::new(),
            flows: BTreeMap::new(),
            by_peer: HashMap::new(),
            next: 0,
            scratch: vec![0; DATAGRAM_BYTES].into(),
        }
    }

    /// Takes over a bound socket for a port of the stack.
    pub(crate) fn add(&mut self, socket: OwnedFd, inside: u16) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        self.ports.push(Port { socket, inside });
        Ok(())
    }

    /// Begins to carry. A few datagrams that came before have waited in the kernel.
    pub(crate) fn open(&mut self, poll: &Poll) {
        for (i, port) in self.ports.iter().enumerate() {
            // Fails only for want of kernel memory.
            let _ = poll.add(&port.socket, Token::new(Kind::UdpPort, i as u64), Interest::IN);
        }
    }

    /// Stops, and forgets every flow.
    pub(crate) fn close(&mut self, poll: &Poll) {
        for port in self.ports.drain(..) {
            poll.remove(&port.socket);
        }
        self.flows.clear();
        self.by_peer.clear();
    }

    /// Whether there is anything to sweep.
    pub(crate) fn has_flows(&self) -> bool {
        !self.flows.is_empty()
    }

    /// Forgets flows that have been quiet for long.
    pub(crate) fn sweep(&mut self) {
        let (idle, by_peer) = (self.idle, &mut self.by_peer);
        self.flows.retain(|_, flow| {
            let keep = flow.used.elapsed() < idle;
            if !keep {
                by_peer.remove(&(flow.port, flow.peer));
            }
            keep
        });
    }

    /// Carries inwards what has come to a port.
    pub(crate) fn inwards(&mut self, poll: &Poll, port: u64) {
        let Ok(number) = usize::try_from(port) else { return };
        for _ in 0..BATCH {
            let Some(port) = self.ports.get(number) else { return };
            let got =
                rustix::net::recvfrom(&port.socket, &mut self.scratch[..], RecvFlags::empty());
            let (length, peer) = match got {
                Ok((length, _, Some(peer))) => match SocketAddr::try_from(peer) {
                    Ok(peer) => (length, peer),
                    Err(_) => continue,
                },
                Ok(_) => continue,
                Err(rustix::io::Errno::AGAIN) => return,
                // An error of an earlier answer; it is taken off with this.
                Err(_) => continue,
            };
            let inside = port.inside;
            let Some(id) = self.flow(poll, number, peer) else { continue };
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.used = Instant::now();
                // Datagrams may be lost: a full or absent service loses them.
                let datagram = &self.scratch[..length];
                let to = SocketAddr::from((self.network.pod, inside));
                let _ = rustix::net::sendto(&flow.socket, datagram, SendFlags::empty(), &to);
            }
        }
    }

    fn flow(&mut self, poll: &Poll, number: usize, peer: SocketAddr) -> Option<u64> {
        if let Some(id) = self.by_peer.get(&(number, peer)) {
            return Some(*id);
        }
        if self.flows.len() >= self.most {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used).map(|(id, _)| *id)?;
            if let Some(flow) = self.flows.remove(&oldest) {
                self.by_peer.remove(&(flow.port, flow.peer));
            }
        }
        let socket = datagrams(self.network).ok()?;
        self.next += 1;
        poll.add(&socket, Token::new(Kind::Flow, self.next), Interest::IN).ok()?;
        self.by_peer.insert((number, peer), self.next);
        self.flows.insert(self.next, Flow { port: number, peer, socket, used: Instant::now() });
        Some(self.next)
    }

    /// Carries outwards what a service has answered on a flow.
    pub(crate) fn outwards(&mut self, id: u64) {
        for _ in 0..BATCH {
            let Some(flow) = self.flows.get_mut(&id) else { return };
            let got =
                rustix::net::recvfrom(&flow.socket, &mut self.scratch[..], RecvFlags::empty());
            match got {
                Ok((length, _, from)) => {
                    flow.used = Instant::now();
                    let Some(port) = self.ports.get(flow.port) else { return };
                    // A service that is bound to no address answers from the one it answers to,
                    // so only the port tells that it is the service.
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    if from.is_none_or(|from| from.port() != port.inside) {
                        continue;
                    }
                    let answer = &self.scratch[..length];
                    let peer = &flow.peer;
                    let _ = rustix::net::sendto(&port.socket, answer, SendFlags::empty(), peer);
                }
                Err(_) => return,
            }
        }
    }
}
