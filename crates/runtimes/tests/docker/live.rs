//! An engine with live restore: its containers go on while it is away, whether it was stopped or has
//! crashed, and what happened meanwhile is found out when it is back.

use std::time::Duration;

use rustix::process::{Pid, Signal};
use stackd_core::Runtime;
use stackd_core::runtime::{EnsureRequest, Outcome, RuntimeState};
use stackd_runtimes::docker::DockerRuntime;
use stackd_shim::protocol::Event;
use stackd_testkit::docker::Engine;
use stackd_testkit::within;

use crate::bed::{self, Bed};
use crate::faults::{answers, ending, refuses};
use crate::{Body, with_engine};

/// How an engine goes away.
type Away = fn(&mut Engine);

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("live::stacks_outlive_a_restart_of_the_engine", |_| Box::pin(go_on(Engine::stop)));
    add("live::stacks_outlive_a_crash_of_the_engine", |_| Box::pin(go_on(Engine::kill)));
    add("live::what_ended_during_a_restart_is_told", |_| Box::pin(ended(Engine::stop)));
    add("live::what_ended_during_a_crash_is_told", |_| Box::pin(ended(Engine::kill)));
    add("live::a_keeper_that_died_during_a_restart_is_replaced", |_| {
        Box::pin(keeper_died(Engine::stop))
    });
    add("live::a_server_that_restarts_without_its_engine_finds_its_stacks", |_| {
        Box::pin(both_restart())
    });
    add("live::a_removal_waits_for_its_engine", |_| Box::pin(removed()));
    add("live::a_probe_waits_for_its_engine", |_| Box::pin(probed()));
}

fn page() -> EnsureRequest {
    bed::request(bed::serving(Vec::new()))
}

async fn with_live_engine(body: impl AsyncFnOnce(&mut Engine, Bed)) {
    with_engine(&["--live-restore"], async |engine, bed| {
        engine.load_busybox("busybox:1").await;
        body(engine, bed).await;
    })
    .await;
}

/// The number of a container's first process.
async fn process_of(bed: &Bed, name: &str) -> Pid {
    let there = bed.docker().await.inspect_container(name, None).await.expect("it is there");
    let pid = there.state.and_then(|state| state.pid).expect("it runs");
    Pid::from_raw(i32::try_from(pid).expect("a number")).expect("it runs")
}

/// The engine is heard again: a container that ends now is noticed.
async fn is_heard(bed: &Bed, runtime: &DockerRuntime, request: &EnsureRequest) {
    let pid = process_of(bed, &format!("{}.app", request.id)).await;
    rustix::process::kill_process(pid, Signal::KILL).expect("killed");
    let (outcome, code, _) = ending(bed::until_ended(runtime, request.id).await);
    assert_eq!((outcome, code), (Outcome::Failed, Some(137)));
    refuses(request).await;
}

async fn go_on(away: Away) {
    with_live_engine(async |engine, bed| {
        let runtime = bed.open().await;
        let several = bed::request(bed::serving(vec![bed::script("side", "sleep 1000")]));
        let requests = [page(), several];
        for request in &requests {
            bed::run(&runtime, request).await;
        }
        let keepers = bed.keepers();
        away(engine);
        for request in &requests {
            answers(request).await;
        }
        engine.launch();
        let next = page();
        within("a start succeeds again", async {
            while runtime.ensure(next.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        bed::until_ready(&runtime, next.id).await;
        for request in &requests {
            bed::until_ready(&runtime, request.id).await;
            answers(request).await;
        }
        let now = bed.keepers();
        assert!(keepers.iter().all(|pid| now.contains(pid)), "the same processes keep them");
        for request in &requests {
            is_heard(&bed, &runtime, request).await;
        }
        for request in requests.iter().chain([&next]) {
            runtime.remove(request.id, Duration::ZERO).await.expect("removed");
        }
    })
    .await;
}

async fn ended(away: Away) {
    with_live_engine(async |engine, bed| {
        let runtime = bed.open().await;
        // One that ends as its own, one of two, and what holds the network of two.
        let two = || bed::request(bed::serving(vec![bed::script("side", "sleep 1000")]));
        let (alone, second, holder) = (page(), two(), two());
        let requests = [&alone, &second, &holder];
        for request in requests {
            bed::run(&runtime, request).await;
        }
        let pids = [
            process_of(&bed, &format!("{}.app", alone.id)).await,
            process_of(&bed, &format!("{}.side", second.id)).await,
            process_of(&bed, &holder.id.to_string()).await,
        ];
        away(engine);
        for pid in pids {
            rustix::process::kill_process(pid, Signal::KILL).expect("killed");
        }
        engine.launch();
        for request in requests {
            let (outcome, _, _) = ending(bed::until_ended(&runtime, request.id).await);
            assert_eq!(outcome, Outcome::Failed);
            refuses(request).await;
            runtime.remove(request.id, Duration::ZERO).await.expect("removed");
        }
    })
    .await;
}

async fn keeper_died(away: Away) {
    with_live_engine(async |engine, bed| {
        let runtime = bed.open().await;
        let request = page();
        bed::run(&runtime, &request).await;
        let keepers = bed.keepers();
        away(engine);
        for pid in &keepers {
            rustix::process::kill_process(*pid, Signal::KILL).expect("killed");
        }
        // Nobody can give it another now.
        bed::until(&runtime, request.id, "the loss", |state| {
            matches!(state, RuntimeState::Running { ready: false, .. })
        })
        .await;
        engine.launch();
        within("it gets another", async {
            while bed.keepers().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        bed::until_ready(&runtime, request.id).await;
        answers(&request).await;
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    })
    .await;
}

async fn both_restart() {
    with_live_engine(async |engine, bed| {
        let runtime = bed.open().await;
        let (stays, ends) = (page(), page());
        for request in [&stays, &ends] {
            bed::run(&runtime, request).await;
        }
        let pid = process_of(&bed, &format!("{}.app", ends.id)).await;
        engine.stop();
        drop(runtime);
        rustix::process::kill_process(pid, Signal::KILL).expect("killed");
        answers(&stays).await;
        engine.launch();
        let runtime = bed.open().await;
        bed::until_ready(&runtime, stays.id).await;
        answers(&stays).await;
        let (outcome, _, _) = ending(bed::until_ended(&runtime, ends.id).await);
        assert_eq!(outcome, Outcome::Failed);
        for request in [&stays, &ends] {
            runtime.remove(request.id, Duration::ZERO).await.expect("removed");
        }
    })
    .await;
}

async fn removed() {
    with_live_engine(async |engine, bed| {
        let runtime = bed.open().await;
        let request = page();
        bed::run(&runtime, &request).await;
        engine.stop();
        let removing = tokio::spawn({
            let (runtime, id) = (runtime.clone(), request.id);
            async move { runtime.remove(id, Duration::ZERO).await }
        });
        // Ports are given back before anything is asked of the engine.
        refuses(&request).await;
        engine.launch();
        within("it is removed", removing).await.expect("it ran").expect("removed");
    })
    .await;
}

async fn probed() {
    with_live_engine(async |engine, bed| {
        let runtime = bed.open().await;
        let mut spec = bed::serving(Vec::new());
        spec.containers[0].liveness_probe = Some(bed::probe(&["true"]));
        let request = bed::request(spec);
        bed::run(&runtime, &request).await;
        engine.stop();
        // One is asked for and cannot be run, and another after it.
        for _ in 0..2 {
            bed::told(&bed, request.id, |event| matches!(event, Event::Probe { .. })).await;
        }
        engine.launch();
        bed::until_ready(&runtime, request.id).await;
        answers(&request).await;
        let (text, code) = bed::exec(&runtime, request.id, None, &["echo", "well"]).await;
        assert_eq!((text.as_str(), code), ("well\n", 0));
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    })
    .await;
}
