//! From a start to nothing.

use std::time::Duration;

use stackd_core::runtime::{ErrorKind, RuntimeState};

use super::{Subject, Watch, assert_kind};
use crate::{build, within};

/// `ensure` starts a stack, and it becomes ready.
pub async fn a_stack_starts_and_becomes_ready(subject: &Subject) {
    let mut watch = Watch::of(subject).await;
    let (id, _) = subject.begin(subject.spec().build()).await;
    let stack = watch.ready(id).await;
    assert_eq!((stack.generation, stack.restarts), (1, 0));
    assert!(stack.placement.is_some());
    if subject.is_of_one_machine() {
        assert_eq!(stack.placement, subject.runtime.placement());
    }
    subject.remove(id).await;
}

/// A second request for what runs changes nothing.
pub async fn a_start_asked_for_twice_is_one(subject: &Subject) {
    let (id, ports) = subject.running(subject.spec().build()).await;
    let again = build::ensure(id, subject.spec().build(), ports, &subject.class());
    within("a second request", subject.runtime.ensure(again)).await.expect("success");
    let stack = &subject.inventory().await[&id];
    assert!(matches!(stack.state, RuntimeState::Running { .. }), "{stack:?}");
    assert_eq!(stack.restarts, 0);
    subject.remove(id).await;
}

/// Requests for one stack that overlap start it once.
pub async fn starts_asked_for_at_once_are_one(subject: &Subject) {
    let mut watch = Watch::of(subject).await;
    let id = build::stack_id();
    let spec = subject.spec().build();
    let ports = subject.claim(id, &spec);
    let request = build::ensure(id, spec, ports, &subject.class());
    let all = (0..4).map(|_| subject.runtime.ensure(request.clone()));
    for result in within("all are answered", futures_util::future::join_all(all)).await {
        result.expect("success");
    }
    watch.ready(id).await;
    assert_eq!(subject.inventory().await.len(), 1);
    subject.remove(id).await;
}

/// A stack runs once: a late request finds it ended and leaves it so.
pub async fn what_has_ended_is_not_started_again(subject: &Subject) {
    let (id, ports) = subject.running(subject.spec().build()).await;
    subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
    let late = build::ensure(id, subject.spec().build(), ports, &subject.class());
    // Whether it counts as done or as refused is the driver's choice.
    let _ = within("a late request", subject.runtime.ensure(late)).await;
    let stack = &subject.inventory().await[&id];
    assert!(matches!(stack.state, RuntimeState::Ended { .. }), "{stack:?}");
    subject.remove(id).await;
}

/// A request that is older than what runs is refused and changes nothing.
pub async fn an_older_generation_is_refused(subject: &Subject) {
    let id = build::stack_id();
    let spec = subject.spec().build();
    let ports = subject.claim(id, &spec);
    let mut request = build::ensure(id, spec, ports, &subject.class());
    request.generation = 5;
    subject.runtime.ensure(request.clone()).await.expect("it starts");
    request.generation = 4;
    assert_kind(subject.runtime.ensure(request).await, ErrorKind::Rejected, "generation 4 after 5");
    assert_eq!(subject.inventory().await[&id].generation, 5);
    subject.remove(id).await;
}

/// A request of an engine that was replaced is refused, for new stacks too.
pub async fn an_older_epoch_is_refused(subject: &Subject) {
    let spec = subject.spec().build();
    let (first, second) = (build::stack_id(), build::stack_id());
    let ports = subject.claim(first, &spec);
    let mut request = build::ensure(first, spec.clone(), ports, &subject.class());
    request.epoch = 9;
    subject.runtime.ensure(request).await.expect("it starts");
    let ports = subject.claim(second, &spec);
    let mut request = build::ensure(second, spec, ports, &subject.class());
    request.epoch = 8;
    assert_kind(subject.runtime.ensure(request).await, ErrorKind::Rejected, "epoch 8 after 9");
    let inventory = subject.inventory().await;
    assert!(inventory.contains_key(&first) && !inventory.contains_key(&second), "{inventory:?}");
    subject.runtime.unclaim_ports(second);
    subject.remove(first).await;
}

/// A class that is not in the capabilities is never replaced by another.
pub async fn an_unknown_runtime_class_is_refused(subject: &Subject) {
    let id = build::stack_id();
    let request = build::ensure(id, subject.spec().build(), Vec::new(), "no-such-class");
    assert_kind(subject.runtime.ensure(request).await, ErrorKind::Rejected, "an unknown class");
    assert!(subject.inventory().await.is_empty());
}

/// `stop` ends the containers and gives back the ports; the stack and its logs can be looked at.
pub async fn stop_gives_back_and_keeps_the_logs(subject: &Subject) {
    let mut watch = Watch::of(subject).await;
    let (id, ports) = subject.running(subject.spec().build()).await;
    within("a stop", subject.runtime.stop(id, Duration::ZERO)).await.expect("stopped");
    let stack = watch.ended(id).await;
    assert!(matches!(stack.state, RuntimeState::Ended { .. }), "{stack:?}");
    let other = build::stack_id();
    assert_eq!(subject.runtime.claim_ports(other, &ports), Ok(()), "ports are free after a stop");
    subject.runtime.unclaim_ports(other);
    assert!(!subject.log_texts(id, None).await.is_empty(), "logs are kept");
    subject.remove(id).await;
}

/// Every ending call is success when there is nothing (more) to end.
pub async fn stop_and_remove_may_come_twice_and_late(subject: &Subject) {
    let nobody = build::stack_id();
    subject.runtime.stop(nobody, Duration::ZERO).await.expect("an unknown stack is stopped");
    subject.runtime.remove(nobody, Duration::ZERO).await.expect("an unknown stack is removed");
    let (id, _) = subject.running(subject.spec().build()).await;
    for _ in 0..2 {
        subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
    }
    let both = [0, 1].map(|_| subject.runtime.remove(id, Duration::ZERO));
    for result in within("both are answered", futures_util::future::join_all(both)).await {
        result.expect("removed");
    }
    subject.runtime.remove(id, Duration::ZERO).await.expect("removed long ago");
    subject.runtime.stop(id, Duration::ZERO).await.expect("removed long ago");
    assert!(subject.inventory().await.is_empty());
}

/// A removal does not wait for a start, and the start does not come back after it.
pub async fn remove_gives_up_a_start_under_way(subject: &Subject) {
    for _ in 0..5 {
        let id = build::stack_id();
        let spec = subject.spec().build();
        let ports = subject.claim(id, &spec);
        let request = build::ensure(id, spec, ports.clone(), &subject.class());
        // Polled in this order: the start has begun when the removal is asked for.
        let both = futures_util::future::join(subject.runtime.ensure(request), subject.remove(id));
        let _ = within("both are answered", both).await;
        subject.remove(id).await;
        assert!(subject.inventory().await.is_empty(), "it came back");
        let other = build::stack_id();
        assert_eq!(subject.runtime.claim_ports(other, &ports), Ok(()), "its ports are free");
        subject.runtime.unclaim_ports(other);
    }
}

/// After `remove`, the stack is unknown and its ports are free.
pub async fn remove_leaves_nothing(subject: &Subject) {
    let (id, ports) = subject.running(subject.spec().build()).await;
    subject.remove(id).await;
    assert!(subject.inventory().await.is_empty());
    let other = build::stack_id();
    assert_eq!(subject.runtime.claim_ports(other, &ports), Ok(()));
    subject.runtime.unclaim_ports(other);
    assert!(subject.runtime.usage(id).await.is_err());
}

/// Stacks that come and go at once do not get in each other's way.
pub async fn many_stacks_come_and_go(subject: &Subject) {
    let all = (0..12).map(|n| async move {
        let (id, _) = subject.running(subject.spec().build()).await;
        if n % 3 == 0 {
            subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
        }
        id
    });
    let ids = within("all run", futures_util::future::join_all(all)).await;
    assert_eq!(subject.inventory().await.len(), ids.len());
    let removals = ids.into_iter().map(|id| subject.remove(id));
    futures_util::future::join_all(removals).await;
    assert!(subject.inventory().await.is_empty());
}
