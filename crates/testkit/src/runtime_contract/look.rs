//! What can be seen from outside.

use std::time::Duration;

use futures_util::StreamExt;
use stackd_core::runtime::{ErrorKind, ExecRequest, LogOptions, RuntimeState};

use super::{Subject, Watch, assert_kind, text_of};
use crate::{build, within};

/// The inventory comes whole before the mark, changes come after it.
pub async fn an_observer_gets_the_inventory_then_the_mark_then_changes(subject: &Subject) {
    let (first, _) = subject.running(subject.spec().build()).await;
    let (second, _) = subject.running(subject.spec().build()).await;
    subject.runtime.stop(second, Duration::ZERO).await.expect("stopped");
    let mut watch = Watch::of(subject).await;
    assert_eq!(watch.seen.len(), 2, "{:?}", watch.seen);
    assert!(matches!(watch.seen[&first].state, RuntimeState::Running { ready: true, .. }));
    assert!(matches!(watch.seen[&second].state, RuntimeState::Ended { .. }));
    let (third, _) = subject.begin(subject.spec().build()).await;
    watch.ready(third).await;
    for id in [first, second, third] {
        subject.remove(id).await;
    }
    assert!(subject.inventory().await.is_empty());
}

/// Observers do not take changes from each other.
pub async fn every_observer_sees_every_change(subject: &Subject) {
    let (mut one, mut two) = (Watch::of(subject).await, Watch::of(subject).await);
    let (id, _) = subject.begin(subject.spec().build()).await;
    one.ready(id).await;
    two.ready(id).await;
    subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
    one.ended(id).await;
    drop(one);
    two.ended(id).await;
    subject.remove(id).await;
}

/// Looking at what is not there is the caller's mistake, not the runtime's.
pub async fn calls_about_an_unknown_stack_are_refused(subject: &Subject) {
    let id = build::stack_id();
    let request =
        ExecRequest { container: None, command: vec!["true".into()], terminal: None, stdin: false };
    assert_kind(subject.runtime.exec(id, request).await, ErrorKind::Rejected, "exec");
    let logs = subject.runtime.logs(id, LogOptions::default()).await;
    assert!(logs.is_err_and(|error| error.is_absence()), "logs");
    assert_kind(subject.runtime.usage(id).await, ErrorKind::Rejected, "usage");
}

/// A container that the stack does not have is the caller's mistake.
pub async fn an_unknown_container_is_refused(subject: &Subject) {
    let (id, _) = subject.running(subject.spec().build()).await;
    let container = Some("nobody".to_owned());
    let options = LogOptions { container: container.clone(), ..LogOptions::default() };
    assert_kind(
        subject.runtime.logs(id, options).await.map(|_| ()),
        ErrorKind::Rejected,
        "logs of an unknown container",
    );
    let request =
        ExecRequest { container, command: vec!["x".into()], terminal: None, stdin: false };
    assert_kind(
        subject.runtime.exec(id, request).await,
        ErrorKind::Rejected,
        "a command in an unknown container",
    );
    subject.remove(id).await;
}

/// Lines come in order, the last `tail` of them where asked, also after the end.
pub async fn logs_tell_what_was_written(subject: &Subject) {
    let mut watch = Watch::of(subject).await;
    let spec = subject.spec().args(&["print", "20"]).build();
    let (id, _) = subject.begin(spec).await;
    if subject.real.is_none() {
        watch.ready(id).await;
        subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
    }
    watch.ended(id).await;
    let all = subject.log_texts(id, None).await;
    let last = subject.log_texts(id, Some(2)).await;
    assert_eq!(last, all[all.len() - 2..]);
    assert!(subject.log_texts(id, Some(0)).await.is_empty());
    if subject.real.is_some() {
        let expected: Vec<_> = (1..=20).map(|n| format!("line {n}")).collect();
        assert_eq!(all, expected);
    }
    subject.remove(id).await;
    assert!(subject.runtime.logs(id, LogOptions::default()).await.is_err(), "logs are removed");
}

/// Who follows gets what is there and what comes, until there can be no more.
pub async fn a_follower_of_logs_ends_with_the_stack(subject: &Subject) {
    let (id, _) = subject.running(subject.spec().build()).await;
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut follower = subject.runtime.logs(id, options).await.expect("logs");
    let first = within("a line comes", follower.next()).await;
    assert!(first.is_some_and(|line| line.is_ok()));
    subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
    let rest: Vec<_> = within("the follower ends", follower.collect()).await;
    assert!(rest.iter().all(Result::is_ok), "{rest:?}");
    let written = subject.log_texts(id, None).await;
    if let Some(Ok(line)) = rest.last() {
        assert_eq!(written.last(), Some(&text_of(line)), "nothing was missed at the end");
    }
    subject.remove(id).await;
}

/// What runs uses something.
pub async fn usage_tells_of_what_runs(subject: &Subject) {
    let (id, _) = subject.running(subject.spec().build()).await;
    let usage = within("usage", subject.runtime.usage(id)).await;
    if let (Err(error), false) = (&usage, subject.is_of_one_machine()) {
        // A cluster without a metrics API says that it has none.
        assert_eq!(
            (error.kind, error.condition.reason.as_str()),
            (ErrorKind::Rejected, "NoMetrics")
        );
        return subject.remove(id).await;
    }
    let usage = usage.expect("usage");
    assert!(usage.memory_bytes > 0 && usage.memory_bytes <= 64 << 20, "{usage:?}");
    assert!(usage.pids >= 1, "{usage:?}");
    subject.remove(id).await;
}
