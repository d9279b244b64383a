//! Finds out when a stack takes traffic: by connecting to its node ports, as a caller would. The
//! rules of a node follow a pod's readiness with some delay, and no object tells when.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use stackd_core::{Protocol, StackId};
use tokio::net::TcpStream;

use super::inner::Inner;

/// How long one connection may take, and how long to wait between two tries: first, and at most.
const CONNECT: Duration = Duration::from_secs(2);
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// What is dialled.
struct Target {
    pod: Box<str>,
    /// None while there is nothing to dial: its node is not known, or its service is away.
    address: Option<IpAddr>,
    ports: Vec<u16>,
    /// Whether one port is enough: a probe has said that the containers are ready.
    any: bool,
}

/// Dials the node ports of a stack until they take a connection, or until it is not ready any more.
pub(super) async fn until_taken(inner: &Arc<Inner>, id: StackId) {
    let (mut pause, longest) = PAUSE;
    let mut taken = Vec::new();
    let mut pod = None;
    while let Some(target) = target(inner, id) {
        if pod.as_ref() != Some(&target.pod) || target.address.is_none() {
            taken.clear();
            pod = Some(target.pod.clone());
        }
        if let Some(address) = target.address {
            for port in &target.ports {
                if !taken.contains(port) && accepts(SocketAddr::new(address, *port)).await {
                    taken.push(*port);
                }
            }
            let enough = if target.any { 1 } else { target.ports.len() };
            if taken.len() >= enough {
                inner.change_entry(id, |entry| {
                    let same = entry.pod.as_ref().is_some_and(|p| p.view.uid == target.pod);
                    entry.accepts = same && entry.service.is_some();
                    entry.acting.dialing = false;
                });
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(longest);
    }
    inner.change_entry(id, |entry| entry.acting.dialing = false);
}

async fn accepts(address: SocketAddr) -> bool {
    matches!(tokio::time::timeout(CONNECT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

fn target(inner: &Inner, id: StackId) -> Option<Target> {
    let state = inner.state.lock();
    let entry = state.entries.get(&id)?;
    let pod = &entry.pod.as_ref()?.view;
    if !pod.ready || entry.over.is_some() || entry.removing {
        return None;
    }
    let node = pod.node.as_deref().filter(|_| entry.service.is_some());
    let node = node.and_then(|node| state.nodes.get(node));
    let tcp = entry.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    Some(Target {
        pod: pod.uid.clone(),
        address: node.and_then(|node| node.view.dial),
        ports: tcp.map(|port| port.node_port).collect(),
        any: pod.probed,
    })
}
