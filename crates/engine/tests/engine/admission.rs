//! Who gets in, and whose turn it is.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use stackd_core::Clock as _;
use stackd_core::admission::Quota;
use stackd_core::runtime::ErrorKind;
use stackd_core::stack::{Condition, reason};
use stackd_core::{Phase, Protocol, RuntimeError};
use stackd_engine::{CreateError, EngineConfig, IdempotencyKey, WaitFor};
use stackd_runtimes::simulated::SimulatedConfig;
use stackd_testkit::build::spec;
use stackd_testkit::engine::{Setup, create_command};
use stackd_testkit::{PATIENCE, TestEngine, within};

async fn with(engine: EngineConfig) -> TestEngine {
    TestEngine::with(Setup { engine, ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_live_stack_an_owner_and_slot_under_any_race() {
    let test = TestEngine::start().await;
    let creates = (0..100).map(|_| {
        let mut command = create_command("team-1", spec("app").build());
        command.slot = Some("web100".to_owned());
        let engine = test.engine.clone();
        tokio::spawn(async move { engine.create(command).await })
    });
    let mut made = HashSet::new();
    let mut refused = HashSet::new();
    for result in join_all(creates).await {
        match result.unwrap() {
            Ok(created) => assert!(made.insert(created.stack.stack.id)),
            Err(CreateError::OwnerTaken(live)) => {
                refused.insert(live.stack.id);
            }
            // The winner's row is durable a moment before readers see it.
            Err(CreateError::Saturated(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(made.len(), 1);
    assert!(refused.is_subset(&made));
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_under_a_race_and_comes_back() {
    let quota = Quota { stacks: Some(3), ..Quota::default() };
    let test = with(EngineConfig { quota, ..EngineConfig::default() }).await;
    let creates = (0..20).map(|_| test.engine.create(create_command("a", spec("app").build())));
    let results = join_all(creates).await;
    let made: Vec<_> = results.iter().flatten().collect();
    assert_eq!(made.len(), 3);
    let texts = results.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string);
    for text in texts {
        assert_eq!(text, "exceeded quota: requested stacks 1, used 3, limited to 3");
    }
    let id = made[0].stack.stack.id;
    test.engine.delete(id).await.unwrap();
    test.removed(id).await;
    // The room is there when the row is gone, a moment after the runtime has let go.
    stackd_testkit::within("the quota comes back", async {
        while test.engine.create(create_command("a", spec("app").build())).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    test.finish().await;
}

#[tokio::test]
async fn node_ports_run_out_and_foreign_ones_are_skipped() {
    let test = with(EngineConfig { node_ports: 31001..=31003, ..EngineConfig::default() }).await;
    test.runtime.hold_ports([(Protocol::Tcp, 31002)]);
    let a = test.create(spec("app").build()).await;
    let b = test.create(spec("app").build()).await;
    let mut ports = vec![a.stack.ports[0].node_port, b.stack.ports[0].node_port];
    ports.sort_unstable();
    assert_eq!(ports, [31001, 31003]);
    let refused = test.engine.create(create_command("a", spec("app").build())).await;
    assert!(matches!(refused, Err(CreateError::NoNodePort)));
    assert_eq!(test.engine.stats().active_stacks, 2);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_gives_the_same_stack_for_a_day() {
    let test = TestEngine::start().await;
    let command = |body: u8| {
        let mut command = create_command("a", spec("app").build());
        command.idempotency =
            Some(IdempotencyKey { scope: "key".into(), key: "k1".into(), body_hash: [body; 32] });
        command
    };
    let results = join_all((0..30).map(|_| test.engine.create(command(1)))).await;
    let ids: HashSet<_> = results.iter().map(|r| r.as_ref().unwrap().stack.stack.id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(results.iter().filter(|r| !r.as_ref().unwrap().replayed).count(), 1);
    let other = test.engine.create(command(2)).await;
    assert!(matches!(other, Err(CreateError::IdempotencyMismatch)));

    let test = test.restart(true).await;
    let again = test.engine.create(command(1)).await.unwrap();
    assert!(again.replayed && ids.contains(&again.stack.stack.id));

    let id = again.stack.stack.id;
    test.engine.delete(id).await.unwrap();
    let gone = test.engine.create(command(1)).await;
    assert!(matches!(gone, Err(CreateError::IdempotencyGone)));
    test.clock.advance(Duration::from_secs(24 * 3600));
    let anew = test.engine.create(command(2)).await.unwrap();
    assert!(!anew.replayed);
    test.finish().await;
}

#[tokio::test]
async fn who_waits_for_a_start_slot_sees_its_place() {
    let runtime = SimulatedConfig {
        concurrent_starts: 1,
        start_delay: Duration::from_secs(3600),
        ..SimulatedConfig::instant()
    };
    let engine = EngineConfig { max_waiting_starts: 2, ..EngineConfig::default() };
    let test = TestEngine::with(Setup { engine, runtime: Some(runtime), ..Setup::default() }).await;
    let first = test.create(spec("app").build()).await.stack.id;
    stackd_testkit::within("the first one starts", async {
        while test.runtime.ensure_calls() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut waiting = Vec::new();
    for place in 1..=2 {
        let id = test.create(spec("app").build()).await.stack.id;
        stackd_testkit::within("it is in the queue", async {
            while test.engine.queue_place(id) != Some((place, place)) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let live = test.engine.get(id).unwrap();
        assert_eq!(crate::life::reason_of(&live), Some(reason::QUEUED));
        waiting.push(id);
    }
    let refused = test.engine.create(create_command("a", spec("app").build())).await;
    assert!(matches!(refused, Err(CreateError::Saturated(_))));
    // A start under way is given up when its stack is deleted, and the next one's turn comes.
    test.engine.delete(first).await.unwrap();
    stackd_testkit::within("the second one starts", async {
        while test.runtime.ensure_calls() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(test.engine.queue_place(waiting[0]), None);
    assert_eq!(test.engine.queue_place(waiting[1]), Some((1, 1)));
    test.finish().await;
}

#[tokio::test]
async fn a_lifetime_out_of_bounds_and_an_unknown_class_are_refused() {
    let test = TestEngine::start().await;
    let mut command = create_command("a", spec("app").build());
    command.ttl = Some(Duration::ZERO);
    assert!(matches!(test.engine.create(command).await, Err(CreateError::Ttl { .. })));
    let mut command = create_command("a", spec("app").build());
    command.runtime_class = Some("gvisor".to_owned());
    assert!(matches!(test.engine.create(command).await, Err(CreateError::RuntimeClass(_))));
    assert_eq!(test.engine.stats(), Default::default());
    let id = test.create(spec("app").build()).await.stack.id;
    assert!(test.engine.wait(id, WaitFor::Running, PATIENCE).await.is_some());
    test.finish().await;
}

/// An engine over a runtime that finds a machine only when a start is asked for.
async fn with_late_placement() -> TestEngine {
    let runtime = SimulatedConfig { late_placement: true, ..SimulatedConfig::instant() };
    TestEngine::with(Setup { runtime: Some(runtime), ..Setup::default() }).await
}

fn refusal(kind: ErrorKind, reason: &str, message: &str) -> RuntimeError {
    RuntimeError::new(kind, Condition::new(reason, message), "for the log")
}

#[tokio::test]
async fn a_create_waits_for_the_name_of_the_machine() {
    let test = with_late_placement().await;
    let live = test.create(spec("app").build()).await;
    assert_eq!(live.stack.observed.node.as_deref(), Some("simulated"));
    test.finish().await;
}

#[tokio::test]
async fn what_the_runtime_refuses_in_time_is_refused_and_leaves_nothing() {
    let test = with_late_placement().await;
    let key = || IdempotencyKey { scope: "k".into(), key: "1".into(), body_hash: [7; 32] };
    let cases = [
        refusal(ErrorKind::Rejected, reason::START_ERROR, "maximum cpu usage per Pod is 1"),
        refusal(ErrorKind::Saturated, reason::EXCEEDED_QUOTA, "exceeded quota: q"),
        refusal(ErrorKind::Saturated, reason::RETRYING, "no room"),
    ];
    for error in cases {
        test.runtime.fail_next_with(error.clone());
        let mut command = create_command("a", spec("app").build());
        command.idempotency = Some(key());
        let refused = within("a refusal", test.engine.create(command)).await.unwrap_err();
        let text = error.condition.message;
        match (error.kind, error.condition.reason.as_str()) {
            (ErrorKind::Rejected, _) => {
                assert!(matches!(refused, CreateError::LimitRange(t) if t == text));
            }
            (_, reason::EXCEEDED_QUOTA) => {
                assert!(matches!(refused, CreateError::Quota(t) if t == text));
            }
            _ => assert!(matches!(refused, CreateError::Saturated(t) if t == "for the log")),
        }
        assert_eq!(test.engine.stats().total_stacks, 0);
        assert!(test.store.load().await.unwrap().stacks.is_empty());
    }
    // The key of a refused request is free.
    let mut command = create_command("a", spec("app").build());
    command.idempotency = Some(key());
    assert!(!test.engine.create(command).await.unwrap().replayed);
    test.finish().await;
}

#[tokio::test]
async fn a_port_that_the_runtime_finds_taken_is_exchanged() {
    let test = with_late_placement().await;
    let taken = || refusal(ErrorKind::Saturated, reason::NODE_PORT_TAKEN, "taken");
    test.runtime.fail_next_with(taken());
    let live = test.create(spec("app").build()).await;
    let id = live.stack.id;
    test.engine.wait(id, WaitFor::Running, PATIENCE).await.unwrap();
    (0..5).for_each(|_| test.runtime.fail_next_with(taken()));
    let refused = test.engine.create(create_command("a", spec("app").build())).await;
    assert!(matches!(refused, Err(CreateError::NoNodePort)), "{refused:?}");
    test.finish().await;
}

#[tokio::test]
async fn a_create_that_finds_taken_ports_is_answered_in_time() {
    let test = with_late_placement().await;
    let wait = EngineConfig::default().schedule_wait;
    // What was refused cannot be taken back for the moment, so that each try takes its time.
    test.runtime.set_removable(false);
    let taken = || refusal(ErrorKind::Saturated, reason::NODE_PORT_TAKEN, "taken");
    (0..5).for_each(|_| test.runtime.fail_next_with(taken()));
    let begun = test.clock.boot();
    let engine = test.engine.clone();
    let create = create_command("a", spec("app").build());
    let create = tokio::spawn(async move { engine.create(create).await });
    let tick = Duration::from_millis(20);
    within("an answer", async {
        while !create.is_finished() {
            test.clock.advance(tick);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let refused = create.await.unwrap();
    assert!(matches!(refused, Err(CreateError::NoNodePort)), "{refused:?}");
    let took = test.clock.boot().0 - begun.0;
    assert!(took <= wait * 2 + tick * 5, "{took:?}");
    test.runtime.set_removable(true);
    within("nothing is left of it", async {
        while !test.store.load().await.unwrap().stacks.is_empty() {
            test.clock.advance(Duration::from_secs(1));
        }
    })
    .await;
    test.finish().await;
}

#[tokio::test]
async fn what_finds_no_machine_in_time_is_refused_and_later_it_fails() {
    let test = with_late_placement().await;
    let wait = EngineConfig::default().schedule_wait;
    test.runtime.set_room(false);
    let engine = test.engine.clone();
    let create = create_command("a", spec("app").build());
    let create = tokio::spawn(async move { engine.create(create).await });
    let waits = || {
        test.engine.list(None, None, |live| {
            live.stack
                .observed
                .condition
                .as_ref()
                .is_some_and(|c| c.reason == reason::UNSCHEDULABLE)
        })
    };
    within("it waits for a machine", async {
        while waits().stacks.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    test.clock.advance(wait);
    let refused = within("an answer", create).await.unwrap();
    assert!(matches!(refused, Err(CreateError::Saturated(_))), "{refused:?}");
    assert_eq!(test.engine.stats().total_stacks, 0);

    // What was accepted before it was known to have no machine fails for that reason.
    test.runtime.set_reachable(false);
    let engine = test.engine.clone();
    let create = create_command("a", spec("app").build());
    let create = tokio::spawn(async move { engine.create(create).await });
    within("it is accepted", async {
        while test.engine.stats().total_stacks == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("an answer", async {
        while !create.is_finished() {
            test.clock.advance(wait);
            tokio::task::yield_now().await;
        }
    })
    .await;
    let id = create.await.unwrap().expect("accepted").stack.stack.id;
    test.runtime.set_reachable(true);
    within("it fails", async {
        while test.engine.get(id).unwrap().stack.observed.phase == Phase::Creating {
            test.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
    })
    .await;
    let observed = test.engine.get(id).unwrap().stack.observed.clone();
    assert_eq!(observed.phase, Phase::Failed);
    assert_eq!(observed.condition.unwrap().reason, reason::UNSCHEDULABLE);
    test.runtime.set_room(true);
    test.finish().await;
}
