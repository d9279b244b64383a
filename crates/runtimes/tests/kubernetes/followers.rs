//! Several servers watch the same stacks, and one of them leads.

use std::time::Duration;

use futures_util::StreamExt;
use stackd_core::runtime::{Observation, Outcome, Runtime, RuntimeState};
use stackd_core::stack::reason;
use stackd_runtimes::kubernetes::KubernetesRuntime;
use stackd_testkit::{build, within};

use crate::answers::{Front, runtime};
use crate::support::{Bed, IMAGE, Stack, is_ready};

/// Waits until a server knows of the node ports that another has taken for a stack.
async fn knows(runtime: &KubernetesRuntime, stack: &Stack) {
    let told = async {
        while !holds(runtime, stack) {
            tokio::task::yield_now().await;
        }
    };
    within("it is told", told).await;
}

fn holds(runtime: &KubernetesRuntime, stack: &Stack) -> bool {
    let nobody = build::stack_id();
    let free = runtime.claim_ports(nobody, &stack.request.ports).is_ok();
    runtime.unclaim_ports(nobody);
    !free
}

/// Who begins to lead asks what there is, and does not trust what it has heard: what it has missed
/// would be taken for lost.
pub(crate) async fn one_that_was_deaf_leads(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let (leader, follower) = (bed.open().await, runtime(&bed, &front, &directory).await);
    let first = Stack::running(&leader).await;
    knows(&follower, &first).await;
    front.silence();
    let missed = Stack::running(&leader).await;
    assert!(!holds(&follower, &missed), "it has missed it");
    let (first, missed) = (first.request.id, missed.request.id);
    drop(leader);
    let mut observations = follower.observe();
    let mut seen = Vec::new();
    let inventory = async {
        loop {
            match observations.next().await.expect("observations") {
                Observation::Stack(stack) => seen.push((stack.id, is_alive(&stack.state))),
                Observation::Synced => return,
                Observation::Gone(id) => panic!("{id} is gone"),
            }
        }
    };
    within("an inventory", inventory).await;
    for id in [first, missed] {
        assert!(seen.contains(&(id, true)), "{id}: {seen:?}");
        follower.remove(id, Duration::ZERO).await.expect("removed");
    }
}

fn is_alive(state: &RuntimeState) -> bool {
    matches!(state, RuntimeState::Running { .. })
}

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
