//! The engine, the runtime or the database goes away and comes back.

use std::time::Duration;

use stackd_core::event::{EventKind, Seq};
use stackd_core::stack::reason;
use stackd_core::{Phase, Runtime as _};
use stackd_engine::{CreateError, DeleteError, WaitFor};
use stackd_runtimes::simulated::End;
use stackd_store::StoreConfig;
use stackd_testkit::build::spec;
use stackd_testkit::engine::{Setup, create_command};
use stackd_testkit::postgres::Postgres;
use stackd_testkit::{PATIENCE, TestEngine, within};

#[tokio::test]
async fn stacks_are_adopted_as_they_are() {
    let test = TestEngine::start().await;
    let running = test.running(spec("app").build()).await;
    let ended = test.running(spec("app").build()).await;
    assert!(test.runtime.end(ended.stack.id, End::completed()));
    test.engine.wait(ended.stack.id, WaitFor::Ended, PATIENCE).await.unwrap();
    let starts = test.runtime.ensure_calls();

    let test = test.restart(true).await;
    let adopted = test.engine.get(running.stack.id).unwrap();
    assert_eq!(adopted.stack.spec, running.stack.spec);
    assert_eq!(adopted.stack.ports, running.stack.ports);
    assert_eq!(adopted.stack.expires_at, running.stack.expires_at);
    let kept = test.engine.get(ended.stack.id).unwrap();
    assert_eq!(kept.stack.observed.phase, Phase::Stopped);
    within("the inventory is complete", async {
        while !test.engine.health().runtime_synced {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(test.runtime.ensure_calls(), starts, "nothing was started again");
    let other = test.running(spec("app").build()).await;
    assert_ne!(other.stack.ports, running.stack.ports);
    test.finish().await;
}

#[tokio::test]
async fn what_ran_and_is_not_there_any_more_has_failed() {
    let test = TestEngine::start().await;
    let id = test.running(spec("app").build()).await.stack.id;
    let test = test.restart(false).await;
    let live = test.engine.wait(id, WaitFor::Ended, PATIENCE).await.unwrap();
    assert_eq!(live.stack.observed.phase, Phase::Failed);
    assert_eq!(crate::life::reason_of(&live), Some(reason::LOST));
    test.finish().await;
}

#[tokio::test]
async fn what_was_never_started_is_started() {
    let test = TestEngine::start().await;
    test.runtime.set_reachable(false);
    let id = test.create(spec("app").build()).await.stack.id;
    let test = test.restart(false).await;
    test.runtime.set_reachable(true);
    let engine = test.engine.clone();
    let running = tokio::spawn(async move { engine.wait(id, WaitFor::Running, PATIENCE).await });
    while !running.is_finished() {
        test.clock.advance(Duration::from_millis(50));
        tokio::task::yield_now().await;
    }
    assert_eq!(running.await.unwrap().unwrap().stack.observed.phase, Phase::Running);
    test.finish().await;
}

#[tokio::test]
async fn what_nobody_knows_is_removed() {
    let mut test = TestEngine::start().await;
    let id = test.running(spec("app").build()).await.stack.id;
    let orphan = stackd_testkit::build::stack_id();
    let spec = spec("app").no_ports().build();
    let request = stackd_testkit::build::ensure(orphan, spec, Vec::new(), "default");
    let runtime = test.runtime.restarted(true);
    runtime.ensure(request).await.unwrap();
    test.runtime = runtime.handle();
    let test = test.restart(true).await;
    test.removed(orphan).await;
    assert!(test.runtime.get(id).is_some());
    test.finish().await;
}

#[tokio::test]
async fn what_nobody_knows_and_cannot_be_removed_yet_is_tried_again() {
    let mut test = TestEngine::start().await;
    let orphan = stackd_testkit::build::stack_id();
    let spec = spec("app").no_ports().build();
    let request = stackd_testkit::build::ensure(orphan, spec, Vec::new(), "default");
    let runtime = test.runtime.restarted(true);
    runtime.ensure(request).await.unwrap();
    test.runtime = runtime.handle();
    test.runtime.set_removable(false);
    let test = test.restart(true).await;
    within("the inventory is complete", async {
        while !test.engine.health().runtime_synced {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = test.runtime.refused_removals();
    within("it is asked for again", async {
        while test.runtime.refused_removals() < refused + 2 {
            test.clock.advance(Duration::from_millis(50));
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The runtime does not report it again.
    test.runtime.set_removable(true);
    within("it is removed", async {
        while test.runtime.get(orphan).is_some() {
            test.clock.advance(Duration::from_millis(50));
            tokio::task::yield_now().await;
        }
    })
    .await;
    test.finish().await;
}

#[tokio::test]
async fn a_lost_connection_is_no_lost_stack_but_what_went_meanwhile_is() {
    let test = TestEngine::start().await;
    let stays = test.running(spec("app").build()).await.stack.id;
    let goes = test.running(spec("app").build()).await.stack.id;
    assert!(test.runtime.forget(goes));
    test.runtime.lose_connection();
    let engine = test.engine.clone();
    let ended = tokio::spawn(async move { engine.wait(goes, WaitFor::Ended, PATIENCE).await });
    while !ended.is_finished() {
        test.clock.advance(Duration::from_millis(50));
        tokio::task::yield_now().await;
    }
    assert_eq!(crate::life::reason_of(&ended.await.unwrap().unwrap()), Some(reason::LOST));
    assert_eq!(test.engine.get(stays).unwrap().stack.observed.phase, Phase::Running);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_are_kept_while_the_database_is_away_and_written_when_it_is_back() {
    let cluster = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let database = StoreConfig::Postgres { url: cluster.database() };
    let test = TestEngine::with(Setup { database: Some(database), ..Setup::default() }).await;
    let mut command = create_command("test", spec("app").build());
    command.ttl = Some(Duration::from_secs(60));
    let expires = test.engine.create(command).await.unwrap().stack.stack.id;
    let stays = test.running(spec("app").build()).await.stack.id;
    test.engine.wait(expires, WaitFor::Running, PATIENCE).await.unwrap();

    tokio::task::block_in_place(|| cluster.stop());
    let refused = test.engine.create(create_command("test", spec("app").build())).await;
    assert!(matches!(refused, Err(CreateError::Unavailable(_))), "{refused:?}");
    let refused = test.engine.delete(stays).await;
    assert!(matches!(refused, Err(DeleteError::Unavailable(_))), "{refused:?}");
    assert!(test.engine.get(stays).is_some(), "reads go on, and nothing was lost");
    assert!(test.engine.health().store.is_err());
    test.clock.advance(Duration::from_secs(60));
    test.removed(expires).await;
    assert!(test.engine.get(expires).is_none());

    tokio::task::block_in_place(|| cluster.start_again());
    within("writes go on", async {
        while test.engine.delete(stays).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut events = test.engine.events(Some(Seq(0)));
    let clock = test.clock.clone();
    let ticking = tokio::spawn(async move {
        loop {
            // What was not written is tried again after a while of the engine's own time.
            clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    });
    let told =
        crate::events::until(&mut events, |e| e.stack == expires && e.kind == EventKind::Removed)
            .await;
    ticking.abort();
    assert!(told.iter().any(|(_, e)| e.stack == expires && e.kind == EventKind::Expired));
    test.finish().await;
}
