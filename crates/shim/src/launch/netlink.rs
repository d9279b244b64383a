//! The network of a stack: the loopback interface of a namespace of its own, with two addresses
//! on it. Services are reached at the pod's, and see the gateway's as their peer; there is no
//! other interface, so there is no way out.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::fault::{At, Fault};
use crate::protocol::Network;

/// The loopback interface is the first of every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Sets up the network namespace that this process is in.
pub(crate) fn set_up(network: Network) -> Result<(), Fault> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE
    )
    .at("open netlink")?;
    let mut requests = Vec::with_capacity(128);
    link_up(&mut requests);
    add_address(&mut requests, network.pod);
    add_address(&mut requests, network.gateway);
    rustix::net::send(&socket, &requests, SendFlags::empty()).at("set up the network")?;
    for _ in 0..3 {
        match acknowledged(&socket) {
            // Somebody has been here before: it is as it should be.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            result => result.at("set up the network")?,
        }
    }
    Ok(())
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, body: &[u8]) {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&[0; 8]); // sequence and port
    out.extend_from_slice(body);
}

const REQUEST: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;

/// `RTM_NEWLINK` with `struct ifinfomsg`.
fn link_up(out: &mut Vec<u8>) {
    let mut body = vec![0; 4]; // family, padding, type
    body.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    let up = libc::IFF_UP as u32;
    body.extend_from_slice(&up.to_ne_bytes()); // flags
    body.extend_from_slice(&up.to_ne_bytes()); // which of them to change
    message(out, libc::RTM_NEWLINK, REQUEST, &body);
}

/// `RTM_NEWADDR` with `struct ifaddrmsg` and the attributes `IFA_ADDRESS` and `IFA_LOCAL`.
fn add_address(out: &mut Vec<u8>, address: Ipv4Addr) {
    let mut body = vec![libc::AF_INET as u8, 32, 0, libc::RT_SCOPE_HOST];
    body.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    for attribute in [libc::IFA_ADDRESS, libc::IFA_LOCAL] {
        body.extend_from_slice(&8u16.to_ne_bytes());
        body.extend_from_slice(&attribute.to_ne_bytes());
        body.extend_from_slice(&address.octets());
    }
    let create = REQUEST | (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    message(out, libc::RTM_NEWADDR, create, &body);
}

/// Reads one acknowledgement: a header of 16 bytes, then an error number.
fn acknowledged(socket: &OwnedFd) -> io::Result<()> {
    let mut answer = [0; 512];
    let (length, _) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
    match answer[..length].get(16..20).and_then(|bytes| bytes.first_chunk::<4>()) {
        Some(code) => match i32::from_ne_bytes(*code) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
