//! From a create to nothing.

use std::time::Duration;

use futures_util::StreamExt as _;
use stackd_core::event::EventKind;
use stackd_core::runtime::{ErrorKind, ExecRequest, LogOptions};
use stackd_core::stack::reason;
use stackd_core::{Phase, StackId};
use stackd_engine::{DeleteError, LiveStack, WaitFor};
use stackd_runtimes::simulated::{End, SimulatedConfig};
use stackd_testkit::build::spec;
use stackd_testkit::engine::Setup;
use stackd_testkit::{PATIENCE, TestEngine};

pub(crate) fn reason_of(live: &LiveStack) -> Option<&str> {
    live.stack.observed.condition.as_ref().map(|c| c.reason.as_str())
}

#[tokio::test]
async fn a_stack_is_made_runs_and_leaves_nothing() {
    let test = TestEngine::start().await;
    let accepted = test.create(spec("app").build()).await;
    assert_eq!(accepted.stack.observed.phase, Phase::Creating);
    let id = accepted.stack.id;
    let running = test.engine.wait(id, WaitFor::Running, PATIENCE).await.unwrap();
    assert_eq!(running.stack.observed.phase, Phase::Running);
    assert_eq!(reason_of(&running), None);
    assert_eq!(running.stack.ports, accepted.stack.ports);
    let stats = test.engine.stats();
    assert_eq!((stats.total_stacks, stats.active_stacks, stats.used_node_ports), (1, 1, 1));
    assert_eq!(stats.reserved_cpu_milli, 100);
    assert_eq!(stats.node_distribution.get("simulated"), Some(&1));

    test.engine.delete(id).await.unwrap();
    assert!(test.engine.get(id).is_none());
    assert_eq!(test.engine.stats(), Default::default());
    assert_eq!(test.engine.delete(id).await, Err(DeleteError::NotFound));
    test.finish().await;
}

#[tokio::test]
async fn a_stack_that_ends_stays_to_be_looked_at_and_gives_everything_back() {
    let test = TestEngine::start().await;
    for (end, phase) in [
        (End::completed(), Phase::Stopped),
        (End::failed(3), Phase::Failed),
        (End::node_lost(), Phase::NodeDeleted),
    ] {
        let live = test.running(spec("app").build()).await;
        let id = live.stack.id;
        assert!(test.runtime.end(id, end));
        let ended = test.engine.wait(id, WaitFor::Ended, PATIENCE).await.unwrap();
        assert_eq!(ended.stack.observed.phase, phase);
        assert_eq!(ended.stack.ports, live.stack.ports, "they are shown still");
        let stats = test.engine.stats();
        assert_eq!((stats.total_stacks, stats.active_stacks, stats.used_node_ports), (1, 0, 0));
        assert_eq!(stats.reserved_memory_bytes, 0);
        assert!(stats.node_distribution.is_empty());
        test.engine.delete(id).await.unwrap();
    }
    test.finish().await;
}

#[tokio::test]
async fn a_start_that_is_refused_fails_the_stack_with_the_runtimes_reason() {
    let test = TestEngine::start().await;
    for kind in [ErrorKind::Rejected, ErrorKind::Failed] {
        test.runtime.fail_next(kind);
        let id = test.create(spec("app").build()).await.stack.id;
        let ended = test.engine.wait(id, WaitFor::Running, PATIENCE).await.unwrap();
        assert_eq!(ended.stack.observed.phase, Phase::Failed);
        assert_eq!(reason_of(&ended), Some(reason::START_ERROR));
    }
    assert_eq!(test.engine.stats().active_stacks, 0);
    assert!(test.runtime.claimed_ports().is_empty());
    test.finish().await;
}

#[tokio::test]
async fn a_start_that_may_be_tried_again_is() {
    let test = TestEngine::start().await;
    test.runtime.fail_next(ErrorKind::Retry);
    test.runtime.fail_next(ErrorKind::Saturated);
    let id = test.create(spec("app").build()).await.stack.id;
    let engine = test.engine.clone();
    let running = tokio::spawn(async move { engine.wait(id, WaitFor::Running, PATIENCE).await });
    while !running.is_finished() {
        test.clock.advance(std::time::Duration::from_millis(50));
        tokio::task::yield_now().await;
    }
    let live = running.await.unwrap().unwrap();
    assert_eq!(live.stack.observed.phase, Phase::Running);
    assert_eq!(test.runtime.ensure_calls(), 3);
    test.finish().await;
}

#[tokio::test]
async fn a_stack_that_vanishes_has_failed() {
    let test = TestEngine::start().await;
    let id = test.running(spec("app").build()).await.stack.id;
    assert!(test.runtime.vanish(id));
    let ended = test.engine.wait(id, WaitFor::Ended, PATIENCE).await.unwrap();
    assert_eq!(ended.stack.observed.phase, Phase::Failed);
    assert_eq!(reason_of(&ended), Some(reason::LOST));
    test.finish().await;
}

#[tokio::test]
async fn readiness_that_is_lost_shows_as_a_reason() {
    let test = TestEngine::start().await;
    let id = test.running(spec("app").build()).await.stack.id;
    let mut events = test.engine.events(None);
    assert!(test.runtime.set_ready(id, false));
    crate::events::until(&mut events, |e| e.reason.as_deref() == Some(reason::NOT_READY)).await;
    let live = test.engine.get(id).unwrap();
    assert_eq!(live.stack.observed.phase, Phase::Running);
    assert_eq!(reason_of(&live), Some(reason::NOT_READY));
    test.finish().await;
}

#[tokio::test]
async fn a_deleted_stack_is_not_brought_back_by_its_own_end() {
    let runtime =
        SimulatedConfig { remove_delay: Duration::from_millis(50), ..SimulatedConfig::instant() };
    let test = TestEngine::with(Setup { runtime: Some(runtime), ..Setup::default() }).await;
    let id = test.running(spec("app").build()).await.stack.id;
    let mut events = test.engine.events(None);
    test.engine.delete(id).await.unwrap();
    assert!(test.runtime.end(id, End::completed()));
    let told = crate::events::until(&mut events, |e| e.kind == EventKind::Removed).await;
    let words = told.iter().map(|(_, e)| e.kind.as_str());
    let words: Vec<_> = words.skip_while(|kind| *kind != "deleted").collect();
    assert_eq!(words, ["deleted", "removed"]);
    assert!(test.engine.get(id).is_none());
    test.finish().await;
}

#[tokio::test]
async fn what_happens_while_a_delete_is_written_is_no_news_after_it() {
    let test = TestEngine::start().await;
    let mut events = test.engine.events(None);
    for yields in 0..20 {
        let id = test.running(spec("app").build()).await.stack.id;
        crate::events::until(&mut events, |e| e.phase == Phase::Running).await;
        let meanwhile = async {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            test.runtime.end(id, End::failed(1))
        };
        let (deleted, _) = tokio::join!(test.engine.delete(id), meanwhile);
        deleted.unwrap();
        let told = crate::events::until(&mut events, |e| e.kind == EventKind::Removed).await;
        let words = told.iter().map(|(_, e)| e.kind.as_str());
        let words: Vec<_> = words.skip_while(|kind| *kind != "deleted").collect();
        assert_eq!(words, ["deleted", "removed"]);
    }
    test.finish().await;
}

#[tokio::test]
async fn a_stack_that_has_not_begun_has_written_nothing_and_runs_no_commands() {
    let runtime =
        SimulatedConfig { prepare_delay: Duration::from_secs(3600), ..SimulatedConfig::instant() };
    let test = TestEngine::with(Setup { runtime: Some(runtime), ..Setup::default() }).await;
    let id = test.create(spec("app").build()).await.stack.id;
    let lines = |follow| {
        let options = LogOptions { follow, ..LogOptions::default() };
        async { test.engine.logs(id, options).await.unwrap().collect::<Vec<_>>().await }
    };
    assert!(lines(false).await.is_empty());
    let command =
        ExecRequest { container: None, command: vec!["id".into()], terminal: None, stdin: false };
    let error = test.engine.exec(id, command).await.unwrap_err();
    assert_eq!(error.to_string(), "the stack is creating");
    assert_eq!(test.engine.usage(id).await.unwrap_err().to_string(), "the stack is creating");
    let (followed, deleted) = tokio::join!(lines(true), test.engine.delete(id));
    assert!(followed.is_empty() && deleted.is_ok());
    test.finish().await;
}

#[tokio::test]
async fn the_log_of_a_refused_stack_is_empty_and_a_follower_waits_for_the_first_line() {
    let test = TestEngine::start().await;
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    test.runtime.fail_next(ErrorKind::Rejected);
    let id = test.create(spec("app").build()).await.stack.id;
    test.engine.wait(id, WaitFor::Ended, PATIENCE).await.unwrap();
    let lines = test.engine.logs(id, follow.clone()).await.unwrap().collect::<Vec<_>>().await;
    assert!(lines.is_empty(), "{lines:?}");
    let id = test.create(spec("app").build()).await.stack.id;
    let mut lines = test.engine.logs(id, follow).await.unwrap();
    let first = stackd_testkit::within("a line comes", lines.next()).await;
    assert!(first.is_some_and(|line| line.is_ok()));
    test.finish().await;
}

#[tokio::test]
async fn simultaneous_deletes_of_one_stack_succeed_once() {
    let test = TestEngine::start().await;
    let id = test.running(spec("app").build()).await.stack.id;
    let deletes = (0..20).map(|_| {
        let engine = test.engine.clone();
        tokio::spawn(async move { engine.delete(id).await })
    });
    let mut succeeded = 0;
    for delete in deletes.collect::<Vec<_>>() {
        match delete.await.unwrap() {
            Ok(()) => succeeded += 1,
            Err(error) => assert_eq!(error, DeleteError::NotFound),
        }
    }
    assert_eq!(succeeded, 1);
    test.finish().await;
}

#[tokio::test]
async fn an_unknown_stack_is_nowhere() {
    let test = TestEngine::start().await;
    let id = StackId::from_bits(7);
    assert!(test.engine.get(id).is_none());
    assert!(test.engine.wait(id, WaitFor::Running, PATIENCE).await.is_none());
    assert_eq!(test.engine.delete(id).await, Err(DeleteError::NotFound));
    assert!(test.engine.events_of(id).await.is_err());
    test.finish().await;
}
