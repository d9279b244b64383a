//! Faults of the engine, of our own processes and of people: afterwards everything is as it should
//! be, and nothing is left.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptions, RemoveContainerOptionsBuilder,
    RemoveImageOptions, RemoveVolumeOptions, StopContainerOptionsBuilder,
};
use rustix::process::Signal;
use stackd_core::Runtime;
use stackd_core::runtime::{EnsureRequest, ErrorKind, Outcome, RuntimeState};
use stackd_core::spec::{Probe, ProbeAction, ProbePort};
use stackd_core::stack::reason;
use stackd_runtimes::docker::DockerRuntime;
use stackd_shim::protocol::Event;
use stackd_testkit::docker::Engine;
use stackd_testkit::within;

use crate::bed::{self, Bed};
use crate::{Body, with_engine};

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("faults::a_server_that_restarts_finds_its_stacks", |bed| Box::pin(restart(bed)));
    add("faults::what_ended_meanwhile_is_told", |bed| Box::pin(ended_meanwhile(bed)));
    add("faults::what_was_unhealthy_meanwhile_is_told", |bed| Box::pin(unhealthy_meanwhile(bed)));
    add("faults::what_was_restarted_meanwhile_is_ended", |bed| Box::pin(restarted_meanwhile(bed)));
    add("faults::a_start_that_was_cut_off_leaves_nothing", |bed| Box::pin(cut_off(bed)));
    add("faults::a_keeper_that_dies_is_replaced", |bed| Box::pin(keeper_dies(bed)));
    add("faults::a_container_that_is_stopped_by_hand", |bed| Box::pin(stopped_by_hand(bed)));
    add("faults::a_container_that_is_removed_by_hand", |bed| Box::pin(removed_by_hand(bed)));
    add("faults::a_container_that_is_restarted_by_hand", |bed| Box::pin(restarted_by_hand(bed)));
    add("faults::a_network_that_is_removed_by_hand", |bed| Box::pin(holder_removed(bed)));
    add("faults::an_image_that_is_removed_by_hand", |bed| Box::pin(image_removed(bed)));
    add("faults::what_is_not_ours_is_never_touched", |bed| Box::pin(not_ours(bed)));
    add("faults::an_engine_that_restarts_ends_stacks", |_| Box::pin(engine_restarts()));
    add("faults::an_engine_that_hangs_is_waited_for", |_| Box::pin(engine_hangs()));
    add("faults::an_engine_that_hangs_makes_nobody_unhealthy", |_| Box::pin(hangs_with_probe()));
    add("faults::a_pause_image_of_somebody_else_is_left_alone", |_| Box::pin(foreign_pause()));
}

fn page() -> EnsureRequest {
    bed::request(bed::serving(Vec::new()))
}

/// A stack whose first container has ended, and whose network another one holds.
fn held() -> EnsureRequest {
    let mut spec = bed::serving(Vec::new());
    spec.init_containers = vec![bed::script("first", "exit 0")];
    bed::request(spec)
}

pub(crate) async fn answers(request: &EnsureRequest) {
    let page = bed::get(request.ports[0].node_port, "/").await.expect("an answer");
    assert!(page.ends_with("hello\n"), "{page}");
}

pub(crate) async fn refuses(request: &EnsureRequest) {
    let port = request.ports[0].node_port;
    within("the port is given back", async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) fn ending(state: RuntimeState) -> (Outcome, Option<i32>, String) {
    let RuntimeState::Ended { outcome, exit_code, condition, .. } = state else {
        panic!("it has not ended: {state:?}")
    };
    (outcome, exit_code, condition.reason)
}

async fn restart(bed: Bed) {
    let runtime = bed.open().await;
    let (single, mut several) = (page(), bed::serving(vec![bed::script("side", "sleep 1000")]));
    several.containers[0].readiness_probe = Some(bed::probe(&["true"]));
    let several = bed::request(several);
    for request in [&single, &several] {
        bed::run(&runtime, request).await;
    }
    let keepers = bed.keepers();
    assert_eq!(keepers.len(), 2);
    drop(runtime);
    // Nobody serves them, and they go on.
    for request in [&single, &several] {
        answers(request).await;
    }
    let runtime = bed.open().await;
    assert_eq!(bed.keepers(), keepers, "the same processes keep them");
    for request in [&single, &several] {
        bed::until_ready(&runtime, request.id).await;
        answers(request).await;
        let again = runtime.ensure(request.clone()).await;
        again.expect("what runs is not started again");
    }
    let mut older = single.clone();
    older.epoch = 0;
    let refused = runtime.ensure(older).await.expect_err("a newer engine has been here");
    assert_eq!(refused.kind, ErrorKind::Rejected);
    for request in [&single, &several] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
}

async fn ended_meanwhile(bed: Bed) {
    let runtime = bed.open().await;
    let (stopped, removed, unheld) = (page(), page(), held());
    for request in [&stopped, &removed, &unheld] {
        bed::run(&runtime, request).await;
    }
    drop(runtime);
    let docker = bed.docker().await;
    docker
        .kill_container(&format!("{}.app", stopped.id), None::<KillContainerOptions>)
        .await
        .expect("killed");
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    for name in [format!("{}.app", removed.id), unheld.id.to_string()] {
        docker.remove_container(&name, Some(options.clone())).await.expect("removed");
    }
    refuses(&stopped).await;
    let runtime = bed.open().await;
    let state = bed::until_ended(&runtime, stopped.id).await;
    assert_eq!(ending(state), (Outcome::Failed, Some(137), reason::ERROR.to_owned()));
    for request in [&removed, &unheld] {
        let state = bed::until_ended(&runtime, request.id).await;
        assert_eq!(ending(state), (Outcome::Failed, None, reason::LOST.to_owned()));
    }
    until_stopped(&docker, &format!("{}.app", unheld.id)).await;
    for request in [&stopped, &removed, &unheld] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
}

async fn unhealthy_meanwhile(bed: Bed) {
    let runtime = bed.open().await;
    let serve = "mkdir /tmp/www && touch /tmp/www/well && exec httpd -f -p 80 -h /tmp/www";
    let mut container = bed::script("app", serve);
    container.liveness_probe = Some(Probe {
        action: ProbeAction::HttpGet {
            path: Some("/well".to_owned()),
            port: ProbePort { number: 80, name: None },
            https: None,
            headers: Vec::new(),
        },
        failure_threshold: Some(5),
        ..bed::probe(&[])
    });
    let mut spec = bed::serving(Vec::new());
    container.ports = spec.containers[0].ports.clone();
    spec.containers = vec![container];
    spec.termination_grace_seconds = Some(1);
    let request = bed::request(spec);
    bed::run(&runtime, &request).await;
    let (text, code) = bed::exec(&runtime, request.id, None, &["rm", "/tmp/www/well"]).await;
    assert_eq!(code, 0, "{text}");
    drop(runtime);
    bed::told(
        &bed,
        request.id,
        |event| matches!(event, Event::Kept(kept) if kept.unhealthy.is_some()),
    )
    .await;
    let runtime = bed.open().await;
    let state = bed::until_ended(&runtime, request.id).await;
    assert_eq!(ending(state), (Outcome::Failed, None, reason::UNHEALTHY.to_owned()));
    refuses(&request).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn until_stopped(docker: &bollard::Docker, name: &str) {
    within("it does not go on", async {
        loop {
            let there = docker.inspect_container(name, None).await.expect("its log is kept");
            if there.state.and_then(|state| state.running) == Some(false) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn restarted_meanwhile(bed: Bed) {
    let runtime = bed.open().await;
    // One that ran, one that had ended, and one whose network is another than before.
    let (live, ended, held) = (page(), page(), held());
    for request in [&live, &ended, &held] {
        bed::run(&runtime, request).await;
    }
    runtime.stop(ended.id, Duration::ZERO).await.expect("stopped");
    drop(runtime);
    let docker = bed.docker().await;
    let [live_app, ended_app, held_app] =
        [&live, &ended, &held].map(|request| format!("{}.app", request.id));
    for name in [&live_app, &ended_app, &held.id.to_string()] {
        let none = None::<bollard::query_parameters::RestartContainerOptions>;
        docker.restart_container(name, none).await.expect("restarted");
    }
    let runtime = bed.open().await;
    for request in [&live, &held] {
        let state = bed::until_ended(&runtime, request.id).await;
        assert_eq!(ending(state), (Outcome::Failed, None, reason::LOST.to_owned()));
    }
    for name in [&live_app, &ended_app, &held_app] {
        until_stopped(&docker, name).await;
    }
    for request in [&live, &ended, &held] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
}

async fn cut_off(bed: Bed) {
    let runtime = bed.open().await;
    let request = page();
    bed::run(&runtime, &request).await;
    drop(runtime);
    // As if the server had died before the start was answered.
    let record = bed.path().join(format!("docker/stacks/{}/record.json", request.id));
    let text = std::fs::read_to_string(&record).expect("a record");
    std::fs::write(&record, text.replace("\"whole\":true", "\"whole\":false")).expect("written");
    let runtime = bed.open().await;
    assert_eq!(bed.left().await, Vec::<String>::new());
    // It is asked for again, and starts.
    bed::run(&runtime, &request).await;
    answers(&request).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn keeper_dies(bed: Bed) {
    let runtime = bed.open().await;
    let request = page();
    bed::run(&runtime, &request).await;
    let keepers = bed.keepers();
    for pid in &keepers {
        rustix::process::kill_process(*pid, Signal::KILL).expect("killed");
    }
    within("it gets another", async {
        while bed.keepers().iter().all(|pid| keepers.contains(pid)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    bed::until_ready(&runtime, request.id).await;
    answers(&request).await;
    assert_eq!(bed.keepers().len(), 1, "one other, and no more");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn stopped_by_hand(bed: Bed) {
    let runtime = bed.open().await;
    let request = page();
    bed::run(&runtime, &request).await;
    let options = StopContainerOptionsBuilder::new().t(0).build();
    let name = format!("{}.app", request.id);
    bed.docker().await.stop_container(&name, Some(options)).await.expect("stopped");
    let state = bed::until_ended(&runtime, request.id).await;
    assert_eq!(ending(state), (Outcome::Failed, Some(137), reason::ERROR.to_owned()));
    refuses(&request).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn removed_by_hand(bed: Bed) {
    let runtime = bed.open().await;
    let request = page();
    bed::run(&runtime, &request).await;
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    let name = format!("{}.app", request.id);
    bed.docker().await.remove_container(&name, Some(options)).await.expect("removed");
    let (outcome, _, _) = ending(bed::until_ended(&runtime, request.id).await);
    assert_eq!(outcome, Outcome::Failed);
    refuses(&request).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn restarted_by_hand(bed: Bed) {
    let runtime = bed.open().await;
    let request = page();
    bed::run(&runtime, &request).await;
    let name = format!("{}.app", request.id);
    let docker = bed.docker().await;
    let none = None::<bollard::query_parameters::RestartContainerOptions>;
    docker.restart_container(&name, none).await.expect("restarted");
    let (outcome, _, _) = ending(bed::until_ended(&runtime, request.id).await);
    assert_eq!(outcome, Outcome::Failed);
    until_stopped(&docker, &name).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn holder_removed(bed: Bed) {
    let runtime = bed.open().await;
    let request = bed::request(bed::serving(vec![bed::script("side", "sleep 1000")]));
    bed::run(&runtime, &request).await;
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    let name = request.id.to_string();
    bed.docker().await.remove_container(&name, Some(options)).await.expect("removed");
    let (outcome, _, word) = ending(bed::until_ended(&runtime, request.id).await);
    assert_eq!((outcome, word.as_str()), (Outcome::Failed, reason::LOST));
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn image_removed(bed: Bed) {
    let runtime = bed.open().await;
    let docker = bed.docker().await;
    let options = bollard::query_parameters::TagImageOptionsBuilder::new();
    let options = options.repo("passing").tag("1").build();
    docker.tag_image("busybox:1", Some(options)).await.expect("a name");
    let mut spec = bed::serving(Vec::new());
    spec.containers[0].image = "passing:1".to_owned();
    spec.containers[0].image_pull_policy = Some(stackd_core::spec::ImagePullPolicy::Never);
    runtime.prepare("passing:1", None).await.expect("it is here");
    let running = bed::request(spec.clone());
    bed::run(&runtime, &running).await;
    let none = None::<RemoveImageOptions>;
    docker.remove_image("passing:1", none, None).await.expect("removed");
    answers(&running).await;
    let late = bed::request(spec);
    runtime.claim_ports(late.id, &late.ports).expect("ports");
    let error = runtime.ensure(late.clone()).await.expect_err("its image is gone");
    assert_eq!(error.condition.reason, reason::IMAGE_NEVER_PULL, "{error:?}");
    for request in [&running, &late] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
}

async fn not_ours(bed: Bed) {
    let (one, other) = (bed.open().await, Bed::new(bed.config.host.clone()));
    let theirs = other.open().await;
    let (mine, yours) = (page(), page());
    bed::run(&one, &mine).await;
    bed::run(&theirs, &yours).await;
    // A container of somebody who has nothing to do with either, under a name that we would like.
    let docker = bed.docker().await;
    let foreign = page();
    let name = format!("{}.app", foreign.id);
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = ContainerCreateBody {
        image: Some("busybox:1".to_owned()),
        cmd: Some(vec!["/bin/sleep".to_owned(), "1000".to_owned()]),
        ..ContainerCreateBody::default()
    };
    docker.create_container(Some(options), body).await.expect("made");
    one.claim_ports(foreign.id, &foreign.ports).expect("ports");
    let error = one.ensure(foreign.clone()).await.expect_err("the name is taken");
    assert!(error.operator.contains("not ours"), "{error:?}");
    one.remove(foreign.id, Duration::ZERO).await.expect("removed");
    docker.inspect_container(&name, None).await.expect("it is still there");
    // A volume is no different: the engine gives whoever asks for one what is there.
    let mut spec = bed::serving(Vec::new());
    spec.volumes = vec![bed::disk("disk")];
    let guest = bed::request(spec);
    let volume = format!("{}.disk", guest.id);
    let theirs_too =
        VolumeCreateRequest { name: Some(volume.clone()), ..VolumeCreateRequest::default() };
    let mode = |path: &str| std::fs::metadata(path).expect("it is there").permissions().mode();
    let path = docker.create_volume(theirs_too).await.expect("made").mountpoint;
    let before = mode(&path);
    one.claim_ports(guest.id, &guest.ports).expect("ports");
    let error = one.ensure(guest.clone()).await.expect_err("the volume is somebody else's");
    assert!(error.operator.contains("not ours"), "{error:?}");
    one.remove(guest.id, Duration::ZERO).await.expect("removed");
    assert_eq!(mode(&path), before, "it is as it was");
    docker.remove_volume(&volume, None::<RemoveVolumeOptions>).await.expect("it is still there");
    // A server that starts or removes looks at its own only.
    one.remove(yours.id, Duration::ZERO).await.expect("it is unknown here");
    drop(one);
    let one = bed.open().await;
    answers(&yours).await;
    one.remove(mine.id, Duration::ZERO).await.expect("removed");
    theirs.remove(yours.id, Duration::ZERO).await.expect("removed");
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    docker.remove_container(&name, Some(options)).await.expect("removed");
    assert_eq!(other.left().await, Vec::<String>::new());
}

async fn images(engine: &Engine) {
    engine.load_busybox("busybox:1").await;
}

async fn engine_restarts() {
    with_engine(&[], async |engine, bed| {
        images(engine).await;
        let runtime = bed.open().await;
        let request = page();
        bed::run(&runtime, &request).await;
        engine.stop();
        let error = runtime.ensure(page()).await.expect_err("nobody is there");
        assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
        engine.launch();
        let (outcome, _, _) = ending(bed::until_ended(&runtime, request.id).await);
        assert_eq!(outcome, Outcome::Failed);
        refuses(&request).await;
        // It is heard again, too.
        let next = page();
        within("a start succeeds again", async {
            while let Err(error) = runtime.ensure(next.clone()).await {
                assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        bed::until_ready(&runtime, next.id).await;
        for request in [&request, &next] {
            runtime.remove(request.id, Duration::ZERO).await.expect("removed");
        }
    })
    .await;
}

async fn engine_hangs() {
    with_engine(&[], async |engine, bed| {
        images(engine).await;
        let runtime = bed.open().await;
        let request = page();
        bed::run(&runtime, &request).await;
        engine.pause();
        // Traffic does not need the engine.
        answers(&request).await;
        let next = page();
        let asked = tokio::spawn({
            let (runtime, next) = (runtime.clone(), next.clone());
            async move { runtime.ensure(next).await }
        });
        // Its keeper is started while the engine is asked for its container.
        within("the start is under way", async {
            while bed.keepers().len() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(!asked.is_finished(), "the engine hangs");
        engine.resume();
        let started = within("the start goes on", asked).await.expect("it ran");
        started.expect("it starts");
        bed::until_ready(&runtime, next.id).await;
        for request in [&request, &next] {
            runtime.remove(request.id, Duration::ZERO).await.expect("removed");
        }
    })
    .await;
}

async fn hangs_with_probe() {
    with_engine(&[], async |engine, bed| {
        images(engine).await;
        let runtime = bed.open().await;
        let mut spec = bed::serving(Vec::new());
        // Every second, with a second to answer, and no second chance.
        spec.containers[0].liveness_probe = Some(bed::probe(&["true"]));
        let request = bed::request(spec);
        bed::run(&runtime, &request).await;
        engine.pause();
        bed::told(&bed, request.id, |event| matches!(event, Event::Probe { .. })).await;
        // The fault itself: longer than a probe has.
        tokio::time::sleep(Duration::from_secs(3)).await;
        engine.resume();
        let (text, code) = bed::exec(&runtime, request.id, None, &["echo", "well"]).await;
        assert_eq!((text.as_str(), code), ("well\n", 0));
        // It is probed again, and nothing is held against it.
        bed::told(&bed, request.id, |event| {
            assert!(!matches!(event, Event::Kept(kept) if kept.unhealthy.is_some()), "{event:?}");
            matches!(event, Event::Probe { .. })
        })
        .await;
        bed::until_ready(&runtime, request.id).await;
        // A command that hangs is to blame itself.
        let mut spec = bed::serving(Vec::new());
        spec.containers[0].liveness_probe = Some(bed::probe(&["sleep", "1000"]));
        spec.termination_grace_seconds = Some(1);
        let hanging = bed::request(spec);
        runtime.claim_ports(hanging.id, &hanging.ports).expect("ports");
        within("a start", runtime.ensure(hanging.clone())).await.expect("a start");
        let (_, _, word) = ending(bed::until_ended(&runtime, hanging.id).await);
        assert_eq!(word, reason::UNHEALTHY);
        for request in [&request, &hanging] {
            runtime.remove(request.id, Duration::ZERO).await.expect("removed");
        }
    })
    .await;
}

async fn foreign_pause() {
    with_engine(&[], async |engine, bed| {
        engine.load_busybox("stackd-pause:1").await;
        let Err(error) = DockerRuntime::open(bed.config.clone()).await else {
            panic!("it took somebody else's image for its own")
        };
        assert!(error.to_string().contains("not ours"), "{error}");
        bed.docker().await.inspect_image("stackd-pause:1").await.expect("it is still there");
    })
    .await;
}
