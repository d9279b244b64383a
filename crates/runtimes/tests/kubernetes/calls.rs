//! What is asked of the API server, counted in its own log, and what a restart finds.

use std::time::Duration;

use stackd_core::runtime::{Runtime, RuntimeState};
use stackd_testkit::build;

use crate::support::{Bed, IMAGE, Stack, is_ready};

pub(crate) async fn three_to_make_one_to_remove(bed: Bed) {
    let runtime = bed.open().await;
    let mut first = Stack::running(&runtime).await;
    let mark = bed.cluster.audit_mark();
    let stack = Stack::running(&runtime).await;
    // Twice is once, and asking costs nothing.
    stack.begin(&runtime).await.expect("it is there");
    first.until(is_ready).await;
    let made = calls(&bed, mark);
    assert_eq!(made, ["create networkpolicies", "create pods", "create services"]);
    let mark = bed.cluster.audit_mark();
    let grace = Duration::from_secs(30);
    runtime.remove(stack.id(), grace).await.expect("removed");
    assert_eq!(calls(&bed, mark), ["delete networkpolicies"]);
    first.remove(&runtime).await;
}

/// What was asked in the namespace, watches apart, sorted.
fn calls(bed: &Bed, mark: stackd_testkit::kubernetes::AuditMark) -> Vec<String> {
    let calls = bed.cluster.calls_since(mark);
    let ours = calls.iter().filter(|call| call.namespace == bed.namespace.name);
    let ours = ours.filter(|call| call.verb != "watch" && call.user == "admin");
    let mut ours: Vec<_> = ours.map(|call| format!("{} {}", call.verb, call.resource)).collect();
    ours.sort();
    ours
}

/// A crash between two calls leaves a policy alone: the next request makes the rest.
pub(crate) async fn what_is_half_made_is_finished(bed: Bed) {
    let runtime = bed.open().await;
    let mut stack = Stack::new(&runtime, build::spec(IMAGE).build());
    let id = stack.id();
    bed.cluster.apply(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {id}\n  \
         namespace: {}\n  labels:\n    app.kubernetes.io/managed-by: stackd\n    \
         app.kubernetes.io/part-of: stackd\n    app.kubernetes.io/instance: {id}\n  \
         annotations: {{stackd.dev/generation: '1', stackd.dev/epoch: '1'}}\nspec:\n  \
         podSelector: {{matchLabels: {{app.kubernetes.io/instance: {id}}}}}\n  \
         ingress: [{{ports: [{{port: 80}}]}}]\n",
        bed.namespace.name
    ));
    stack.until(|state| *state == RuntimeState::Incomplete).await;
    stack.begin(&runtime).await.expect("it is finished");
    stack.until(is_ready).await;
    stack.remove(&runtime).await;
}

/// Stacks go on without their server, and the next one knows them.
pub(crate) async fn another_takes_over(bed: Bed) {
    let before = bed.open().await;
    let stack = Stack::running(&before).await;
    drop(before);
    let after = bed.open().await;
    let mut adopted = Stack::new(&after, build::spec(IMAGE).build());
    adopted.request = stack.request.clone();
    let seen = adopted.until(is_ready).await;
    assert_eq!((seen.generation, seen.placement.is_some()), (1, true));
    adopted.begin(&after).await.expect("it is there");
    let other = build::stack_id();
    let taken = after.claim_ports(other, &stack.request.ports).expect_err("its ports are its own");
    assert_eq!(taken.0, [stack.request.ports[0].node()]);
    adopted.remove(&after).await;
    after.claim_ports(other, &stack.request.ports).expect("they are free");
}
