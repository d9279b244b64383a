//! Node ports: whose they are, and since when.

use std::net::TcpListener;

use stackd_core::port::PortMapping;
use stackd_core::{Protocol, StackId};

use super::Subject;
use crate::{build, within};

fn mapping(protocol: Protocol, node_port: u16) -> PortMapping {
    PortMapping { container_port: 80, protocol, node_port }
}

/// A claimed port is not to be had by another stack, from the claim on; TCP and UDP are apart
/// where the runtime has them so.
pub async fn a_claimed_port_is_refused_to_others(subject: &Subject) {
    let (one, two) = (build::stack_id(), build::stack_id());
    let spec = subject.spec().build();
    let port = subject.claim(one, &spec)[0].node_port;
    let tcp = mapping(Protocol::Tcp, port);
    let taken = subject.runtime.claim_ports(two, &[tcp]).expect_err("it is taken");
    assert_eq!(taken.0, vec![(Protocol::Tcp, port)]);
    assert_eq!(subject.runtime.claim_ports(one, &[tcp]), Ok(()), "a claim may come twice");
    let udp = subject.runtime.claim_ports(two, &[mapping(Protocol::Udp, port)]);
    assert_eq!(udp.is_ok(), subject.runtime.capabilities().protocols_apart, "{udp:?}");
    subject.runtime.unclaim_ports(one);
    subject.runtime.unclaim_ports(two);
}

/// When one port of a claim is taken, the others stay free.
pub async fn a_claim_takes_all_or_nothing(subject: &Subject) {
    let (one, two, three) = (build::stack_id(), build::stack_id(), build::stack_id());
    let spec = subject.spec().build();
    let taken = subject.claim(one, &spec)[0].node_port;
    let free = subject.claim(two, &spec)[0].node_port;
    subject.runtime.unclaim_ports(two);
    let both = [mapping(Protocol::Tcp, free), mapping(Protocol::Tcp, taken)];
    let refused = subject.runtime.claim_ports(two, &both).expect_err("one is taken");
    assert_eq!(refused.0, vec![(Protocol::Tcp, taken)]);
    free_again(subject, three, &both[..1]).await;
    subject.runtime.unclaim_ports(one);
    subject.runtime.unclaim_ports(three);
}

/// Claims ports that must be free. A process that is just being started has a copy of every socket
/// until its program runs, so a port may be held for a moment longer than it is claimed.
async fn free_again(subject: &Subject, id: StackId, ports: &[PortMapping]) {
    within("the ports are free again", async {
        while subject.runtime.claim_ports(id, ports).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Ports come back by `unclaim_ports` before a start, and by `remove` after it; twice is once.
pub async fn a_claim_is_given_back(subject: &Subject) {
    let (one, two) = (build::stack_id(), build::stack_id());
    let spec = subject.spec().build();
    let ports = subject.claim(one, &spec);
    subject.runtime.unclaim_ports(one);
    subject.runtime.unclaim_ports(one);
    free_again(subject, two, &ports).await;
    subject.remove(two).await;
    free_again(subject, one, &ports).await;
    subject.runtime.unclaim_ports(one);
}

/// A port that somebody else on this machine listens on is named.
pub async fn a_port_that_another_process_holds_is_told(subject: &Subject) {
    let Some(real) = subject.real.as_ref().filter(|_| subject.is_of_one_machine()) else { return };
    let some_port = || subject.some_port();
    let listener = (0..50).find_map(|_| TcpListener::bind((real.address, some_port())).ok());
    let listener = listener.expect("a port to listen on");
    let port = listener.local_addr().expect("its address").port();
    let id = build::stack_id();
    let taken = subject.runtime.claim_ports(id, &[mapping(Protocol::Tcp, port)]);
    assert_eq!(taken.expect_err("it is held").0, vec![(Protocol::Tcp, port)]);
}
