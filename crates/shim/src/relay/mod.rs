//! The relay: what arrives at a stack's node ports, in the machine's network, is carried to the
//! pod's address in the stack's. There is no other path between the two networks. What comes from
//! inside is only ever copied, never looked at.

pub(crate) mod tcp;
pub(crate) mod udp;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::protocol::Network;

/// A socket in the stack's network that speaks from the gateway's address, for datagrams.
pub(crate) fn datagrams(network: Network) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(ipproto::UDP);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, protocol)?;
    rustix::net::bind(&socket, &at(network.gateway, 0))?;
    Ok(socket)
}

/// A connection in the stack's network, from the gateway's address. It is under way when this
/// returns.
pub(crate) fn dial(network: Network, port: u16) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(ipproto::TCP);
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, protocol)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    bind_address_only(&socket)?;
    rustix::net::bind(&socket, &at(network.gateway, 0))?;
    match rustix::net::connect(&socket, &at(network.pod, port)) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// A connection to a published port of another machine. It is under way when this returns.
pub(crate) fn dial_outside(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

/// Lets the kernel choose the port when it knows the other end: 28,000 connections to each port
/// instead of 28,000 in all.
fn bind_address_only(socket: &OwnedFd) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: passes one integer and its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(rustix::io::Errno::INVAL) }
}
