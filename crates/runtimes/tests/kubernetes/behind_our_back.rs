//! What somebody else does to the objects of a stack.

use std::time::Duration;

use stackd_core::runtime::{Outcome, Runtime, RuntimeState};
use stackd_core::stack::reason;
use stackd_testkit::{build, within};
use tokio::net::TcpStream;

use crate::support::{Bed, IMAGE, Stack, is_ready};

pub(crate) async fn pod(bed: Bed) {
    let runtime = bed.open().await;
    let mut stack = Stack::running(&runtime).await;
    bed.kubectl(&["delete", "pod", &stack.id().to_string(), "--wait=false", "--grace-period=1"]);
    assert_eq!(stack.ended().await, (Outcome::Failed, reason::LOST.to_owned()));
    let services = bed.kubectl(&["get", "services", "--output=name"]);
    assert_eq!(services.trim(), "", "its node port is given back");
    stack.remove(&runtime).await;
}

pub(crate) async fn eviction(bed: Bed) {
    let runtime = bed.open().await;
    let mut stack = Stack::running(&runtime).await;
    let (id, namespace) = (stack.id(), &bed.namespace.name);
    let path = std::env::temp_dir().join(format!("eviction-{id}.yaml"));
    let eviction = format!(
        "{{\"apiVersion\": \"policy/v1\", \"kind\": \"Eviction\", \"metadata\": {{\"name\": \
         \"{id}\", \"namespace\": \"{namespace}\"}}}}"
    );
    std::fs::write(&path, eviction).expect("a file");
    let place = format!("/api/v1/namespaces/{namespace}/pods/{id}/eviction");
    bed.kubectl(&["create", "--raw", &place, "-f", path.to_str().expect("a path")]);
    let _ = std::fs::remove_file(path);
    assert_eq!(stack.ended().await, (Outcome::Failed, reason::EVICTED.to_owned()));
    stack.remove(&runtime).await;
}

/// A kubelet ends what has written more than it may, and the stack says why.
pub(crate) async fn a_full_disk(bed: Bed) {
    let runtime = bed.open().await;
    let fills = build::spec(IMAGE).disk(8 << 20).args(&["probe", "disk-filler", "/tmp", "hold"]);
    let mut stack = Stack::new(&runtime, fills.build());
    stack.begin(&runtime).await.expect("it starts");
    assert_eq!(stack.ended().await, (Outcome::Failed, reason::DISK_FULL.to_owned()));
    stack.remove(&runtime).await;
}

/// A service that was deleted is made again on its node port, and until that takes traffic again
/// the stack is not said to be ready.
pub(crate) async fn service(bed: Bed) {
    let runtime = bed.open().await;
    let mut stack = Stack::running(&runtime).await;
    bed.kubectl(&["delete", "service", &stack.id().service_name()]);
    stack.until(|state| matches!(state, RuntimeState::Running { ready: false, .. })).await;
    let placement = stack.until(is_ready).await.placement.expect("its node");
    let node = placement.public_ip.expect("its address");
    let port = stack.request.ports[0].node_port;
    within("an answer", TcpStream::connect((node.as_str(), port))).await.expect("a connection");
    stack.remove(&runtime).await;
}

/// The same while nobody looks: whoever looks next finds out its node ports, and makes it again.
pub(crate) async fn service_while_nobody_looks(bed: Bed) {
    let runtime = bed.open().await;
    let stack = Stack::running(&runtime).await;
    drop(runtime);
    bed.kubectl(&["delete", "service", &stack.id().service_name()]);
    let runtime = bed.open().await;
    let mut adopted = Stack::unobserved(&runtime, build::spec(IMAGE).build());
    runtime.unclaim_ports(adopted.id());
    adopted.request = stack.request.clone();
    adopted.observe(&runtime);
    let seen = adopted.until(|state| *state != RuntimeState::Starting { condition: None }).await;
    assert!(matches!(seen.state, RuntimeState::Running { ready: false, .. }), "{seen:?}");
    adopted.until(is_ready).await;
    adopted.remove(&runtime).await;
}

/// The policy owns the rest, so that all of a stack goes with it.
pub(crate) async fn policy(bed: Bed) {
    let runtime = bed.open().await;
    let mut stack = Stack::running(&runtime).await;
    bed.kubectl(&["delete", "networkpolicy", &stack.id().to_string()]);
    stack.until_gone().await;
    runtime.remove(stack.id(), Duration::ZERO).await.expect("nothing is left");
}

/// Without its policy a stack would run without its wall.
pub(crate) async fn policy_alone(bed: Bed) {
    let runtime = bed.open().await;
    let mut stack = Stack::running(&runtime).await;
    let id = stack.id().to_string();
    bed.kubectl(&["delete", "networkpolicy", &id, "--cascade=orphan"]);
    assert_eq!(stack.ended().await, (Outcome::Failed, reason::LOST.to_owned()));
    let services = bed.kubectl(&["get", "services", "--output=name"]);
    assert_eq!(services.trim(), "", "its node port is given back");
    let phase = bed.kubectl(&["get", "pod", &id, "--output=jsonpath={.status.phase}"]);
    assert_eq!(phase.trim(), "Failed", "it does not run any more");
    stack.remove(&runtime).await;
}
