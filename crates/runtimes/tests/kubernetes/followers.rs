//! Several servers watch the same stacks, and one of them leads.

use std::time::Duration;

use stackd_core::runtime::{Outcome, Runtime};
use stackd_core::stack::reason;
use stackd_runtimes::kubernetes::KubernetesRuntime;
use stackd_testkit::{build, within};

use crate::support::{Bed, IMAGE, Stack, is_ready};

/// What only the leader knows (that it stops a stack) no follower undoes; when the leader is gone,
/// the next one mends what was broken meanwhile.
pub(crate) async fn they_change_nothing(bed: Bed) {
    let (leader, follower) = (bed.open().await, bed.open().await);
    let changes = |mark| {
        let calls = bed.cluster.calls_since(mark).into_iter();
        let ours = calls.filter(|call| call.namespace == bed.namespace.name);
        let ours = ours.filter(|call| call.user == "admin");
        let changes = ours.filter(|call| !matches!(call.verb.as_str(), "list" | "watch" | "get"));
        let mut changes: Vec<_> =
            changes.map(|call| format!("{} {}", call.verb, call.resource)).collect();
        changes.sort();
        changes
    };
    let mut stays = Stack::running(&leader).await;
    let mut ends = Stack::running(&leader).await;
    let mark = bed.cluster.audit_mark();
    leader.stop(ends.id(), Duration::ZERO).await.expect("stopped");
    assert_eq!(ends.ended().await, (Outcome::Failed, reason::STOPPED.to_owned()));
    assert_eq!(changes(mark), ["delete services", "patch pods"]);
    ends.remove(&leader).await;
    drop(ends);

    // Nobody leads: a service is gone, and stays so. The next leader makes it again.
    let mut adopted = Stack::unobserved(&follower, build::spec(IMAGE).build());
    adopted.request = stays.request.clone();
    stays.until(is_ready).await;
    drop(stays);
    let mark = bed.cluster.audit_mark();
    bed.kubectl(&["delete", "service", &adopted.id().service_name()]);
    // Each has heard of the service's end when it knows of the node port that the other took later.
    let later = Stack::unobserved(&leader, build::spec(IMAGE).build());
    later.begin(&leader).await.expect("it is made");
    let latest = Stack::unobserved(&follower, build::spec(IMAGE).build());
    latest.begin(&follower).await.expect("it is made");
    let knows = async |runtime: &KubernetesRuntime, stack: &Stack| {
        let nobody = build::stack_id();
        within("it is told", async {
            while runtime.claim_ports(nobody, &stack.request.ports).is_ok() {
                runtime.unclaim_ports(nobody);
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    knows(&leader, &latest).await;
    knows(&follower, &later).await;
    let made = changes(mark);
    let services = made.iter().filter(|change| *change == "create services").count();
    assert_eq!(services, 2, "nobody has mended it: {made:?}");
    adopted.observe(&follower);
    adopted.until(|state| !is_ready(state)).await;
    adopted.until(is_ready).await;
    for stack in [&adopted, &later, &latest] {
        stack.remove(&follower).await;
    }
}
