//! Node ports: bound before a stack is promised, held until its shim takes them over, and
//! closed from here at once when the stack is not wanted any more.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use stackd_core::StackId;
use stackd_core::port::{PortMapping, Protocol};
use stackd_core::runtime::PortsTaken;

/// How many connections wait in the kernel until a stack is ready.
const BACKLOG: i32 = 4096;

/// Sockets by stack, in the order of its ports.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    held: HashMap<StackId, Claim>,
    /// Copies of the TCP listeners that shims have, to be closed without waiting for them.
    handed: HashMap<StackId, Vec<OwnedFd>>,
}

#[derive(Debug)]
struct Claim {
    ports: Vec<PortMapping>,
    sockets: Vec<OwnedFd>,
}

impl Claims {
    /// Binds all or none. What the stack has claimed already stays as it is.
    pub(crate) fn claim(
        &mut self,
        address: IpAddr,
        id: StackId,
        ports: &[PortMapping],
    ) -> Result<(), PortsTaken> {
        if self.held.get(&id).is_some_and(|claim| claim.ports == ports) {
            return Ok(());
        }
        let sockets = bind_all(address, ports)?;
        self.held.insert(id, Claim { ports: ports.to_vec(), sockets });
        Ok(())
    }

    /// Hands over the sockets of a stack; binds them where it has claimed none, as after a restart
    /// of the server.
    pub(crate) fn take(
        &mut self,
        address: IpAddr,
        id: StackId,
        ports: &[PortMapping],
    ) -> Result<Vec<OwnedFd>, PortsTaken> {
        // Whoever had them before has not any more, and these would be in the way.
        self.handed.remove(&id);
        let sockets = match self.held.remove(&id) {
            Some(claim) if claim.ports == ports => claim.sockets,
            _ => bind_all(address, ports)?,
        };
        let listeners = tcp(ports, &sockets).filter_map(|socket| socket.try_clone().ok());
        self.handed.insert(id, listeners.collect());
        Ok(sockets)
    }

    /// Refuses connections to the TCP ports of a stack, whoever else holds its listeners. A stack
    /// that an earlier server started is left to its shim.
    pub(crate) fn close(&self, id: StackId) {
        let held = self.held.get(&id).into_iter();
        let held = held.flat_map(|claim| tcp(&claim.ports, &claim.sockets));
        for listener in held.chain(self.handed.get(&id).into_iter().flatten()) {
            // One that is closed already is as it should be.
            let _ = rustix::net::shutdown(listener, Shutdown::Both);
        }
    }

    /// Lets go of what a stack's shim had: it has ended, and its ports are free.
    pub(crate) fn ended(&mut self, id: StackId) {
        self.handed.remove(&id);
    }

    /// Gives back what a stack has claimed.
    pub(crate) fn release(&mut self, id: StackId) {
        self.held.remove(&id);
        self.handed.remove(&id);
    }
}

/// Those of a stack's sockets that listen.
fn tcp<'a>(ports: &'a [PortMapping], sockets: &'a [OwnedFd]) -> impl Iterator<Item = &'a OwnedFd> {
    let both = ports.iter().zip(sockets);
    both.filter(|(port, _)| port.protocol == Protocol::Tcp).map(|(_, socket)| socket)
}

/// Binds all or none. Names none where the machine cannot bind any for now, whoever holds them.
fn bind_all(address: IpAddr, ports: &[PortMapping]) -> Result<Vec<OwnedFd>, PortsTaken> {
    use rustix::io::Errno;
    let mut sockets = Vec::with_capacity(ports.len());
    let mut taken = Vec::new();
    for port in ports {
        match bind(SocketAddr::new(address, port.node_port), port.protocol) {
            Ok(socket) => sockets.push(socket),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                tracing::warn!(%error, "node ports cannot be bound for now");
                return Err(PortsTaken(Vec::new()));
            }
            Err(error) => {
                if error != Errno::ADDRINUSE {
                    tracing::warn!(port = port.node_port, %error, "a node port cannot be bound");
                }
                taken.push(port.node());
            }
        }
    }
    if taken.is_empty() { Ok(sockets) } else { Err(PortsTaken(taken)) }
}

fn bind(address: SocketAddr, protocol: Protocol) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match protocol {
        Protocol::Tcp => {
            let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
            // Connections of the port's last stack may linger; they are no reason to refuse it.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &address)?;
            // Only listening makes the port this socket's alone.
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        }
        Protocol::Udp => {
            let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
            rustix::net::bind(&socket, &address)?;
            Ok(socket)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;

    /// An address of this test's own, so that its ports are nobody else's.
    fn address(test: u8) -> IpAddr {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        Ipv4Addr::new(127, high, low, test).into()
    }

    fn port(protocol: Protocol, node_port: u16) -> PortMapping {
        PortMapping { container_port: 80, protocol, node_port }
    }

    #[test]
    fn a_closed_port_refuses_connections_whoever_holds_it() {
        let address = address(1);
        for (node_port, handed) in [(31_001, false), (31_002, true)] {
            let ports = [port(Protocol::Tcp, node_port)];
            let reached = || TcpStream::connect((address, node_port)).is_ok();
            let mut claims = Claims::default();
            let id = StackId::from_bits(1);
            claims.claim(address, id, &ports).unwrap();
            let theirs =
                if handed { claims.take(address, id, &ports).unwrap() } else { Vec::new() };
            assert!(reached());
            claims.close(id);
            assert!(!reached());
            drop(theirs);
        }
    }

    #[test]
    fn all_ports_are_claimed_or_none() {
        let address = address(2);
        let (held, other) = (31_001, 31_002);
        let _foreign = TcpListener::bind((address, held)).unwrap();
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let mut claims = Claims::default();
        let id = StackId::from_bits(1);
        let both = [port(tcp, other), port(tcp, held)];
        assert_eq!(claims.claim(address, id, &both), Err(PortsTaken(vec![(tcp, held)])));
        // TCP and UDP are counted apart.
        let both = [port(udp, held), port(udp, other)];
        assert_eq!(claims.claim(address, id, &both), Ok(()));
        let free = || UdpSocket::bind((address, other)).is_ok();
        assert!(!free());
        assert_eq!(claims.claim(address, id, &both), Ok(()), "twice is once");
        claims.release(id);
        // A process that another test starts has copies of these sockets until it is its own program.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !free() {
            assert!(Instant::now() < deadline, "the port stays bound");
            std::thread::yield_now();
        }
    }
}
