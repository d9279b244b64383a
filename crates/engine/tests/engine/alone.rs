//! A server by itself on a database that others reach too.

use std::sync::Arc;
use std::time::Duration;

use stackd_engine::{CreateError, Engine, EngineConfig, ReplicaConfig, StartError, WaitFor};
use stackd_runtimes::simulated::{SimulatedConfig, SimulatedRuntime};
use stackd_store::{Candidate, Store, StoreConfig};
use stackd_testkit::build::{ensure, spec, stack_id};
use stackd_testkit::clock::ManualClock;
use stackd_testkit::engine::create_command;
use stackd_testkit::postgres::Postgres;
use stackd_testkit::{PATIENCE, within};

const LEASE: Duration = Duration::from_millis(400);

/// A server of this name, with the time in the test's hands: it renews its lease when that passes.
async fn server(
    name: &str,
    database: &StoreConfig,
    runtime: &SimulatedRuntime,
    clock: &ManualClock,
) -> Result<Engine, StartError> {
    let store = Store::open(database.clone()).await.unwrap();
    let candidate = Candidate::alone(name);
    let lease = ReplicaConfig { candidate, lease: LEASE, renew: LEASE / 4 };
    let runtime = Arc::new(runtime.clone());
    Engine::start_alone(EngineConfig::default(), lease, store, runtime, Arc::new(clock.clone()))
        .await
}

/// Lets time pass as it does.
fn ticking(clock: &ManualClock) -> tokio::task::JoinHandle<()> {
    let clock = clock.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        loop {
            tick.tick().await;
            clock.advance(Duration::from_millis(10));
        }
    })
}

fn instant() -> SimulatedRuntime {
    SimulatedRuntime::new(SimulatedConfig::instant())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_one_is_refused_for_as_long_as_the_first_lives() {
    let database = StoreConfig::Postgres { url: Postgres::shared().database() };
    let clock = ManualClock::default();
    let ticking = ticking(&clock);
    let first = server("first", &database, &instant(), &clock).await.unwrap();
    match within("a word", server("second", &database, &instant(), &clock)).await {
        Err(StartError::Held(holder)) => assert_eq!(holder, Candidate::alone("first")),
        other => panic!("{:?}", other.err()),
    }
    first.shutdown().await;
    let second = within("it starts", server("second", &database, &instant(), &clock)).await;
    ticking.abort();
    second.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_paused_for_too_long_ends_and_writes_nothing() {
    let database = StoreConfig::Postgres { url: Postgres::shared().database() };
    let (paused, clock) = (ManualClock::default(), ManualClock::default());
    let first = server("first", &database, &instant(), &paused).await.unwrap();
    // Its lease runs out by the database's time; its own stands still.
    let ticking = ticking(&clock);
    let second = within("it starts", server("second", &database, &instant(), &clock)).await;
    let second = second.unwrap();
    let refused = first.create(create_command("a", spec("app").build())).await;
    assert!(matches!(refused, Err(CreateError::Unavailable(_))), "{refused:?}");
    within("it knows that it is over", first.ousted()).await;
    assert!(second.create(create_command("a", spec("app").build())).await.is_ok());
    first.shutdown().await;
    ticking.abort();
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_deadlines_are_kept_and_nothing_counts_as_an_orphan() {
    let cluster = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let database = StoreConfig::Postgres { url: cluster.database() };
    let (runtime, clock) = (instant(), ManualClock::default());
    let handle = runtime.handle();
    let engine = server("alone", &database, &runtime, &clock).await.unwrap();
    let expiring = async |ttl| {
        let mut command = create_command("a", spec("app").build());
        command.ttl = Some(Duration::from_secs(ttl));
        let id = engine.create(command).await.unwrap().stack.stack.id;
        engine.wait(id, WaitFor::Running, PATIENCE).await.unwrap();
        id
    };
    let (first, second) = (expiring(60).await, expiring(120).await);
    let gone = async |id| {
        within("it is removed", async {
            while handle.get(id).is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };

    tokio::task::block_in_place(|| cluster.stop());
    clock.advance(Duration::from_secs(60));
    gone(first).await;
    // Another server may have made this one meanwhile.
    let stranger = stack_id();
    let request = ensure(stranger, spec("app").no_ports().build(), Vec::new(), "default");
    let request = stackd_core::runtime::EnsureRequest { epoch: 1_000, ..request };
    stackd_core::Runtime::ensure(&runtime, request).await.unwrap();
    // What the runtime tells after it, and what is removed after that.
    assert!(handle.set_ready(second, false));
    within("it is told", async {
        while engine.get(second).unwrap().stack.observed.condition.is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    clock.advance(Duration::from_secs(60));
    gone(second).await;
    assert!(handle.get(stranger).is_some());

    tokio::task::block_in_place(|| cluster.start_again());
    let mut turns = tokio::time::interval(Duration::from_millis(1));
    within("it is an orphan when nobody else has taken over", async {
        while handle.get(stranger).is_some() {
            turns.tick().await;
            clock.advance(Duration::from_millis(50));
        }
    })
    .await;
    let ticking = ticking(&clock);
    engine.shutdown().await;
    ticking.abort();
}
