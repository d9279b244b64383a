//! Time: what it ends, and what it must not.

use std::time::Duration;

use stackd_core::Phase;
use stackd_core::stack::reason;
use stackd_engine::{EngineConfig, WaitFor};
use stackd_runtimes::simulated::SimulatedConfig;
use stackd_testkit::build::spec;
use stackd_testkit::engine::{Setup, create_command};
use stackd_testkit::{PATIENCE, TestEngine};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_stack_goes_when_its_time_has_come_and_not_before() {
    let test = TestEngine::start().await;
    let live = test.running(spec("app").build()).await;
    let id = live.stack.id;
    assert_eq!(live.stack.expires_at, live.stack.created_at + 2 * HOUR);
    test.clock.advance(2 * HOUR - Duration::from_nanos(1));
    assert!(test.engine.get(id).is_some());
    let gone = test.engine.clone();
    let gone = tokio::spawn(async move { gone.wait(id, WaitFor::Ended, 4 * HOUR).await });
    test.clock.advance(Duration::from_nanos(1));
    assert!(gone.await.unwrap().is_none());
    test.removed(id).await;
    test.finish().await;
}

#[tokio::test]
async fn a_clock_that_jumps_ends_no_stack_early() {
    let test = TestEngine::start().await;
    let live = test.running(spec("app").build()).await;
    test.clock.set_wall(live.stack.created_at + 48 * HOUR);
    // Something must make the engine look: another stack's deadline.
    let mut command = create_command("test", spec("app").build());
    command.ttl = Some(Duration::from_secs(1));
    let short = test.engine.create(command).await.unwrap().stack.stack.id;
    test.clock.advance(Duration::from_secs(1));
    test.removed(short).await;
    assert!(test.engine.get(live.stack.id).is_some());
    test.finish().await;
}

#[tokio::test]
async fn a_start_that_takes_too_long_has_failed() {
    let runtime = SimulatedConfig { ready_delay: 24 * HOUR, ..SimulatedConfig::instant() };
    let test = TestEngine::with(Setup { runtime: Some(runtime), ..Setup::default() }).await;
    let id = test.create(spec("app").build()).await.stack.id;
    stackd_testkit::within("it is started", async {
        while test.runtime.get(id).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    test.clock.advance(EngineConfig::default().start_timeout);
    let ended = test.engine.wait(id, WaitFor::Ended, PATIENCE).await.unwrap();
    assert_eq!(ended.stack.observed.phase, Phase::Failed);
    assert_eq!(crate::life::reason_of(&ended), Some(reason::START_TIMEOUT));
    assert_eq!(test.engine.stats().used_node_ports, 0);
    test.finish().await;
}

#[tokio::test]
async fn a_wait_ends_with_its_time_and_shows_how_it_then_is() {
    let runtime = SimulatedConfig { ready_delay: 24 * HOUR, ..SimulatedConfig::instant() };
    let test = TestEngine::with(Setup { runtime: Some(runtime), ..Setup::default() }).await;
    let id = test.create(spec("app").build()).await.stack.id;
    let engine = test.engine.clone();
    let wait =
        tokio::spawn(
            async move { engine.wait(id, WaitFor::Running, Duration::from_secs(30)).await },
        );
    while !wait.is_finished() {
        test.clock.advance(Duration::from_millis(100));
        tokio::task::yield_now().await;
    }
    assert_eq!(wait.await.unwrap().unwrap().stack.observed.phase, Phase::Creating);
    test.finish().await;
}
